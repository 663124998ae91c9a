"""Read and write safetensors files: those of fcn_jax, and PyTorch's state dicts.

Files of fcn_jax hold float32 arrays by their path, such as ``body/conv1_1/kernel``. The
metadata are JSON: of a network "model" (the fields of `fcn_jax.FCN`), "class_names",
"palette", "size", "channels" and "shown", and perhaps its "metrics"; or of a VGG-16
alone "mean_rgb" and "source".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.files import reading
from fcn_jax.models.fcn import FCN, fields_of
from fcn_jax.network import Network
from fcn_jax.weights import tensors
from fcn_jax.weights.layers import WeightFile, is_float
from fcn_jax.weights.torch_names import from_state_dict

_FORMAT = "fcn_jax"
_VERSION = "2"
_WITHOUT_DIGEST = "1"  # The version of older files.


def write(path: str | Path, arrays: dict[str, np.ndarray], fields: dict) -> None:
    """Write arrays by their path and metadata for JSON, whole or not at all.

    Missing parent directories are made.

    Raises:
        WriteError: if the file cannot be written.
    """
    metadata = {"format": _FORMAT, "version": _VERSION}
    metadata |= {name: json.dumps(value) for name, value in fields.items()}
    tensors.write(path, arrays, metadata)


def read(path: str | Path) -> WeightFile:
    """Read a safetensors file of fcn_jax or of PyTorch's names.

    Raises:
        ValueError: if the file or its metadata are damaged, or of a later version.
    """
    metadata = tensors.read_metadata(path)
    if metadata.get("format") != _FORMAT:
        return from_state_dict(tensors.read(path)[0])
    if metadata.get("version") not in (_VERSION, _WITHOUT_DIGEST):
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this fcn_jax reads "
            f"version {_VERSION}: install the version that wrote it"
        )
    has_digest = metadata["version"] != _WITHOUT_DIGEST
    arrays, metadata = tensors.read(path, checked=has_digest)
    layers, unused = {}, []
    for name, tensor in arrays.items():
        match name.split("/"):
            case ["body" | "head", layer, part] if is_float(tensor):
                layers.setdefault(layer, {})[part] = tensor
            case _:
                unused.append(name)
    if "model" not in metadata:
        model = _model(path, {"mean": _json(path, metadata, "mean_rgb")})
        source = str(_json(path, metadata, "source")).removeprefix("fcn_jax, from ")
        source = f"fcn_jax, from {source}"
        return WeightFile(layers, model.mean, source, tuple(unused))
    net = _network(path, metadata)
    described = net.class_names, net.palette, net.size, net.channels, net.shown
    mean, source = net.model.mean[:3], "fcn_jax, RGB, H, W, I, O"
    return WeightFile(layers, mean, source, tuple(unused), net.model, *described)


def read_outline(path: str | Path) -> tuple[Network, dict[str, tuple[int, ...]]]:
    """Return the network that a file describes, without parameters, and their shapes.

    Raises:
        ValueError: if the file is damaged, or `write` did not write it.
        OSError: if it cannot be read.
    """
    metadata, shapes = tensors.read_metadata(path), tensors.read_shapes(path)
    return _network(path, metadata), shapes


def read_metrics(path: str | Path) -> dict[str, Any] | None:
    """Return the metrics that were saved with a network, or None without any.

    Raises:
        ValueError: if the file is damaged, or `write` did not write it.
        OSError: if it cannot be read.
    """
    with reading(path):
        metadata = tensors.read_metadata(path)
        tensors.check_digest(path, metadata)
    return json.loads(metadata.get("metrics", "null"))


def _network(path: str | Path, metadata: dict[str, str]) -> Network:
    """Return the network that the metadata describe, without parameters."""
    model = _model(path, _json(path, metadata, "model", dict))
    older = {"palette": "[]", "size": "[]", "channels": "[]", "shown": "[0, 1, 2]"}
    metadata = older | metadata  # Older files lack these.
    names = ("class_names", *older)
    fields = {name: _json(path, metadata, name, list) for name in names}
    try:
        return Network({}, model, **fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has damaged metadata: {str(error):.300}") from error


def _model(path: str | Path, fields: dict) -> FCN:
    """Return the FCN with these fields of JSON, whose values may be anything."""
    if "mean_rgb" in fields and "mean" not in fields:  # Its name in older files.
        fields = {"mean": fields["mean_rgb"]} | fields
        del fields["mean_rgb"]
    try:
        if unknown := fields.keys() - fields_of(FCN()).keys():
            raise ValueError(f"it has the fields {', '.join(sorted(unknown))}")
        # JSON has no tuples, and a Linen module must have no lists: they do not hash.
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return FCN(**fields)
    except ValueError as error:
        raise ValueError(
            f"{path} describes a network that this fcn_jax does not know: "
            f"{str(error):.300}"
        ) from error


def _json(path: str | Path, metadata: dict, key: str, kind: type = object) -> Any:
    """Return an entry of the metadata, whose JSON must be of a kind."""
    try:
        value = json.loads(metadata[key])
        if not isinstance(value, kind):
            raise ValueError(f"it is not a {kind.__name__}")
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata: {key}") from error
    return value
