"""Files: the cache folder, folders with one owner, and writing whole or not at all."""

import contextlib
import csv
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_log = logging.getLogger("fcn_jax")
_HOST = socket.gethostname()
_UNFINISHED = ".tmp"  # The end of the names of temporary files.


def cache_folder() -> Path:
    """Return the folder of downloads and compiled programs.

    It is the one that the environment variable FCN_JAX_CACHE names, or
    ``~/.cache/fcn_jax``.
    """
    folder = os.environ.get("FCN_JAX_CACHE") or Path.home() / ".cache" / "fcn_jax"
    return Path(folder).expanduser()


def keep_compiled_programs() -> None:
    """Keep programs that took long to compile, for the next process.

    They lie in the folder "compiled" of `cache_folder`, unless jax is told another
    (JAX_COMPILATION_CACHE_DIR) or not to (JAX_ENABLE_COMPILATION_CACHE=false). JAX
    knows a program by what it computes, for what machine, and by its own version. Call
    this before jax is imported, which reads the variable then.
    """
    folder = str(cache_folder() / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    # By default a second: an FCN for prediction may take less.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


class WriteError(OSError):
    """Tell that a file could not be written. What was there before is kept."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the body into a `WriteError` that names the file."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        failed = WriteError(
            f"cannot write {path}: {error.strerror or error}; what was there before is "
            "kept"
        )
        failed.errno = error.errno
        raise failed from error


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Let an OSError of the body name the file, which those of `read` do not."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or error.filename is not None:
            raise
        raise OSError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder so that no other process can, until this context or process ends.

    The folder is made if it is missing, and gets a hidden file for the lock and one
    that names the process.

    Yields:
        A function that raises OSError if the folder has been deleted or moved.

    Raises:
        ValueError: if another process holds the folder; it tells which.
        OSError: if the folder cannot be made or written to.
    """
    lock, owner = FileLock(folder / ".lock", timeout=0), folder / ".owner"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            holder = _read(owner) or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}: wait until it ends, or choose "
                "another folder"
            ) from error
        except NotImplementedError:
            _log.warning("%s is on a file system without locks: start one run", folder)
        if before := _read(owner):
            _log.info("taking %s over from %s, which was killed", folder, before)
        # Not in the lock itself, which each attempt to take it empties.
        this = f"process {os.getpid()} on {_HOST}"
        owner.write_text(this, encoding="utf-8")

    def check() -> None:
        if _read(owner) != this:
            raise OSError(f"{folder} was deleted or moved while it was in use")

    try:
        yield check
    finally:
        with contextlib.suppress(OSError):
            if _read(owner) == this:  # Else the folder is another's by now.
                owner.unlink()
        lock.release()


def _read(path: Path) -> str:
    """Return the text of a file, "" if there is none."""
    try:
        with reading(path):
            return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to, which is moved to ``path`` at the end.

    Whatever interrupts the writing, ``path`` holds all of the new content or is as it
    was. Missing parent directories are made.

    Args:
        path: the file to write.
        durable: whether the content must outlive a loss of power, too.

    Raises:
        WriteError: if the body or the move raises an OSError.
    """
    path = Path(path)
    # A long name of the file leaves room for the rest.
    name = f".{path.name[:40]}.{_HOST}.{os.getpid()}{_UNFINISHED}"
    unfinished = path.with_name(name)
    with writing(path):
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            if durable:
                _sync(unfinished, os.O_RDWR)
            os.replace(unfinished, path)
            if durable and os.name != "nt":  # Windows opens no folders.
                _sync(path.parent, os.O_RDONLY)
        finally:
            unfinished.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes of this machine left unfinished in a folder.

    These are the temporary files of `replacing`. This process must not be writing.
    """
    if os.name == "nt":  # Windows cannot ask whether a process lives without ending it.
        return
    ours = re.compile(rf"\..*\.{re.escape(_HOST)}\.(\d{{1,9}})\{_UNFINISHED}")
    for path in folder.glob(f".*{_UNFINISHED}"):
        match = ours.fullmatch(path.name)
        # In a container, a new process often has the number of the killed one.
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It belongs to another user.
        return True
    return True


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, indented for reading."""
    with replacing(path, durable=True) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV.

    A spreadsheet would run a text such as "=1+1" as a formula, and names of classes and
    files come from strangers. Such a text gets an apostrophe in front, which makes
    spreadsheets show it as text.
    """
    with (
        replacing(path) as unfinished,
        # Names of files may hold bytes that are no text.
        open(
            unfinished, "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file,
    ):
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([_no_formula(cell) for cell in row])


def _no_formula(cell: Any) -> Any:
    is_formula = isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r"))
    return f"'{cell}" if is_formula else cell
