"""Read PyTorch's ``.pth`` files of state dicts, without PyTorch.

A ``.pth`` holds a pickle, which is never run, and the numbers of its tensors, called
storages. Since PyTorch 1.6 the file is a zip archive: ``data.pkl`` is the pickle, and
``data/0``, ``data/1`` and so on are the storages. Before, five pickles (a magic number,
the version of the format, the system, the content, and the keys of the storages) came
one behind the other, and then the storages, each behind its length.

Reference: ``torch/serialization.py`` and ``torch/_utils.py``.
"""

import functools
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from fcn_jax.weights.layers import WeightFile, check_claim, mapped, naming_file
from fcn_jax.weights.pickle_reader import Call, Name, as_dict, as_text, read_pickle
from fcn_jax.weights.torch_names import from_state_dict

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6
# The records of a zip archive, without names and what else has any length.
_HEADER = struct.Struct("<26x2H")  # Lengths of name and extra fields.
_ENTRY = struct.Struct("<4s4x2H4x3L3H8xL")
_END = struct.Struct("<4s8x2L2x")
_LONG_END = struct.Struct("<4s36x2Q20x")  # zip64's, with the locator behind it.
_MAX_DIRECTORY = 2**20  # An FCN-8s with the state of Adam takes about 10,000 bytes.
_MAX_OFFSET = 2**32 - 1  # Stands for one that zip64 has elsewhere.
_BYTE_ORDERS = {b"little": "<", b"big": ">"}
_STATES = ("model_state_dict", "state_dict")  # Where trainers keep the weights.

_FLOATS = {"Half": np.float16, "BFloat16": ml_dtypes.bfloat16}
_FLOATS |= {"Float": np.float32, "Double": np.float64}
_OTHERS = {"Bool": np.bool, "Byte": np.uint8, "Char": np.int8, "Short": np.int16}
_OTHERS |= {"Int": np.int32, "Long": np.int64}
_OTHERS |= {"ComplexFloat": np.complex64, "ComplexDouble": np.complex128}
_STORAGES = {
    f"torch.{device}{name}Storage": np.dtype(dtype)
    for name, dtype in (_FLOATS | _OTHERS).items()
    for device in ("", "cuda.")
}
_REBUILDS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_MAX_SIDES = 64  # As in PyTorch.

_read_pickle = functools.partial(
    read_pickle,
    advice="only tensors and plain data are read: save the state_dict() alone",
    max_opcodes=10_000,  # An FCN-8s takes about 1,500, with the state of Adam 5,400.
    names=frozenset((*_STORAGES, *_REBUILDS, _PARAMETER)),
)


def read(path: str | Path) -> WeightFile:
    """Read a ``.pth`` of a state dict, or of a trainer with one inside.

    Nothing in the file is run. The arrays are views of the file where its layout
    allows: do not change it while they are in use.

    Raises:
        ValueError: if the file is damaged, compressed, asks for anything but tensors
            and plain data, or claims larger tensors than its bytes make.
    """
    with open(path, "rb") as file, naming_file(path, ".pth"):
        content = mapped(file)
        saved, storages, byte_order = _open(content)
        state, unused = _entries(saved)
        tensors, claimed = {}, 0
        for name, value in state.items():
            tensor = _tensor(name, value)
            if tensor and tensor.storage.dtype in _FLOATS.values():
                tensors[name] = tensor
                claimed += math.prod(tensor.shape) * tensor.storage.dtype.itemsize
            else:
                unused.append(name)
        check_claim("tensors", claimed, len(content))
        keys = {tensor.storage.key for tensor in tensors.values()}
        if missing := sorted(keys - storages.keys()):
            raise ValueError(f"its storage {missing[0]} is missing")
        data = {key: storages[key].read(content) for key in keys}
        arrays = {
            name: _array(name, tensor, data[tensor.storage.key], byte_order)
            for name, tensor in tensors.items()
        }
        layers = from_state_dict(arrays)
    return layers._replace(unused=(*layers.unused, *unused))


class _Place(NamedTuple):
    """The place of an entry or a storage in the file, with checksum 0 for none."""

    start: int
    size: int
    checksum: int = 0

    def read(self, content: memoryview) -> memoryview:
        data = content[self.start : self.start + self.size]
        if self.checksum and self.checksum != zlib.crc32(data):
            raise ValueError("it is damaged: a checksum differs")
        return data


class _Storage(NamedTuple):
    """The numbers ``start`` to ``start + count`` of those under ``key``."""

    key: str
    dtype: np.dtype
    start: int
    count: int


class _Tensor(NamedTuple):
    """A view of a storage, with offset and strides counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _open(content: memoryview) -> tuple[object, dict[str, _Place], str]:
    """Return the object that was saved, the places of storages, and "<" or ">"."""
    if content[: len(LEGACY_MAGIC)] == LEGACY_MAGIC:
        return *_open_legacy(content), "<"
    if content[: len(ZIP_MAGIC)] != ZIP_MAGIC:
        raise ValueError("its first bytes are not those of a PyTorch file")
    places = _zip_places(content)
    pickles = [name for name in places if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} entries data.pkl, want one")
    folder, order = pickles[0].removesuffix("data.pkl"), b"little"
    if f"{folder}byteorder" in places:
        order = bytes(places[f"{folder}byteorder"].read(content)[:9])
    if order not in _BYTE_ORDERS:
        raise ValueError("its byte order is neither little nor big")
    load_storage = functools.partial(_storage, folder=f"{folder}data/")
    pickled = places[pickles[0]].read(content)
    root, _ = _read_pickle(pickled, persistent_load=load_storage)
    return root, places, _BYTE_ORDERS[order]


def _zip_places(content: memoryview) -> dict[str, _Place]:
    """Return where the data of each entry of a zip archive lies.

    Programs that find several directories in a file may differ in which they believe.
    So there must be only one, at the very end.
    """
    directory, start = _directory(content)
    entries, at = [], 0
    while at < len(directory):
        signature, flags, method, checksum, packed, size, *lengths, offset = (
            _ENTRY.unpack_from(directory, at)
        )
        if signature != b"PK\1\2" or _MAX_OFFSET in (size, offset):
            raise ValueError("its directory is damaged, or the file is above 4 GB")
        if method or flags & 1 or packed != size:
            raise ValueError("its entries are compressed or encrypted, not PyTorch's")
        name = bytes(directory[at + _ENTRY.size :][: lengths[0]])
        entries.append((offset, name, size, checksum))
        at += _ENTRY.size + sum(lengths)
    # Some programs disregard case.
    if len({name.lower() for _, name, *_ in entries}) < len(entries):
        raise ValueError("it has several entries of one name")
    places, end = {}, 0
    for offset, name, size, checksum in sorted(entries):
        is_header = content[offset : offset + 4] == ZIP_MAGIC
        if offset < end or not is_header or offset + _HEADER.size > start:
            raise ValueError("its entries overlap or are not where its directory says")
        lengths = _HEADER.unpack_from(content, offset)
        offset += _HEADER.size
        if content[offset : offset + lengths[0]] != name:
            raise ValueError("its entries have other names in its directory")
        offset += sum(lengths)
        end = offset + size
        check_claim("entries", end, start)
        places[name.decode("latin1")] = _Place(offset, size, checksum)
    return places


def _directory(content: memoryview) -> tuple[memoryview, int]:
    """Return the directory at the end of a zip archive, and where it starts."""
    end = max(len(content) - _END.size, 0)
    signature, size, start = _END.unpack_from(content, end)
    at = end - _LONG_END.size
    if at >= 0 and content[at : at + 4] == b"PK\6\6":  # PyTorch writes both.
        _, size, start = _LONG_END.unpack_from(content, at)
        end = at
    if signature != b"PK\5\6" or start + size != end:
        raise ValueError("its directory is not at its end: it is cut off or damaged")
    if size > _MAX_DIRECTORY:
        raise ValueError(f"its directory has more than {_MAX_DIRECTORY:,} bytes")
    return content[start:end], start


def _open_legacy(content: memoryview) -> tuple[object, dict[str, _Place]]:
    dtypes: dict[str, np.dtype] = {}

    def load_storage(identifier: object) -> _Storage:
        storage = _storage(identifier)
        if dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise ValueError(f"its storage {storage.key} is of two types")
        return storage

    start = 0
    for _ in ("magic number", "version of the format", "system"):
        _, start = _read_pickle(content, start)
    root, start = _read_pickle(content, start, persistent_load=load_storage)
    keys, start = _read_pickle(content, start)
    if not isinstance(keys, list):
        raise ValueError("it has no list of storages")
    storages = {}
    for key in map(as_text, keys):
        if key not in dtypes or key in storages:
            raise ValueError(f"its storage {key} belongs to no tensor or comes twice")
        count = int.from_bytes(content[start : start + 8], "little")
        storages[key] = place = _Place(start + 8, count * dtypes[key].itemsize)
        start = place.start + place.size
        check_claim("storages", start, len(content))
    return root, storages


def _storage(identifier: object, folder: str = "") -> _Storage:
    """Return the storage that a persistent id stands for."""
    match identifier:
        case (b"storage" | "storage", Name(dotted), key, _, count, *view) if (
            dotted in _STORAGES
        ):
            start = 0
            if view and view[0] is not None:  # The oldest files have views of storages.
                _, start, count = view[0]
            if type(start) is type(count) is int and min(start, count) >= 0:
                key = folder + as_text(key)
                return _Storage(key, _STORAGES[dotted], start, count)
    raise ValueError("its pickle describes a storage in an unknown way")


def _entries(saved: object) -> tuple[dict[str, object], list[str]]:
    """Return the entries of the state dict, and the names of those beside it."""
    root = as_dict(saved)
    if root is None:
        kind = saved.name if isinstance(saved, Call) else type(saved).__name__
        kind = "Tensor" if kind in (*_REBUILDS, _PARAMETER) else kind
        raise ValueError(f"it holds a {kind}, no state dict")
    for key in _STATES:
        if (state := as_dict(root.get(key))) is not None:
            return state, [name for name in root if name != key]
    return root, []


def _tensor(name: str, node: object) -> _Tensor | None:
    """Return the tensor that a call makes, or None where it makes something else."""
    if isinstance(node, Call) and node.name == _PARAMETER and node.args:
        node = node.args[0]
    if not isinstance(node, Call) or node.name not in _REBUILDS:
        return None
    match node.args:
        # More than requires_grad and hooks would change the numbers, as "neg" does.
        case (_Storage() as storage, offset, tuple(shape), tuple(strides), *rest) if (
            len(shape) == len(strides) <= _MAX_SIDES
            and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
            and len(rest) <= 2
        ):
            return _Tensor(storage, offset, shape, strides)
    raise ValueError(f"{name}: its pickle describes a tensor in an unknown way")


def _array(name: str, tensor: _Tensor, data: memoryview, byte_order: str) -> np.ndarray:
    """Return the numbers of a tensor in its storage."""
    storage, offset, shape, strides = tensor
    item = storage.dtype.itemsize
    if 0 in shape:
        return np.zeros(shape, np.float32)
    # The stride of a single row means nothing, and may be any number.
    steps = [step * (side > 1) for side, step in zip(shape, strides, strict=True)]
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if last >= storage.count or (storage.start + storage.count) * item > len(data):
        raise ValueError(f"{name}: its tensor lies outside its storage")
    # numpy swaps the bytes of integers, but not those of bfloat16.
    start, steps = (storage.start + offset) * item, [step * item for step in steps]
    bits = np.ndarray(shape, f"{byte_order}u{item}", data, start, steps)
    return bits.astype(f"=u{item}", copy=False).view(storage.dtype)
