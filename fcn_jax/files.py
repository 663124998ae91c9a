"""Files: the cache folder, folders with one owner, and writing whole or not at all."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

_log = logging.getLogger("fcn_jax")


def cache_folder() -> Path:
    """Return the folder of downloads and compiled programs.

    It is the one that the environment variable FCN_JAX_CACHE names, or
    ``~/.cache/fcn_jax``.
    """
    folder = os.environ.get("FCN_JAX_CACHE") or Path.home() / ".cache" / "fcn_jax"
    return Path(folder).expanduser()


def enable_compilation_cache() -> None:
    """Keep programs that took over a second to compile, for the next process.

    They lie in the folder "compiled" of `cache_folder`, unless jax is told another
    (JAX_COMPILATION_CACHE_DIR) or not to (JAX_ENABLE_COMPILATION_CACHE=false). JAX
    knows a program by what it computes, for what machine, and by its own version.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = str(cache_folder() / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold a folder so that no other process can, until this context or process ends.

    The folder is made if it is missing, and gets a hidden file for the lock.

    Raises:
        ValueError: if another process holds it; it tells which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock", timeout=0), folder / ".owner"
    try:
        lock.acquire()
    except Timeout as error:
        holder = owner.read_text() if owner.exists() else "another process"
        raise ValueError(
            f"{folder} is in use by {holder}: wait until it ends, or choose another "
            "folder"
        ) from error
    except NotImplementedError:
        _log.warning("%s lies on a file system without locks: start one run", folder)
    try:
        # Not in the lock itself, which each attempt to take it empties.
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name to write to, which is moved to ``path`` at the end.

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
    """Write JSON, indented for reading."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
