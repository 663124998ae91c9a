"""Files of safetensors: our own, and PyTorch's weights in that form.

Ours hold arrays named as in the parameters, ``body/conv1_1/kernel``, all float32, and
what belongs to them as JSON in the metadata: "model", the fields of `fcn_jax.FCN`, and
"class_names"; or of a VGG-16 alone, "mean_rgb" and "source".
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy then knows the bfloat16 of safetensors files
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fcn_jax.files import replacing
from fcn_jax.models.fcn import FCN
from fcn_jax.weights.layers import WeightFile, shapes_of
from fcn_jax.weights.torch_names import from_state_dict

_FORMAT = "fcn_jax"
_VERSION = "1"


def write(path: str | Path, arrays: dict[str, np.ndarray], fields: dict) -> None:
    """Writes a file of our own, whole or not at all.

    Args:
        path: of the file; missing parent directories are made.
        arrays: by their path in the parameters.
        fields: of the metadata, ready for JSON.
    """
    metadata = {"format": _FORMAT, "version": _VERSION}
    metadata |= {name: json.dumps(value) for name, value in fields.items()}
    with replacing(path) as unfinished:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(arrays, unfinished, metadata)
        unfinished.chmod(mode)  # save_file would keep others from reading it


def read(path: str | Path) -> WeightFile:
    """Reads a safetensors file, of our own or of PyTorch's names.

    Args:
        path: the file.
    Raises:
        ValueError: if the file or its metadata are damaged, or of a later version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    except (AttributeError, TypeError) as error:  # such as floats of 8 bits
        raise ValueError(f"{path} holds a type that numpy lacks: {error}") from error
    if metadata.get("format") != _FORMAT:
        return from_state_dict(tensors)
    if metadata.get("version") != _VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this fcn_jax reads "
            f"version {_VERSION}: install the version that wrote it"
        )
    layers, unused = _layers(tensors)
    if "model" not in metadata:
        mean_rgb = _mean(path, _json(path, metadata, "mean_rgb"))
        source = str(_json(path, metadata, "source")).removeprefix("fcn_jax, from ")
        return WeightFile(layers, mean_rgb, f"fcn_jax, from {source}", unused)
    model = _model(path, _json(path, metadata, "model"))
    names = _json(path, metadata, "class_names")
    if not isinstance(names, list) or len(names) not in (0, model.num_classes):
        raise ValueError(f"{path} has damaged metadata: class_names")
    return WeightFile(
        layers,
        model.mean_rgb,
        "fcn_jax, RGB, H, W, I, O",
        unused,
        model,
        tuple(map(str, names)),
    )


def _layers(
    tensors: dict[str, np.ndarray],
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[str, ...]]:
    """The layers of the body and of the head, and the names of other arrays."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    unused = []
    for name, tensor in tensors.items():
        match name.split("/"):
            case ["body" | "head", layer, part]:
                layers.setdefault(layer, {})[part] = tensor
            case _:
                unused.append(name)
    return layers, tuple(unused)


def _model(path: str | Path, fields: Any) -> FCN:
    try:
        # JSON has no tuples, and a Linen module must have no lists: they do not hash.
        model = FCN(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        )
        shapes_of(model)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} describes a network that this fcn_jax does not know: {error}"
        ) from error
    return model


def _mean(path: str | Path, mean: Any) -> tuple[float, float, float]:
    match mean:
        case [float(), float(), float()] if all(map(math.isfinite, mean)):
            return tuple(mean)
    raise ValueError(f"{path} has damaged metadata: mean_rgb")


def _json(path: str | Path, metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata: {key}") from error
