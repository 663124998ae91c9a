"""Weight files of every kind in, files of our own out.

A file is known by its content, never by the ending of its name. Every array is
compared with the network's own parameters, and what does not fit is reported at once.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fcn_jax.models.fcn import FCN, fields_of
from fcn_jax.models.vgg import VGG16
from fcn_jax.weights import caffemodel, keras_h5, npy, pth, safetensors_file
from fcn_jax.weights.download import fetch
from fcn_jax.weights.layers import WeightFile, network_of, shapes_of

_log = logging.getLogger("fcn_jax")

# Kinds by their first bytes; more particular ones first.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6
_KINDS = (
    (_TORCH_MAGIC, "torch"),
    (b"PK\x03\x04", "torch"),
    (b"\x93NUMPY", "npy"),
    (b"\x80", "npy"),  # a pickle without the header
    (b"\x89HDF\r\n\x1a\n", "keras"),
    # A NetParameter begins with its name, an input or a layer.
    (b"\x0a", "caffemodel"),
    (b"\x12", "caffemodel"),
    (b"\x1a", "caffemodel"),
    (b"\xa2\x06", "caffemodel"),
)

# What people have in place of a weight file.
_NOT_WEIGHTS = (
    (b"<", "looks like an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"name:", "looks like a .prototxt, a network's definition without its weights"),
    (b"", "is of no kind known here"),
)
_WAY_OUT = "pass a .caffemodel, .npy, .pth, .h5 or .safetensors file"

# A layer that VGG-16 lacks, by its names: the others would fit.
_VGG19 = re.compile(r"\b(conv3_4|block3_conv4|features\.34)\b")
RUN_FILE = "model.safetensors"  # Where a run directory has its best network.


class Weights(NamedTuple):
    """What a file holds, compared with the network.

    Attributes:
        model: the network, or None for a VGG-16.
        params: of the model, float32 numpy arrays; of a VGG-16 ``{"body": ...}`` alone,
            without fc6 and fc7 where the file has none, with the classifier fc8 where
            it has one.
        mean_rgb: what the network subtracts from RGB in [0, 255] before conv1_1.
        source: the kind of file and its layout.
        class_names: one for each class, or none.
    """

    model: FCN | None
    params: dict
    mean_rgb: tuple[float, float, float]
    source: str
    class_names: tuple[str, ...] = ()


def load(path: str | Path) -> tuple[FCN, dict]:
    """Loads a network.

    Args:
        path: a file of `save`; a run directory, for the best network of the run; a
            released FCN as ``.caffemodel``, or pytorch-fcn's copy as ``.pth``; or the
            name of a published one, such as "fcn8s-heavy-pascal", which is downloaded
            once.
    Returns:
        ``(model, params)``, the parameters as float32 JAX arrays.
    Raises:
        ValueError: if the file holds no FCN, is damaged, or comes from a later version;
            or if its arrays do not fit its network, naming each.
        OSError: if a download fails.
    """
    weights = read_network(path)
    return weights.model, weights.params


def read_network(path: str | Path) -> Weights:
    """Reads a network as `load` does, with all that `read` tells of it."""
    weights = read(path)
    if weights.model is None:
        raise ValueError(
            f"{path} holds a VGG-16 ({weights.source}) and no score layers; use "
            "fcn_jax.load_vgg16"
        )
    return weights._replace(params=jax.tree.map(jnp.asarray, weights.params))


def load_vgg16(path: str | Path) -> dict:
    """Loads a VGG-16 body, for ``params["body"]``.

    Args:
        path: a ``.caffemodel``, caffe-tensorflow's ``.npy``, Keras's ``.h5``,
            torchvision's or timm's ``.pth`` or ``.safetensors``, any file that `load`
            takes, for its body; or the name of a published one: "vgg16", which is
            downloaded once.
    Returns:
        The layers as `read` gives them, as JAX arrays.
    Raises:
        ValueError, OSError: as `load`.
    """
    return jax.tree.map(jnp.asarray, read(path).params["body"])


def read(path: str | Path) -> Weights:
    """Reads a weight file of any known kind, of any width.

    A VGG-16 without fully connected layers is taken, with a warning to the log; fc8
    may have any number of classes.

    Args:
        path: as `load` and `load_vgg16` have it.
    Returns:
        The weights, for RGB input.
    Raises:
        ValueError: if the file is of another kind or damaged; or if layers are missing,
            of the wrong shape or not finite, naming each.
        OSError: if a download fails.
    """
    return compare(path, read_content(path))


def compare(path: str | Path, content: WeightFile) -> Weights:
    """Compares the content of a file with the network that it makes.

    Args:
        path: of the file, for errors.
        content: of `read_content`.
    Returns, Raises: as `read`.
    """
    if vgg19 := next(filter(_VGG19.search, content.unused), None):
        raise ValueError(f"{path} is a VGG-19: it has {vgg19}; pass a VGG-16")
    try:
        model = network_of(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no network: {error}") from error
    if content.unused:
        _log.info("%s: not used: %s", path, ", ".join(content.unused))
    params = _params(path, model, content)
    if model is None and "fc6" not in params["body"]:
        _log.warning("%s has no fc6 and fc7: they start at random", path)
    return Weights(model, params, content.mean_rgb, content.source, content.class_names)


def read_content(path: str | Path) -> WeightFile:
    """Reads the layers of a file, whatever network they make.

    Args:
        path: as `read`.
    Raises:
        ValueError: if the file is of another kind or damaged.
        OSError: if a download fails.
    """
    path = _file(path)
    return _READERS[sniff(path)](path)


def save(
    path: str | Path, model: FCN, params: Mapping, class_names: Sequence[str] = ()
) -> None:
    """Saves a network as safetensors, with its fields and class names as metadata.

    The arrays are named ``body/conv1_1/kernel`` and so on, float32. The file appears
    at once, whole; an interrupted save leaves what was there before. Missing parent
    directories are made.

    Args:
        path: the file to write.
        model: the network; its ``dtype`` is not kept, `load` computes in float32.
        params: its parameters; arrays that the network does not use are left out.
        class_names: one for each class, or none.
    Raises:
        ValueError: if ``params`` do not fit ``model`` or hold NaN or infinity, or if
            ``class_names`` are not one for each class.
    """
    if class_names and len(class_names) != model.num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names for {model.num_classes} "
            "classes; pass one for each class, or none"
        )
    arrays = arrays_of(model, params)
    fields = {"model": fields_of(model), "class_names": list(class_names)}
    safetensors_file.write(path, arrays, fields)


def arrays_of(model: FCN, params: Mapping) -> dict[str, np.ndarray]:
    """The parameters of a network by their path such as "body/conv1_1/kernel".

    Args:
        model: the network.
        params: its parameters; arrays that the network does not use are left out.
    Returns:
        {path: float32 array}.
    Raises:
        ValueError: if arrays are missing, of another shape or not finite, naming each.
    """
    return _fit("params", flatten_dict(params, sep="/"), shapes_of(model))


def save_weights(path: str | Path, weights: Weights) -> None:
    """Saves what `read` gave, a network or a VGG-16, as `save` does."""
    if weights.model:
        save(path, weights.model, weights.params, weights.class_names)
    else:
        arrays = flatten_dict(weights.params, sep="/")
        fields = {"mean_rgb": weights.mean_rgb, "source": weights.source}
        safetensors_file.write(path, arrays, fields)


def _file(path: str | Path) -> Path:
    """The file that a path or a name stands for."""
    if not Path(path).is_dir():
        return fetch(path)
    run = Path(path)
    if not (run / RUN_FILE).exists():
        raise ValueError(
            f"{run / RUN_FILE} is not there: the run has not been evaluated yet, or "
            f"{run} is no run directory"
        )
    return run / RUN_FILE


def sniff(path: str | Path) -> str:
    """Returns "caffemodel", "keras", "npy", "safetensors" or "torch".

    Raises:
        ValueError: if the file is of none of these kinds, telling what it is instead.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty; {_WAY_OUT}")
    stranger = next(
        what for start, what in _NOT_WEIGHTS if head.lstrip().startswith(start)
    )
    if stranger is _NOT_WEIGHTS[-1][1]:
        if head[8:9] == b"{":  # behind the length of its header
            return "safetensors"
        for start, kind in _KINDS:
            if head.startswith(start):
                return kind
    raise ValueError(f"{path} {stranger}; {_WAY_OUT}")


_READERS: dict[str, Callable[[Path], WeightFile]] = {
    "caffemodel": caffemodel.read,
    "keras": keras_h5.read,
    "npy": npy.read,
    "safetensors": safetensors_file.read,
    "torch": pth.read,
}


def _params(path: str | Path, model: FCN | None, content: WeightFile) -> dict:
    """The parameters of a network, or of a VGG-16's body, that a file holds."""
    flat = flatten_dict(content.layers, sep="/")
    if model is None:
        body = _fit(path, flat, _body_shapes(flat))
        return {"body": unflatten_dict(body, sep="/")}
    shapes = shapes_of(model)
    placed = {name: name.split("/", 1)[1] for name in shapes}  # less body/ or head/
    arrays = {name: flat[key] for name, key in placed.items() if key in flat}
    return unflatten_dict(_fit(path, arrays, shapes), sep="/")


def _body_shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that a VGG-16 body must have, given what a file holds.

    The biases of conv1_1 and fc8 tell the width and the number of classes. Without any
    fully connected layer in the file, none is wanted.
    """
    none = np.empty(0)
    filters = arrays.get("conv1_1/bias", none).size or 64
    num_classes = arrays.get("fc8/bias", none).size
    shapes = shapes_of(VGG16(num_classes=num_classes, width=filters / 64))
    if not {"fc6/bias", "fc7/bias", "fc8/bias"} & arrays.keys():
        shapes = {k: shape for k, shape in shapes.items() if k.startswith("conv")}
    return shapes


def _fit(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Returns the arrays that are wanted, as float32, if each has its shape.

    Raises:
        ValueError: listing every array that is missing, of another shape or not finite.
    """
    fitted, problems = {}, []
    for name, shape in shapes.items():
        if name not in arrays:
            problems.append(f"{name} is missing, want {shape}")
        elif arrays[name].shape != shape:
            problems.append(f"{name} has shape {arrays[name].shape}, want {shape}")
        else:
            with np.errstate(over="ignore"):  # a float64 too large counts as infinite
                fitted[name] = np.ascontiguousarray(arrays[name], np.float32)
            if not np.isfinite(fitted[name]).all():
                problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise ValueError(f"{path} does not fit the network:\n" + "\n".join(problems))
    return fitted
