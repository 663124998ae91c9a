"""A disk that strikes one file operation of a command.

`Disk` stands between a command and the files of a folder. It counts what the command
does there and strikes one operation: as a kill, after which nothing more reaches the
disk, as an error of the operating system, or as an event such as a file that vanishes.
"""

import builtins
import collections
import contextlib
import errno
import io
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

READS = {"open", "read", "list", "stat"}
# What becomes of an operation: the errors that a full, a protected and a broken disk
# give. A full disk stays full.
FULL = {"create", "write", "fsync", "mkdir", "close"}
ERRORS = {
    "ENOSPC": FULL,
    "EACCES": {"create", "open", "mkdir", "replace", "unlink", "list", "stat"},
    "EIO": {"create", "open", "write", "fsync", "close", "read", "list", "replace"},
}


def set_clock_back(disk):
    clock = time.time
    disk.patch.setattr(time, "time", lambda: clock() - 3600)


# What happens beside a command.
IMAGE = "data/images/train/3.png"
EVENTS = {
    "workdir deleted": lambda disk: shutil.rmtree(disk.root / "new", True),
    "image deleted": lambda disk: (disk.root / IMAGE).unlink(missing_ok=True),
    "image shrunk": lambda disk: Image.new("RGB", (16, 16)).save(disk.root / IMAGE),
    "clock set back": set_clock_back,
}


class Killed(BaseException):
    """Stands for the end of the process; no code may catch it."""


class Disk:
    """The files below a folder, of which one operation may be struck.

    Args:
        root: the folder.
        strike: the operation, such as "write run/log.jsonl 3"; "" for none.
        fault: "kill" or a key of `ERRORS` or `EVENTS`.

    Attributes:
        operations: those that were done, in order.
        struck: whether the operation has come.
        path: the file that it concerned.
        patch: undoes changes when the command ends.
    """

    def __init__(self, root: Path, strike: str = "", fault: str = "kill"):
        self.root, self.strike, self.fault = root, strike, fault
        self.operations: list[str] = []
        self.struck, self.path = False, Path()
        self._counts: collections.Counter = collections.Counter()
        self._files: list[File] = []
        self._lock = threading.RLock()
        self._ended: set[int] = set()  # Threads that were killed.

    @property
    def dead(self) -> bool:
        return self.struck and self.fault == "kill"

    def operate(self, kind: str, path, tear=None) -> bool:
        """Count an operation and strike it, or tell whether to do it.

        Args:
            kind: what it does.
            path: with which file.
            tear: does a part of it, as a kill or a full disk may.
        """
        with self._lock:
            name = self._name(kind, path)
            if self.dead and kind not in READS:
                if threading.get_ident() in self._ended:
                    return False
                self._end()
            self.operations.append(name)
            lasting = self.struck and self.fault == "ENOSPC" and kind in FULL
            if lasting or (name == self.strike and not self.struck):
                if not self.struck:
                    self.struck, self.path = True, Path(path)
                if tear and self.fault in ("kill", "ENOSPC"):
                    tear()
                if self.dead:
                    for file in self._files:
                        file.cut_off()
                    self._end()
                if self.fault in EVENTS:
                    EVENTS[self.fault](self)
                    return True
                number = getattr(errno, self.fault)
                # An open file gives no name.
                named = kind not in ("write", "fsync", "close", "read")
                names = (os.fspath(path),) if named else ()
                raise OSError(number, os.strerror(number), *names)
        return True

    def open(self, original, path, mode="r", *args, **kwargs):
        if not self._holds(path):
            return original(path, mode, *args, **kwargs)
        reads = mode[0] == "r" and "+" not in mode
        done = self.operate("open" if reads else "create", path)
        file = original(path if done else os.devnull, mode, *args, **kwargs)
        self._files.append(File(self, os.fspath(path), file))
        return self._files[-1]

    def raw_open(self, original, path, flags, *args, **kwargs):
        if self._holds(path):
            kind = "create" if flags & (os.O_WRONLY | os.O_RDWR) else "open"
            if not self.operate(kind, path):
                path = os.devnull
        return original(path, flags, *args, **kwargs)

    def fsync(self, original, number):
        path = next((f.path for f in self._files if f.has(number)), None)
        if path is None or self.operate("fsync", path):
            original(number)

    @contextlib.contextmanager
    def watched(self):
        """Let all operations of this process go through this disk."""

        def through(kind, original, target=0):
            def call(*args, **kwargs):
                path = args[target] if args else None
                if not self._holds(path) or self.operate(kind, path):
                    return original(*args, **kwargs)

            return call

        def first(method, original):
            return lambda *args, **kwargs: method(original, *args, **kwargs)

        kinds = {"unlink": "unlink", "remove": "unlink", "rmdir": "unlink"}
        kinds |= {"mkdir": "mkdir", "chmod": "chmod", "utime": "chmod"}
        kinds |= {"listdir": "list", "scandir": "list", "stat": "stat"}
        with pytest.MonkeyPatch.context() as patch:
            self.patch = patch
            for name, kind in kinds.items():
                patch.setattr(os, name, through(kind, getattr(os, name)))
            for name in ("replace", "rename"):
                patch.setattr(os, name, through("replace", getattr(os, name), 1))
            opened = first(self.open, builtins.open)
            patch.setattr(builtins, "open", opened)
            patch.setattr(io, "open", opened)
            patch.setattr(os, "open", first(self.raw_open, os.open))
            patch.setattr(os, "fsync", first(self.fsync, os.fsync))
            try:
                yield
            finally:
                for file in self._files:  # A kill left some open.
                    file.let_go()

    def _end(self):
        self._ended.add(threading.get_ident())
        raise Killed

    def _holds(self, path) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return os.fspath(path).startswith(str(self.root))

    def _name(self, kind, path) -> str:
        """Name an operation without what differs from run to run."""
        path = os.path.relpath(path, self.root)
        path = re.sub(r"events\.out.*", "events", re.sub(r"\d{4,}", "N", path))
        name = f"{kind} {path}"
        self._counts[name] += 1
        return f"{name} {self._counts[name]}"


class File:
    """An open file of a `Disk`."""

    def __init__(self, disk, path, file):
        self._disk, self.path, self._file = disk, path, file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        return iter(self._file)

    def read(self, *args):
        self._disk.operate("read", self.path)
        return self._file.read(*args)

    def write(self, data):
        if not isinstance(data, str):
            data = memoryview(data).cast("B")

        def tear():
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        if self._disk.operate("write", self.path, tear):
            return self._file.write(data)
        return len(data)

    def close(self):
        if not self._file.closed and self._file.writable():
            try:
                self._disk.operate("close", self.path, self.cut_off)
            finally:
                self._file.close()
        self._file.close()

    def has(self, number):
        return not self._file.closed and self._file.fileno() == number

    def let_go(self):
        self._file.close()

    def cut_off(self):
        """Lose what is not on the disk yet."""
        if not self._file.closed and self._file.writable():
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)
