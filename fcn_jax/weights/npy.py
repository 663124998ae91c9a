"""Read VGG-16 from the ``.npy`` files of caffe-tensorflow, which are pickles.

The pickle is never run: `read_pickle` notes the calls that would make numpy arrays.
These notes become arrays over the bytes of the file, once their claims (dtype, shape)
are checked. Memory stays a small multiple of the file's size.

Reference: ``numpy.lib.format`` documents the header, ``numpy.ndarray.__reduce__`` and
``numpy.dtype.__reduce__`` the notes.
"""

import math
import re
from pathlib import Path

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import (
    BODY,
    WeightFile,
    check_claim,
    from_hwc,
    mapped,
    naming_file,
)
from fcn_jax.weights.pickle_reader import Call, as_dict, as_text, read_pickle

MAGIC = b"\x93NUMPY"
_OBJECT_HEADER = re.compile(rb"'descr': '\|O\d?'")
_FC_NAMES = {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}
_ADVICE = "only numpy arrays, dicts, lists, strings and numbers are read"
_MAX_OPCODES = 20_000  # VGG-16 takes about 1,000.
_MAX_SIDES = 32  # As in numpy 1; a product of many more would take forever.


def read(path: str | Path) -> WeightFile:
    """Read a caffe-tensorflow ``.npy`` file, or the bare pickle of one.

    Both layouts are read, ``{name: [kernel, bias]}`` and ``{name: {"weights": kernel,
    "biases": bias}}``, written by Python 2 or 3. Other entries are left unused. The
    arrays are views of the file where its layout allows: do not change it while they
    are in use.

    Raises:
        ValueError: if the file is damaged, holds no dictionary, claims larger arrays
            than its bytes make, or asks for anything but arrays and plain data.
    """
    layers, unused, claimed = {}, [], 0
    with open(path, "rb") as file, naming_file(path, ".npy of layers"):
        content = mapped(file)
        for name, entry in _entries(content).items():
            name = _FC_NAMES.get(name, name)
            if name in BODY and (layer := _layer(name, entry)):
                layers[name] = layer
                claimed += layer["kernel"].nbytes + layer["bias"].nbytes
            else:
                unused.append(name)
            # A pickle may name one array many times over.
            check_claim("arrays", claimed, len(content))
    source = "caffe-tensorflow .npy, BGR, H, W, I, O"
    return WeightFile(layers, VGG_MEAN_RGB, source, tuple(unused))


def _entries(content: memoryview) -> dict[str, object]:
    """Return the dictionary that the file holds, with its arrays as notes."""
    stop = 0
    if content[: len(MAGIC)] == MAGIC:
        # Version 1 counts the header's bytes in two bytes, later versions in four.
        start = 10 if content[6:7] == b"\x01" else 12
        stop = start + int.from_bytes(content[8:start], "little")
        header = content[start:stop]
        if not _OBJECT_HEADER.search(header):
            described = str(header[:100], "latin1").strip()
            raise ValueError(f"it is a plain array, not a dict of layers: {described}")
    root, _ = read_pickle(content, stop, advice=_ADVICE, max_opcodes=_MAX_OPCODES)
    root = _elements(root)
    if isinstance(root, list) and len(root) == 1:
        root = root[0]  # numpy saves a dictionary as an array of one object
    entries = as_dict(root)
    if not entries:
        raise ValueError("it holds no dict of layers")
    return entries


def _layer(name: str, entry: object) -> dict[str, np.ndarray] | None:
    """Return ``{"kernel", "bias"}`` of an entry in either layout, else None."""
    match as_dict(entry) or _elements(entry):
        case {"weights": kernel, "biases": bias} | [kernel, bias]:
            try:
                kernel, bias = from_hwc(name, _array(kernel)), _array(bias)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            return {"kernel": kernel, "bias": bias.reshape(-1)}  # some are [1, O]
    return None


def _elements(node: object) -> object:
    """Return the elements of an array of objects as a list; other nodes unchanged."""
    match node:
        case Call("numpy.core.multiarray._reconstruct", _, (_, _, _, _, list(items))):
            return items
    return node


def _array(note: object) -> np.ndarray:
    """Return the array that a note describes, over the bytes it carries."""
    match note:
        case Call(
            "numpy.core.multiarray._reconstruct", _, (_, shape, dtype, fortran, data)
        ):
            order = "F" if fortran else "C"
        case Call("numpy.core.numeric._frombuffer", (data, dtype, shape, order)):
            order = "F" if order == "F" else "C"
        case _:
            raise ValueError(f"a {type(note).__name__} stands in place of an array")
    match data:
        case Call("_codecs.encode", (str(text), "latin1")):  # Python 3, protocol 2
            data = text.encode("latin1")
    if not isinstance(data, bytes | memoryview):
        raise ValueError(f"an array's data is a {type(data).__name__}, not bytes")
    match dtype:
        case Call("numpy.dtype", (code, *_), (_, byte_order, *_)):
            dtype = as_text(byte_order) + as_text(code)
    if dtype not in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
        raise ValueError("an array's type is not float16, float32 or float64")
    if not (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_SIDES
        and all(type(side) is int and 0 < side <= len(data) for side in shape)
        and math.prod(shape) * np.dtype(dtype).itemsize == len(data)
    ):
        raise ValueError(f"an array of {len(data)} bytes claims another shape")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
