"""Arrays and metadata in a safetensors file that carries its own digest.

The entry "sha256" of the metadata is the SHA-256 of the file in which the 64 digits of
this entry are zeros. So a file that was damaged on its way or on its disk is refused.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy then knows the bfloat16 of safetensors files
import numpy as np
from safetensors import SafetensorError, safe_open

from fcn_jax.files import replacing

_DTYPES = {"float32": "F32", "int32": "I32"}
_DIGEST, _NO_DIGEST = "sha256", 64 * "0"
_MAX_HEADER = 2**20  # An FCN-8s takes about 5,000 bytes, with 255 classes 20,000.


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


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays and the metadata of any safetensors file.

    Raises:
        ValueError: if the file is damaged, or holds a type that numpy lacks.
        OSError: if it cannot be opened.
    """
    with _opened(path) as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        return arrays, file.metadata() or {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata alone of any safetensors file; raise as `read` does."""
    with _opened(path) as file:
        return file.metadata() or {}


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
    except (AttributeError, TypeError) as error:  # such as floats of 8 bits
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
    written = metadata.get(_DIGEST, "")
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        header = header.replace(written.encode(), _NO_DIGEST.encode(), 1)
        digest = hashlib.sha256(length + header)
        while chunk := file.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != written:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not the one that it was written with"
        )
