"""Load and save networks and VGG-16 weights.

A file is known by its content, never by its name. Every array is compared with the
network, and everything that does not fit is reported at once.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fcn_jax.data.shorten import shorten
from fcn_jax.files import reading
from fcn_jax.models.fcn import fields_of
from fcn_jax.models.vgg import VGG16
from fcn_jax.network import Network, VGG16Weights, as_network
from fcn_jax.weights import caffemodel, keras_h5, npy, pth, safetensors_file
from fcn_jax.weights.download import fetch
from fcn_jax.weights.layers import WeightFile, network_of, shapes_of

_log = logging.getLogger("fcn_jax")

RUN_FILE = "model.safetensors"  # The best network in a run directory.

# Readers by the first bytes of their files; the first match counts.
_READERS = (
    ((pth.LEGACY_MAGIC, pth.ZIP_MAGIC), pth.read),
    ((npy.MAGIC, b"\x80"), npy.read),  # b"\x80" begins a pickle without the header.
    (keras_h5.MAGIC, keras_h5.read),
    # A NetParameter begins with its name, an input or a layer.
    ((b"\x0a", b"\x12", b"\x1a", b"\xa2\x06"), caffemodel.read),
)
# What people have in place of a weight file.
_NOT_WEIGHTS = (
    (b"<", "looks like an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"name:", "looks like a .prototxt, a network's definition without its weights"),
)
_WAY_OUT = "pass a .caffemodel, .npy, .pth, .h5 or .safetensors file"
# A layer that VGG-16 lacks, by its names: the others would fit.
_VGG19 = re.compile(r"\b(conv3_4|block3_conv4|features\.34)\b")


def load(path: str | Path) -> Network:
    """Load a network: float32 JAX arrays, class names, palette and input size.

    Args:
        path: a file of `save`; a run directory, for the best network of the run; a
            released FCN as ``.caffemodel``, or pytorch-fcn's copy as ``.pth``; or the
            name of a published one, such as "fcn8s-heavy-pascal", which is downloaded
            once.

    Raises:
        ValueError: if the file holds no FCN, is damaged, or comes from a later version;
            or if arrays are missing, of the wrong shape or not finite, naming each.
        OSError: if a download fails.

    Example::

        net = fcn_jax.load("runs/camvid")
        labels = fcn_jax.predict(net, "photo.jpg")
    """
    net = read(path)
    if isinstance(net, VGG16Weights):
        raise ValueError(
            f"{path} holds a VGG-16 ({net.source}) and no score layers: use "
            "fcn_jax.load_vgg16, or fcn_jax.init(key, vgg16=...)"
        )
    return jax.device_put(net)


def load_outline(path: str | Path) -> Network:
    """Return the network that `load` loads from a file of `save`, without its arrays.

    Only the header is read.

    Args:
        path: the file or a run directory.

    Returns:
        The network; its params are `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: if it is another file, or its arrays do not fit the network.
        OSError: if it cannot be read.
    """
    file = Path(path) / RUN_FILE if Path(path).is_dir() else Path(path)
    net, found = safetensors_file.read_outline(file)
    wanted = shapes_of(net.model)
    # A short file may claim to hold a network that would fill the memory.
    if any(found.get(name) != shape for name, shape in wanted.items()):
        raise ValueError(f"{path} does not fit the network")
    params = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in wanted.items()}
    return net.replace(params=unflatten_dict(params, sep="/"))


def load_vgg16(path: str | Path) -> VGG16Weights:
    """Load a VGG-16 of any width and the mean that belongs to it.

    The arrays are float32 JAX arrays, for ``fcn_jax.init(key, vgg16=...)``. A file
    without fully connected layers is taken, with a warning to the log.

    Args:
        path: a ``.caffemodel``, caffe-tensorflow's ``.npy``, Keras's ``.h5``,
            torchvision's or timm's ``.pth`` or ``.safetensors``; any file that `load`
            takes, for its body; or the name of a published one, such as "vgg16", which
            is downloaded once.

    Raises:
        ValueError, OSError: as `load`; also for a network with more channels than RGB
            or with a ``scale``, which a VGG-16 lacks.
    """
    weights = read(path)
    if isinstance(weights, Network):
        model = weights.model
        if model.in_channels != 3 or any(factor != 1 for factor in model.scale):
            raise ValueError(
                f"{path} holds a network of {model.in_channels} input channels with "
                f"scale = {model.scale}, and a VGG-16 takes RGB without a scale: use "
                "fcn_jax.load"
            )
        weights = VGG16Weights(weights.params["body"], model.mean)
    return jax.device_put(weights)


def read(path: str | Path) -> Network | VGG16Weights:
    """Read what `load` or `load_vgg16` loads, as numpy arrays; raise as they do."""
    return check_fit(path, read_file(path))


def read_file(path: str | Path) -> WeightFile:
    """Read the layers of a file, whatever network they make; raise as `load` does."""
    file = Path(path) / RUN_FILE if Path(path).is_dir() else fetch(path)
    if not file.exists():
        raise ValueError(
            f"{file} is not there: the run has not been evaluated yet, or {path} is "
            "not a run directory"
        )
    with reading(file):
        return _reader(file)(file)


def check_fit(path: str | Path, file: WeightFile) -> Network | VGG16Weights:
    """Return the weights of a file that `read_file` read, if each fits the network.

    Raises:
        ValueError: if layers are missing, of the wrong shape or not finite; names each.
    """
    if vgg19 := next(filter(_VGG19.search, file.unused), None):
        raise ValueError(f"{path} is a VGG-19: it has {vgg19}; pass a VGG-16")
    model = network_of(path, file)
    if file.unused:
        _log.info("%s: not used: %s", path, ", ".join(shorten(file.unused, 100)))
    arrays = flatten_dict(file.layers, sep="/")
    if model is None:
        fitted = _fit(path, arrays, _body_shapes(path, arrays))
        layers = unflatten_dict(_owned(fitted), sep="/")
        if "fc6" not in layers:
            _log.warning("%s has no fc6 and fc7: they start at random", path)
        return VGG16Weights(layers, file.mean_rgb, file.source)
    # No layer has a name in both parts, so only the wanted ones are taken.
    placed = {f"{part}/{k}": a for k, a in arrays.items() for part in ("body", "head")}
    fitted = _fit(path, placed, shapes_of(model))
    params = unflatten_dict(_owned(fitted), sep="/")
    described = file.class_names, file.palette, file.size, file.channels, file.shown
    return Network(params, model, *described)


def save(
    path: str | Path,
    net: Network | VGG16Weights,
    *,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Save a network as safetensors, with all that belongs to it as metadata.

    The arrays are float32, named ``body/conv1_1/kernel`` and so on. The file carries
    its own digest, so `load` refuses it if a bit of it has changed. An interrupted save
    leaves what was there before. Missing parent directories are made.

    Args:
        path: the file to write.
        net: the network, or the weights of a VGG-16. Arrays that a network does not use
            are left out, and so is its ``dtype``: `load` computes in float32.
        metrics: figures of the network that go with it, as JSON has them.

    Raises:
        ValueError: if the parameters do not fit the model or hold NaN or infinity.
        OSError: if the file cannot be written.
    """
    if isinstance(net, VGG16Weights):
        arrays = flatten_dict({"body": jax.tree.map(np.float32, net.params)}, sep="/")
        fields = {"mean_rgb": net.mean_rgb, "source": net.source}
    else:
        arrays = arrays_of(net)
        fields = {"model": fields_of(net.model), "class_names": net.class_names}
        fields |= {"palette": net.palette, "size": net.size}
        fields |= {"channels": net.channels, "shown": net.shown}
    fields |= {"metrics": metrics} if metrics else {}
    safetensors_file.write(path, arrays, fields)


def arrays_of(net: Network) -> dict[str, np.ndarray]:
    """Return the parameters that a network uses, float32, by paths as in `save`.

    Raises:
        ValueError: if ``net`` is not a `Network`; or if arrays are missing, of another
            shape or not finite, naming each.
    """
    net = as_network(net)
    return _fit("params", flatten_dict(net.params, sep="/"), shapes_of(net.model))


def _reader(path: Path) -> Callable[[Path], WeightFile]:
    """Return the reader for a file by its first bytes; raise ValueError without one."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty; {_WAY_OUT}")
    for start, what in _NOT_WEIGHTS:
        if head.lstrip().startswith(start):
            raise ValueError(f"{path} {what}; {_WAY_OUT}")
    if head[8:9] == b"{":  # behind the length of its header
        return safetensors_file.read
    for start, read in _READERS:
        if head.startswith(start):
            return read
    raise ValueError(f"{path} is of no kind known here; {_WAY_OUT}")


def _body_shapes(
    path: str | Path, arrays: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a VGG-16 must have, given what a file holds."""
    none = np.empty(0)  # The biases tell the width and the number of classes.
    filters = arrays.get("conv1_1/bias", none).size or 64
    num_classes = arrays.get("fc8/bias", none).size
    try:
        shapes = shapes_of(VGG16(num_classes=num_classes, width=filters / 64))
    except ValueError as error:
        raise ValueError(f"{path} holds no VGG-16: {error}") from error
    if not {"fc6/bias", "fc7/bias", "fc8/bias"} & arrays.keys():  # "notop"
        shapes = {k: shape for k, shape in shapes.items() if k.startswith("conv")}
    return shapes


def _owned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays that no longer are views of a file, which may change."""
    return {k: a if a.flags.writeable else a.copy() for k, a in arrays.items()}


def _fit(path: object, arrays: Mapping, shapes: Mapping) -> dict[str, np.ndarray]:
    """Return the wanted arrays as float32; raise ValueError naming all that differ."""
    fitted, problems = {}, []
    for name, shape in shapes.items():
        if name not in arrays:
            problems.append(f"{name} is missing, want {shape}")
        elif arrays[name].shape != shape:
            problems.append(f"{name} has shape {arrays[name].shape}, want {shape}")
        else:
            with np.errstate(over="ignore"):  # a float64 too large counts as infinite
                fitted[name] = np.ascontiguousarray(arrays[name], np.float32)
            if not _is_finite(fitted[name]):
                problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise ValueError(f"{path} does not fit the network:\n" + "\n".join(problems))
    return fitted


def _is_finite(array: np.ndarray) -> bool:
    """Tell whether an array holds neither NaN nor infinity, in little memory."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.min()) and np.isfinite(array.max()))
