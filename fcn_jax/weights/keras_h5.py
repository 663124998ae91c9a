"""VGG-16 from Keras's ``.h5``, without Keras.

The file is HDF5: groups of datasets, and links between them. Links and datasets may
lead to other files, which are none of the file's business: they are not followed.

Reference: ``keras.applications.VGG16``, Caffe's weights; ``keras.src.saving`` and
``legacy_h5_format`` in it.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import BODY, WeightFile, from_hwc

_CONVOLUTIONS = tuple(name for name in BODY if name.startswith("conv"))
_DENSE = ("fc6", "fc7", "fc8")
_NAMES = {f"block{name[4]}_conv{name[6]}": name for name in _CONVOLUTIONS}
_NAMES |= {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
# Keras 3 drops the names of layers and counts each kind: conv2d, conv2d_1, ...
_COUNTED = {
    f"{kind}_{number}" if number else kind: name
    for kind, names in (("conv2d", _CONVOLUTIONS), ("dense", _DENSE))
    for number, name in enumerate(names)
}
_PARTS = {"kernel": "kernel", "W": "kernel", "bias": "bias", "b": "bias"}
_COUNTED_PARTS = {"0": "kernel", "1": "bias"}
_LEAF = re.compile(r"(?:.*_)?(kernel|W|bias|b)(?:_\d+)?(?::\d+)?")  # fc1_W_1:0

# Keras nests to a depth of 4 and a VGG-16 has 100 links, with its optimiser's 300.
_MAX_LINKS, _MAX_DEPTH = 10_000, 10


def read(path: str | Path) -> WeightFile:
    """Reads the VGG-16 of Keras applications, weights alone or a whole model.

    Args:
        path: the file; with "notop" it has no dense layers.
    Returns:
        The layers, from BGR turned to RGB, dense layers as convolutions. A layer
        without exactly one kernel and one bias is left unused.
    Raises:
        ValueError: if h5py is not installed; or if the file is damaged, of
            Theano's kernels, compressed, keeps its numbers in other files, or claims
            larger arrays than its bytes make.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"{path} is an HDF5 file, and h5py is not installed: pip install "
            "'fcn-jax[keras]'"
        ) from error
    size = Path(path).stat().st_size
    try:
        with h5py.File(path, "r") as file:
            layers, unused = _layers(file, size)
    except Exception as error:  # Garbled bytes end in errors of every kind.
        raise ValueError(f"{path} is no readable Keras .h5: {error}") from error
    return WeightFile(layers, VGG_MEAN_RGB, "Keras .h5, BGR, H, W, I, O", tuple(unused))


def _layers(file: Any, size: int) -> tuple[dict, list[str]]:
    """Returns the layers of a file of ``size`` bytes, and the names of what else."""
    import h5py

    found: dict[str, dict[str, list]] = {}
    unused = []
    for path, item in _items(file):
        layer, part = _place(path)
        floats = isinstance(item, h5py.Dataset) and item.dtype.kind == "f"
        if layer and part and floats:
            parts = found.setdefault(layer, {"kernel": [], "bias": []})
            parts[part].append((path, item))
        else:
            unused.append(path)
    layers = {}
    for name in filter(found.__contains__, BODY):
        parts = found[name]
        if [len(entries) for entries in parts.values()] != [1, 1]:
            unused += [path for entries in parts.values() for path, _ in entries]
            continue
        arrays = {}
        for part, [(path, dataset)] in parts.items():
            size -= _nbytes(path, dataset)
            if size < 0:  # Numbers never written, or one dataset under many names.
                raise ValueError("its arrays claim more bytes than it has")
            arrays[part] = np.asarray(dataset[()])
        _refuse_theano(name, arrays["kernel"])
        layers[name] = arrays | {"kernel": from_hwc(name, arrays["kernel"])}
    return layers, sorted(unused)


def _items(file: Any) -> Iterator[tuple[str, object]]:
    """The path of each dataset with the weights, and the dataset.

    Of a whole model those of the optimiser, which have the same names, are left out.
    Links to elsewhere come as None, unopened.
    """
    import h5py

    waiting, seen, links = [("", file)], set(), 0
    while waiting:
        path, group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # Groups may contain themselves.
            continue
        seen.add(address)
        links += len(group)
        if links > _MAX_LINKS or path.count("/") > _MAX_DEPTH:
            raise ValueError(
                f"it has more than {_MAX_LINKS:,} links, or groups deeper than "
                f"{_MAX_DEPTH}"
            )
        names = list(group)
        if group is file and "model_weights" in names:
            names = ["model_weights"]
        for name in names:
            link = group.get(name, getlink=True)
            item = group[name] if isinstance(link, h5py.HardLink) else None
            if isinstance(item, h5py.Group):
                waiting.append((f"{path}{name}/", item))
            else:
                yield f"{path}{name}", item


def _place(path: str) -> tuple[str | None, str | None]:
    """Returns the layer and the part of it, "kernel" or "bias", that a path is for."""
    *groups, leaf = path.split("/")
    if groups[-1:] == ["vars"]:
        return _COUNTED.get("".join(groups[-2:-1])), _COUNTED_PARTS.get(leaf)
    layer = next((_NAMES[group] for group in groups if group in _NAMES), None)
    match = _LEAF.fullmatch(leaf)
    return layer, _PARTS[match[1]] if match else None


def _nbytes(path: str, dataset: Any) -> int:
    """Returns the size of a dataset that may be read without surprises."""
    import h5py

    # Before anything else: asking a virtual dataset for its shape opens other files.
    creation = dataset.id.get_create_plist()
    if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise ValueError(f"the numbers of {path} lie in other files")
    if creation.get_nfilters():
        # Keras never compresses, and HDF5 lets a chunk inflate beyond what it claims.
        raise ValueError(f"{path} is compressed; run h5repack -f NONE on the file")
    if dataset.shape is None:
        raise ValueError(f"{path} is empty")
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def _refuse_theano(name: str, kernel: np.ndarray) -> None:
    if name == "conv1_1" and kernel.shape[1:] == (3, 3, 3) and kernel.shape[0] != 3:
        raise ValueError(
            f'conv1_1 has shape {kernel.shape}: it is a file of "th kernels", in '
            'Theano\'s order; pass one of "tf kernels"'
        )
