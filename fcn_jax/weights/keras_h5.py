"""Read VGG-16 from Keras's ``.h5``, without Keras.

The file is HDF5: groups of datasets, and links between them. A link or a dataset may
point to other files on the machine; those are never opened.

Reference: ``keras.applications.VGG16``, which has Caffe's weights, and Keras's
``keras.src.saving`` with its ``legacy_h5_format``.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import BODY, WeightFile, check_claim, from_hwc, naming_file

MAGIC = b"\x89HDF\r\n\x1a\n"
_CONVOLUTIONS, _DENSE = BODY[:-3], BODY[-3:]
_NAMES = {f"block{name[4]}_conv{name[6]}": name for name in _CONVOLUTIONS}
_NAMES |= {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
_PARTS = {"kernel": "kernel", "W": "kernel", "bias": "bias", "b": "bias"}
_LEAF = re.compile(r"(?:.*_)?(kernel|W|bias|b)(?:_\d+)?(?::\d+)?")  # fc1_W_1:0
# Keras 3 drops the names of layers and counts each kind: conv2d, conv2d_1, ...
_COUNTED = {
    f"{kind}_{number}" if number else kind: name
    for kind, names in (("conv2d", _CONVOLUTIONS), ("dense", _DENSE))
    for number, name in enumerate(names)
}
_COUNTED_PARTS = {"0": "kernel", "1": "bias"}
# Keras nests to a depth of 4, and a VGG-16 with its optimizer has 400 links. HDF5 takes
# 17,000 bytes for each open dataset.
_MAX_LINKS, _MAX_DEPTH, _MAX_PATH = 2_000, 10, 1_000
# Many links may share one long name, and HDF5 lists all names of a group at once. So
# each link counts as all the names of its group: 400 links of 30 bytes as 5 million.
_MAX_NAMES = 2**24


def read(path: str | Path) -> WeightFile:
    """Read the VGG-16 of Keras applications, weights alone or a whole model.

    A layer without exactly one kernel and one bias is left out, with its paths in
    ``unused``. A "notop" file has no dense layers.

    Raises:
        ValueError: if h5py is not installed; or if the file is damaged, has Theano's
            kernels, is compressed, keeps its numbers in other files, or claims larger
            arrays than its size allows.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"{path} is HDF5, and h5py is not installed: pip install 'fcn-jax[keras]'"
        ) from error
    size = Path(path).stat().st_size
    with (
        naming_file(path, "Keras .h5"),
        h5py.File(path, "r", rdcc_nbytes=0) as file,  # A cache would fill with chunks.
    ):
        layers, unused = _layers(file, size)
    return WeightFile(layers, VGG_MEAN_RGB, "Keras .h5, BGR, H, W, I, O", tuple(unused))


def _layers(file: Any, size: int) -> tuple[dict, list[str]]:
    """Return the layers of a file of ``size`` bytes, and the paths of all else."""
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    unused: list[str] = []
    for path, dataset in _datasets(file, "", Counter(), Counter()):
        place = _place(path)
        if place and dataset is not None and dataset.dtype.kind == "f":
            found[place][path] = dataset
        else:
            unused.append(path)
    layers, claimed = {}, 0
    for name in BODY:
        parts = {part: found[name, part] for part in ("kernel", "bias")}
        if any(len(datasets) != 1 for datasets in parts.values()):
            unused += [path for datasets in parts.values() for path in datasets]
            continue
        layers[name] = {}
        for part, datasets in parts.items():
            [(path, dataset)] = datasets.items()
            claimed += _checked_size(path, dataset)
            # Some numbers are never written, or one dataset has many names.
            check_claim("arrays", claimed, size)
            layers[name][part] = np.asarray(dataset[()])
        kernel = layers[name]["kernel"]
        if name == "conv1_1" and kernel.shape[1:] == (3, 3, 3) and len(kernel) != 3:
            raise ValueError(
                f'conv1_1 has shape {kernel.shape}: it is a file of "th kernels", in '
                'Theano\'s order; pass one of "tf kernels"'
            )
        layers[name]["kernel"] = from_hwc(name, kernel)
    return layers, sorted(unused)


def _datasets(
    group: Any, path: str, links: Counter, names_sizes: Counter
) -> Iterator[tuple[str, Any]]:
    """Yield the path and the dataset of each link in a group whose path ends in "/".

    Soft and external links are not followed: they are yielded with None. ``links``
    counts those of each group that was visited, by its address, and ``names_sizes``
    the bytes that their names may take.
    """
    import h5py

    info = h5py.h5o.get_info(group.id)
    if info.addr in links:  # A group may contain itself.
        return
    links[info.addr] = len(group)
    names_sizes[info.addr] = len(group) * info.meta_size.obj.heap_size
    if links.total() > _MAX_LINKS or path.count("/") > _MAX_DEPTH:
        raise ValueError(
            f"it has more than {_MAX_LINKS:,} links, or groups deeper than {_MAX_DEPTH}"
        )
    if names_sizes.total() > _MAX_NAMES:
        raise ValueError("its groups have too many long names")
    names = list(group)
    if not path and "model_weights" in names:
        # In a whole model, the optimizer's datasets have the same names.
        names = ["model_weights"]
    for name in names:
        if len(path) + len(name) > _MAX_PATH:
            raise ValueError(f"a path has more than {_MAX_PATH:,} characters")
        if "/" in name:  # h5py would take it for a path, which may leave the file.
            raise ValueError(f"the name {name!r} has a slash")
        link = group.get(name, getlink=True)
        item = group[name] if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{path}{name}/", links, names_sizes)
        else:
            yield f"{path}{name}", item if isinstance(item, h5py.Dataset) else None


def _place(path: str) -> tuple[str, str] | None:
    """Return the layer and its part, "kernel" or "bias", that a dataset is for."""
    *groups, leaf = path.split("/")
    if groups[-1:] == ["vars"]:
        layer, part = _COUNTED.get("".join(groups[-2:-1])), _COUNTED_PARTS.get(leaf)
    else:
        layer = next((_NAMES[group] for group in groups if group in _NAMES), None)
        match = _LEAF.fullmatch(leaf)
        part = _PARTS[match[1]] if match else None
    return (layer, part) if layer and part else None


def _checked_size(path: str, dataset: Any) -> int:
    """Return the bytes of a dataset; raise ValueError if it cannot be read safely."""
    # First of all: asking a virtual dataset for its shape opens other files.
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"the numbers of {path} lie in other files")
    if dataset.id.get_create_plist().get_nfilters():
        # Keras never compresses, and a small HDF5 chunk may inflate without limit.
        raise ValueError(f"{path} is compressed; run h5repack -f NONE on the file")
    if dataset.shape is None:
        raise ValueError(f"{path} is empty")
    return math.prod(dataset.shape) * dataset.dtype.itemsize
