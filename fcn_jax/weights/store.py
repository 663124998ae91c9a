"""Which file is it, does it fit, and the files of our own.

A file is known by its content, never by the ending of its name. Every array is
compared with the network's own parameters, and what does not fit is reported at once.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy then knows the bfloat16 of safetensors files
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fcn_jax.files import replacing
from fcn_jax.models.fcn import FCN, fields_of
from fcn_jax.models.vgg import VGG16
from fcn_jax.weights import npy, torch

_log = logging.getLogger("fcn_jax")

RUN_FILE = "model.safetensors"  # Where a run directory has its best network.
_FORMAT = "fcn_jax"
_VERSION = "1"

# What people have in place of a weight file, by its first bytes.
_STRANGERS = (
    (b"<", "looks like an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"PK\x03\x04", "is a zip archive, such as PyTorch's .pth"),
    (b"\x89HDF", "is an HDF5 file, such as Keras's .h5"),
    (b"", "is of no kind known here"),
)


class Body(NamedTuple):
    """A VGG-16 body read from a file.

    Attributes:
        params: ``{"conv1_1": {"kernel": HWIO, "bias": [O]}, ...}``, float32 numpy
            arrays, without fc6 and fc7 where the file has none, with the classifier
            fc8 where it has one.
        mean_rgb: what the network subtracts from RGB in [0, 255] before conv1_1.
        source: the kind of file and the channel order in it.
    """

    params: dict
    mean_rgb: tuple[float, float, float]
    source: str


def load_vgg16(path: str | Path) -> dict:
    """Returns the parameters of `read_vgg16` as JAX arrays, for ``params["body"]``."""
    return jax.tree.map(jnp.asarray, read_vgg16(path).params)


def read_vgg16(path: str | Path) -> Body:
    """Reads a VGG-16 body from a file of any known kind, of any width.

    The kinds are caffe-tensorflow's ``.npy``, torchvision's or timm's
    ``.safetensors`` and the files of `save`. A file without fully connected layers
    is taken, with a warning to the log; fc8 may have any number of classes.

    Args:
        path: the file.
    Returns:
        The body, for RGB input.
    Raises:
        ValueError: if the file is of another kind or damaged; or if layers are missing,
            of the wrong shape or not finite, naming each.
    """
    if _container(path) == "npy":
        layers, mean_rgb = npy.read(path)
        source = "caffe-tensorflow .npy, BGR"
    else:
        with _open_safetensors(path) as file:
            metadata, tensors = file.metadata() or {}, _tensors(path, file)
        if metadata.get("format") == _FORMAT:
            model, params = _network(path, metadata, tensors)
            return Body(params["body"], model.mean_rgb, "fcn_jax .safetensors, RGB")
        layers, mean_rgb = torch.from_state_dict(tensors)
        source = "PyTorch .safetensors, RGB"
    arrays = flatten_dict(layers, sep="/")
    params = unflatten_dict(_fit(path, arrays, _body_shapes(arrays)), sep="/")
    if "fc6" not in params:
        _log.warning("%s has no fc6 and fc7: they start at random", path)
    return Body(params, mean_rgb, source)


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
    arrays = _fit("params", flatten_dict(params, sep="/"), _shapes(model))
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": json.dumps(fields_of(model)),
        "class_names": json.dumps(list(class_names)),
    }
    with replacing(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(arrays, unfinished, metadata)
        unfinished.chmod(mode)  # save_file would keep others from reading it


def load(path: str | Path) -> tuple[FCN, dict]:
    """Loads a network from a file of `save` or from a run directory.

    Args:
        path: the file, or a run directory, for the best network of the run.
    Returns:
        ``(model, params)``, the parameters as float32 JAX arrays.
    Raises:
        ValueError: if the file is not one of `save`, is damaged, or comes from a later
            version; or if its arrays do not fit its network, naming each.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RUN_FILE
        if not path.exists():
            raise ValueError(
                f"{path} is not there: the run has not been evaluated yet, or "
                f"{path.parent} is no run directory"
            )
    with _open_ours(path) as file:
        model, params = _network(path, file.metadata(), _tensors(path, file))
    return model, jax.tree.map(jnp.asarray, params)


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Returns the class names in a file of `save`, in the order of their labels.

    Raises:
        ValueError: as for `load`.
    """
    with _open_ours(path) as file:
        return tuple(_json(path, file.metadata(), "class_names"))


def _container(path: str | Path) -> str:
    """Returns "npy" or "safetensors", from the first bytes of a file."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith((b"\x93NUMPY", b"\x80")):  # with its header, or a bare pickle
        return "npy"
    if head[8:9] == b"{":  # behind the length of its header
        return "safetensors"
    what = next(what for start, what in _STRANGERS if head.lstrip().startswith(start))
    raise ValueError(
        f"{path} {what if head else 'is empty'}; pass a .npy of caffe-tensorflow or a "
        ".safetensors file"
    )


@contextlib.contextmanager
def _open_safetensors(path: str | Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def _tensors(path: str | Path, file: safe_open) -> dict[str, np.ndarray]:
    try:
        return {name: file.get_tensor(name) for name in file.keys()}
    except (AttributeError, TypeError) as error:  # such as floats of 8 bits
        raise ValueError(f"{path} holds a type that numpy lacks: {error}") from error


@contextlib.contextmanager
def _open_ours(path: str | Path) -> Iterator[safe_open]:
    """Opens a file of `save`, or raises a ValueError that tells what else it is."""
    if _container(path) == "safetensors":
        with _open_safetensors(path) as file:
            if (file.metadata() or {}).get("format") == _FORMAT:
                yield file
                return
    raise ValueError(
        f"{path} was not written by fcn_jax.save; if it holds VGG-16, use "
        "fcn_jax.load_vgg16"
    )


def _network(
    path: str | Path, metadata: dict[str, str], tensors: dict[str, np.ndarray]
) -> tuple[FCN, dict]:
    """Returns the model and the parameters in the content of a file of `save`."""
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this fcn_jax reads "
            f"version {_VERSION}: install the version that wrote it"
        )
    fields = _json(path, metadata, "model")
    try:
        # JSON has no tuples, and a Linen module must have no lists: they do not hash.
        model = FCN(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        )
        shapes = _shapes(model)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} describes a network that this fcn_jax does not know: {error}"
        ) from error
    return model, unflatten_dict(_fit(path, tensors, shapes), sep="/")


def _json(path: str | Path, metadata: dict[str, str], key: str) -> object:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata: {key}") from error


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a network, by its name in a file."""
    image = jnp.zeros([1, 1, 1, 3])
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def _body_shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that a VGG-16 body must have, given what a file holds.

    The biases of conv1_1 and fc8 tell the width and the number of classes. Without any
    fully connected layer in the file, none is wanted.
    """
    none = np.empty(0)
    filters = arrays.get("conv1_1/bias", none).size or 64
    num_classes = arrays.get("fc8/bias", none).size
    shapes = _shapes(VGG16(num_classes=num_classes, width=filters / 64))
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
