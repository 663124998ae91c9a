"""A cache of decoded images, for data sets that are read in many epochs.

Decoding takes most of the time of reading a large image. A cached source keeps the
pixels themselves in one file of the ArrayRecord format, which checks each record that
it reads.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.data.transforms import resize
from fcn_jax.files import remove_leftovers, replacing
from fcn_jax.progress import size as readable
from fcn_jax.progress import track

_FORMAT = 1  # A change of what the files hold needs another number.
_SAMPLE = 16  # Examples that tell how large the file will be.
_MAX_THREADS = 16  # Each has a few decoded images waiting.

_log = logging.getLogger("fcn_jax")


class CachedSource:
    """Read examples from a file that `cache_source` wrote.

    Reading raises ValueError if the file is damaged. In another process the source
    opens the file anew.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        import grain  # Its reader of files comes with array_record.

        damaged = f"the cache {path} is damaged: delete it, and it is written anew: "
        self._naming_damage = functools.partial(_errors_as, ValueError, damaged)
        with self._naming_damage():
            self._records = grain.sources.ArrayRecordDataSource(str(path))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        with self._naming_damage():
            return _unpack(self._records[i])


def cache_source(
    source: Any,
    folder: str | Path,
    *,
    name: str,
    size: tuple[int, int] | tuple[()] = (),
    progress: bool = True,
) -> CachedSource:
    """Return a source of the same examples that are decoded already.

    The first call reads all examples and writes them to a file, whole or not at all.
    Later calls find it by a fingerprint of the files and options of ``source``, of
    ``size`` and of the version of Pillow. If any of them has changed, a new file is
    written and the old one stays.

    Args:
        source: a source with a method ``fingerprint``, such as a
            `fcn_jax.data.sources.FolderSource`.
        folder: folder of the file; made if it is missing.
        name: how the name of the file begins, such as that of the split.
        size: (H, W) to resize the examples to, as `fcn_jax.data.transforms.resize`
            does; () keeps their sizes.
        progress: whether to show a progress bar while the file is written.

    Returns:
        A source whose images and labels are equal to those of ``source``, resized to
        ``size``, bit for bit.

    Raises:
        ValueError: if ``source`` has no fingerprint or no examples, array_record is
            missing, the disk has too little room, the file is damaged, or an example
            cannot be read.
        WriteError: if the file cannot be written.
    """
    check_cacheable(source)
    folder = Path(folder)
    values = [_FORMAT, PIL.__version__, list(size), source.fingerprint()]
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    stem = re.sub(r"\W+", "_", name)
    path = folder / f"{stem}-{digest[:16]}.array_record"
    if not path.exists():
        _write(source, path, name, size, progress)
    others = sorted(p.name for p in folder.glob(f"{stem}-*{path.suffix}") if p != path)
    if others:
        _log.info(
            "%s also has caches of other files or options: %s. Delete those that no "
            "run needs",
            folder,
            ", ".join(others),
        )
    return CachedSource(path)


def check_cacheable(source: Any) -> None:
    """Raise ValueError if a source cannot be cached here."""
    if not hasattr(source, "fingerprint"):
        raise ValueError(
            f"a {type(source).__name__} cannot be cached, only images of folders, of "
            "TFDS, or of another source with a method fingerprint: leave out the cache"
        )
    if importlib.util.find_spec("array_record") is None:
        raise ValueError(
            "the cache needs the package array_record, which does not exist for "
            "Windows: use Linux or macOS, or no cache"
        )


def _write(source: Any, path: Path, name: str, size: tuple, progress: bool) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    def read(i: int) -> bytes:
        example = source[i]
        return _pack(resize(example, size) if size else example)

    if not len(source):
        raise ValueError(f"{name} holds no examples to cache")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    _check_room(read, len(source), path.parent, name)
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    records = read_ahead(read, len(source), threads=threads)
    title = f"cache {name}"
    records = track(records, title, len(source), unit="image", shown=progress)
    with replacing(path, durable=True) as unfinished, _errors_as(OSError):
        # Compressed pixels would be a little smaller and much slower to read.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()


def _check_room(read: Callable, count: int, folder: Path, name: str) -> None:
    """Log how much room a cache takes; raise ValueError if the disk has less."""
    sample = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int).tolist()
    need = count * sum(len(read(i)) for i in sample) / len(sample)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"the cache of {name}, {count} images, takes about {readable(need)}, but "
            f"{folder} has only {readable(free)} free: choose another folder, a "
            "smaller size, or no cache"
        )
    _log.info("caching %s: %d images, about %s", name, count, readable(need))


@contextlib.contextmanager
def _errors_as(kind: type[Exception], message: str = "") -> Iterator[None]:
    """Turn the errors of array_record, all RuntimeErrors, into another kind."""
    try:
        yield
    except RuntimeError as error:
        raise kind(f"{message}{error}") from error


def _pack(example: dict) -> bytes:
    """Return an example as a line of JSON, the image and the label as bytes."""
    image, label = example["image"], example["label"]
    head = {"name": example["name"], "shape": image.shape, "dtype": image.dtype.name}
    line = json.dumps(head).encode() + b"\n"
    return line + image.tobytes() + label.astype(np.uint8).tobytes()


def _unpack(record: bytes) -> dict:
    start = record.index(b"\n") + 1
    head = json.loads(record[:start])
    shape, dtype = head["shape"], np.dtype(head["dtype"])
    end = len(record) - shape[0] * shape[1]
    image = np.frombuffer(record[start:end], dtype).reshape(shape)
    label = np.frombuffer(record, np.uint8, offset=end).reshape(shape[:2])
    # Copies: a transform may change an example in place.
    return {
        "image": image.copy(),
        "label": label.astype(np.int32),
        "name": head["name"],
    }
