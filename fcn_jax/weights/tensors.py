"""Arrays and metadata in a safetensors file that carries its own digest.

The entry "sha256" of the metadata is the SHA-256 of the file in which the 64 digits of
this entry are zeros. So a file that was damaged on its way or on its disk is refused.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from fcn_jax.files import replacing

_DTYPES = {"float32": "F32", "int32": "I32"}
# The types of other programs that numpy has, too.
_NUMPY_TYPES = {"BOOL": "?", "BF16": ml_dtypes.bfloat16, "F16": "<f2", "C64": "<c8"}
_NUMPY_TYPES |= {f"F{8 * size}": f"<f{size}" for size in (4, 8)}
_NUMPY_TYPES |= {f"{k}{8 * n}": f"<{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)}
_DIGEST, _NO_DIGEST = "sha256", 64 * "0"
_MAX_HEADER = 2**20  # An FCN-8s takes about 5,000 bytes, with 255 classes 20,000.
_ALIGNMENT = 64  # Bytes: what jax.device_put wants of arrays whose memory it shares.
# Bytes that are read at once: many, for after each the thread waits for others.
_CHUNK = 2**26


def write(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write float32 and int32 arrays and metadata with a digest, whole or not at all.

    Equal content gives equal bytes. Missing parent directories are made.

    Raises:
        WriteError: if the file cannot be written.
    """
    layout: dict = {"__metadata__": {_DIGEST: _NO_DIGEST, **metadata}}
    contents, end = [], 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        layout[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
        contents.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    header = json.dumps(layout).encode()
    header += b" " * (-len(header) % 8)  # The numbers begin at a multiple of 8.
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(header)
    for content in contents:
        digest.update(content)
    header = header.replace(_NO_DIGEST.encode(), digest.hexdigest().encode(), 1)
    with replacing(path, durable=True) as unfinished:
        with open(unfinished, "wb") as file:
            for content in (header, *contents):
                file.write(content)


def read(
    path: str | Path, *, checked: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays and the metadata of any safetensors file.

    The arrays are views of one piece of memory, laid out as in the file. The file is
    read and not mapped, because a mapped file that is cut short ends the process.

    Args:
        path: the file.
        checked: whether to refuse a file that is not as `write` wrote it.

    Raises:
        ValueError: if the file is damaged, or holds a type that numpy lacks.
        OSError: if it cannot be opened.
    """
    with _opened(path) as valid, open(path, "rb") as file:
        metadata, header = valid.metadata() or {}, _read_header(file)
        digest = _digest_of(header, metadata)
        content = _aligned(os.fstat(file.fileno()).st_size - len(header))
        for start in range(0, len(content), _CHUNK):
            chunk = content[start : start + _CHUNK]
            if file.readinto(chunk) != len(chunk):
                raise ValueError("it was cut short while it was read")
            if checked:
                digest.update(chunk)
        layout = json.loads(header[8:])
        layout.pop("__metadata__", None)
        arrays = {name: _view(content, entry) for name, entry in layout.items()}
    if checked:
        _compare(path, digest, metadata)
    return arrays, metadata


def _aligned(size: int) -> np.ndarray:
    """Return memory that JAX shares on a CPU instead of copying it, [size] uint8."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def _view(content: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Return the array that an entry of the header describes."""
    dtype = np.dtype(_NUMPY_TYPES[entry["dtype"]])
    return content[slice(*entry["data_offsets"])].view(dtype).reshape(entry["shape"])


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata alone of any safetensors file; raise as `read` does."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes alone of any safetensors file; raise as `read` does."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file, and turn all errors of reading it into ValueError."""
    _check_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OverflowError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {error}"
        ) from error
    except KeyError as error:  # such as floats of 8 bits
        raise ValueError(f"{path} holds a type that numpy lacks: {error}") from error


def _check_header(path: str | Path) -> None:
    """Raise ValueError if the header is far larger than that of any network.

    A small file of short entries would become many times its size in memory.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError(
            f"{path} is not a readable safetensors file: its header has {size:,} "
            f"bytes, more than {_MAX_HEADER:,}"
        )


def check_digest(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Raise ValueError if a file of `write` is not as it was written.

    Args:
        path: the file.
        metadata: its metadata.
    """
    with open(path, "rb") as file:
        digest = _digest_of(_read_header(file), metadata)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    _compare(path, digest, metadata)


def _read_header(file: BinaryIO) -> bytes:
    """Return the first bytes of a file, up to its arrays."""
    length = file.read(8)
    return length + file.read(int.from_bytes(length, "little"))


def _digest_of(header: bytes, metadata: Mapping[str, str]) -> Any:
    """Return the SHA-256 of a header whose own digits are zeros, to be continued."""
    written = metadata.get(_DIGEST, "").encode()
    return hashlib.sha256(header.replace(written, _NO_DIGEST.encode(), 1))


def _compare(path: str | Path, digest: Any, metadata: Mapping[str, str]) -> None:
    """Raise ValueError if a digest is not the one in the metadata."""
    if digest.hexdigest() != metadata.get(_DIGEST):
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one that it was written with"
        )
