"""Read PyTorch's ``.pth`` files of state dicts, without PyTorch.

A ``.pth`` holds a pickle, which is never run, and the numbers of its tensors, called
storages. Since PyTorch 1.6 the file is a zip archive: ``data.pkl`` is the pickle, and
``data/0``, ``data/1`` and so on are the storages. Before, five pickles (a magic number,
the version of the format, the system, the content, and the keys of the storages) came
one behind the other, and then the storages, each behind its length.

Reference: ``torch/serialization.py`` and ``torch/_utils.py``.
"""

import functools
import io
import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from fcn_jax.weights.layers import WeightFile, check_claim, naming_file
from fcn_jax.weights.pickle_reader import Call, Name, as_dict, as_text, read_pickle
from fcn_jax.weights.torch_names import from_state_dict

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6
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

    Nothing in the file is run. Memory stays a small multiple of the file's size.

    Raises:
        ValueError: if the file is damaged, compressed, asks for anything but tensors
            and plain data, or claims larger tensors than its bytes make.
    """
    with (
        open(path, "rb") as file,
        naming_file(path, ".pth"),
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
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

    def read(self, content: mmap.mmap) -> bytes:
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


def _open(content: mmap.mmap) -> tuple[object, dict[str, _Place], str]:
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
        order = places[f"{folder}byteorder"].read(content)
    if order not in _BYTE_ORDERS:
        raise ValueError("its byte order is neither little nor big")
    pickled = io.BytesIO(places[pickles[0]].read(content))
    load_storage = functools.partial(_storage, folder=f"{folder}data/")
    root = _read_pickle(pickled, persistent_load=load_storage)
    return root, places, _BYTE_ORDERS[order]


def _zip_places(content: mmap.mmap) -> dict[str, _Place]:
    """Return where the data of each entry of a zip archive lies."""
    with zipfile.ZipFile(content) as archive:
        infos = archive.infolist()
    # Some programs disregard case.
    if len({info.filename.lower() for info in infos}) < len(infos):
        raise ValueError("it has several entries of one name")
    places, end = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError("its entries are compressed or encrypted, not PyTorch's")
        start = info.header_offset
        header = content[start : start + 30]
        if start < end or not header.startswith(ZIP_MAGIC):
            raise ValueError("its entries overlap or are not where its directory says")
        # A header is followed by a name and extra fields of these lengths.
        start += 30 + sum(struct.unpack("<26x2H", header))
        end = start + info.file_size
        check_claim("entries", end, len(content))
        places[info.filename] = _Place(start, info.file_size, info.CRC)
    return places


def _open_legacy(content: mmap.mmap) -> tuple[object, dict[str, _Place]]:
    dtypes: dict[str, np.dtype] = {}

    def load_storage(identifier: object) -> _Storage:
        storage = _storage(identifier)
        if dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise ValueError(f"its storage {storage.key} is of two types")
        return storage

    for _ in ("magic number", "version of the format", "system"):
        _read_pickle(content)
    root = _read_pickle(content, persistent_load=load_storage)
    keys = _read_pickle(content)
    if not isinstance(keys, list):
        raise ValueError("it has no list of storages")
    storages, start = {}, content.tell()
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


def _array(name: str, tensor: _Tensor, data: bytes, byte_order: str) -> np.ndarray:
    """Return the numbers of a tensor in its storage, half precision as float32."""
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
    numbers = bits.astype(f"=u{item}", copy=False).view(storage.dtype)
    return numbers.astype(np.float32) if item == 2 else numbers
