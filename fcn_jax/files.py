"""Where files are kept, and writing them whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept: FCN_JAX_CACHE, or in the home."""
    folder = os.environ.get("FCN_JAX_CACHE") or Path.home() / ".cache" / "fcn_jax"
    return Path(folder).expanduser()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to, moved to ``path`` at the end.

    Whatever interrupts the writing, ``path`` holds all of the new content or is as it
    was. Missing parent directories are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON, indented for reading."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
