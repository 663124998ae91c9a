"""VGG-16 from the ``.npy`` files of caffe-tensorflow, which are pickles.

A pickle is a program, so it is never run here. ``pickletools`` splits it into opcodes;
those that build plain data are followed, and a call it asks for becomes a note
(`_Call`). The notes that describe a numpy array then become arrays over the bytes of
the file, once their claims (dtype, shape) are checked. Nothing the file names is
imported or called, and memory stays a small multiple of its size.

Reference: Python's ``pickletools`` documents the opcodes, ``numpy.lib.format`` the
header, ``numpy.ndarray.__reduce__`` and ``numpy.dtype.__reduce__`` the notes.
"""

import dataclasses
import itertools
import math
import mmap
import pickletools
import re
from pathlib import Path

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import BODY, WeightFile, from_hwc

_MAGIC = b"\x93NUMPY"
_OBJECT_HEADER = re.compile(rb"'descr': '\|O\d?'")
_FC_NAMES = {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}

_KNOWN_NAMES = frozenset(
    {
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
        "collections.OrderedDict",
    }
)

_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# What garbled opcodes cause in `_follow`; the last in pickletools, by a stray backslash
# where warnings are errors.
_GARBLED = (AttributeError, IndexError, KeyError, TypeError, DeprecationWarning)
# VGG-16 takes about 1,000. An opcode of one byte can make an object of 64, so without
# a limit a small file could fill the memory.
_MAX_OPCODES = 100_000


def read(path: str | Path) -> WeightFile:
    """Reads a caffe-tensorflow ``.npy`` file, or the bare pickle of one.

    Both layouts are read, ``{name: [kernel, bias]}`` and ``{name: {"weights": kernel,
    "biases": bias}}``, written by Python 2 or 3. Other entries are left unused.

    Args:
        path: the file.
    Returns:
        The layers, from BGR turned to RGB, dense layers as convolutions.
    Raises:
        ValueError: if the file is damaged, holds no dictionary, claims larger arrays
            than its bytes make, or asks for anything but arrays and plain data.
    """
    path = Path(path)
    layers, unused = {}, []
    spare = path.stat().st_size
    try:
        for name, entry in _read_entries(path).items():
            name = _FC_NAMES.get(name, name)
            if name in BODY and (layer := _layer(name, entry)):
                layers[name] = layer
                spare -= layer["kernel"].nbytes + layer["bias"].nbytes
            else:
                unused.append(name)
            if spare < 0:  # a pickle may name one array many times over
                raise ValueError("its arrays claim more bytes than it has")
    except ValueError as error:
        raise ValueError(f"{path} is no readable .npy of layers: {error}") from error
    source = "caffe-tensorflow .npy, BGR, H, W, I, O"
    return WeightFile(layers, VGG_MEAN_RGB, source, tuple(unused))


def _read_entries(path: Path) -> dict:
    """Returns the dictionary that the file holds, its arrays still as notes."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        try:
            if content[: len(_MAGIC)] == _MAGIC:
                _skip_header(content)
            root = _elements(_follow(content))
        except _GARBLED as error:
            raise ValueError(f"its pickle is damaged ({error!r})") from error
    if isinstance(root, list) and len(root) == 1:
        root = root[0]  # numpy saves a dictionary as an array of one object
    if not isinstance(root, dict):
        raise ValueError("it holds no dict of layers")
    return root


def _skip_header(content: mmap.mmap) -> None:
    """Moves to the pickle behind the header of a ``.npy`` file of objects."""
    start = 10 if content[6] == 1 else 12  # version 1 counts in two bytes, others four
    stop = start + int.from_bytes(content[8:start], "little")
    header = content[start:stop]
    if not _OBJECT_HEADER.search(header):
        described = header[:100].decode("latin1").strip()
        raise ValueError(f"it is a plain array, not a dict of layers: {described}")
    content.seek(stop)


@dataclasses.dataclass
class _Call:
    """A call that a pickle asks for, noted and never made.

    Attributes:
        name: the dotted name of what is to be called.
        args: the arguments.
        state: what the result's ``__setstate__`` is to be given.
    """

    name: str
    args: tuple
    state: tuple = ()


def _follow(content: mmap.mmap) -> object:
    """Builds the plain data that a pickle describes, with a `_Call` for each call."""
    stack, outer, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count == _MAX_OPCODES:
            raise ValueError(f"its pickle has more than {_MAX_OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "BINSTRING" | "SHORT_BINSTRING":  # python 2's str
                stack.append(argument.encode("latin1"))
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                length = int(name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items, stack = stack, outer.pop()
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                stack[-1][_text(key)] = value
            case "SETITEMS":
                items, stack = stack, outer.pop()
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((_text(key), value) for key, value in pairs)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = stack.pop(-2), stack.pop()
                stack.append(_known(module + "." + name))
            case "REDUCE":
                name, args = stack.pop(-2), stack.pop()
                stack.append(_note(name, args))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case name:
                raise ValueError(f"its pickle has the opcode {name}; nothing was run")


def _known(name: str) -> str:
    """Returns a dotted name as numpy 1 writes it, if arrays and plain data need it."""
    name = name.replace("numpy._core.", "numpy.core.")
    if name not in _KNOWN_NAMES:
        raise ValueError(
            f"its pickle asks for {name!r}; only numpy arrays, dicts, lists, strings "
            "and numbers are read, and nothing was run"
        )
    return name


def _note(name: str, args: tuple) -> _Call | dict:
    if name == "collections.OrderedDict":  # pairs follow, or are the one argument
        return {_text(key): value for key, value in itertools.chain(*args)}
    return _Call(name, args)


def _text(string: str | bytes) -> str:
    if not isinstance(string, str | bytes):
        raise ValueError(f"a {type(string).__name__} stands in place of a name")
    return string if isinstance(string, str) else string.decode("latin1")


def _elements(node: object) -> object:
    """Returns the elements of an array of objects as a list; other nodes unchanged."""
    match node:
        case _Call("numpy.core.multiarray._reconstruct", _, (_, _, _, _, list(items))):
            return items
    return node


def _layer(name: str, entry: object) -> dict[str, np.ndarray] | None:
    """Returns ``{"kernel", "bias"}`` of an entry in either layout, else None."""
    match _elements(entry):
        case {"weights": kernel, "biases": bias} | [kernel, bias]:
            try:
                kernel, bias = from_hwc(name, _array(kernel)), _array(bias)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            return {"kernel": kernel, "bias": bias.reshape(-1)}  # some are [1, O]
    return None


def _array(note: object) -> np.ndarray:
    """Returns the array that a note describes, over the bytes it carries."""
    match note:
        case _Call(
            "numpy.core.multiarray._reconstruct", _, (_, shape, dtype, fortran, data)
        ):
            order = "F" if fortran else "C"
        case _Call("numpy.core.numeric._frombuffer", (data, dtype, shape, order)):
            order = "F" if order == "F" else "C"
        case _:
            raise ValueError(f"a {type(note).__name__} stands in place of an array")
    data, dtype = _bytes(data), _float_type(dtype)
    if not (
        isinstance(shape, tuple)
        and all(isinstance(side, int) and side > 0 for side in shape)
        and math.prod(shape) * dtype.itemsize == len(data)
    ):
        raise ValueError(f"an array of {len(data)} bytes claims another shape")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _bytes(data: object) -> bytes | bytearray:
    match data:
        case bytes() | bytearray():
            return data
        case _Call("_codecs.encode", (str(text), "latin1")):  # python 3, protocol 2
            return text.encode("latin1")
    raise ValueError(f"an array's data is a {type(data).__name__}, not bytes")


def _float_type(note: object) -> np.dtype:
    match note:
        case _Call("numpy.dtype", (code, *_), (_, byte_order, *_)):
            code, byte_order = _text(code), _text(byte_order)
            if code in ("f2", "f4", "f8") and byte_order in ("<", ">"):
                return np.dtype(byte_order + code)
    raise ValueError("an array's type is not float16, float32 or float64")
