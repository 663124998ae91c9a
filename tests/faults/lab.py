"""Run commands, break them in the middle, and look at what is left at last."""

import contextlib
import functools
import gc
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from damages import DAMAGES
from faulty_disk import ERRORS, EVENTS, READS, Disk, Killed
from PIL import Image

from fcn_jax.__main__ import main
from fcn_jax.training.log import TIMES

GOOD = ("recovered", "warned", "refused")
SEED = 2
LIMIT = 60  # Seconds after which a command hangs.
CONFIG = """
from fcn_jax.training.config import Config, Data, Model, Optim

def get_config():
    return Config(
        model=Model(variant="fcn32s", width=1 / 64, score_init="xavier"),
        data=Data(name="folder", root={root!r}, num_classes=3, crop=(24, 24)),
        optim=Optim(learning_rate=0.01, schedule="constant"),
        steps={steps}, batch_size=2, eval_every=2, log_every=1,
    )
"""
COMMANDS = {
    "train": "train --config ROOT/config.py --workdir ROOT/new",
    "resume": "train --config ROOT/config.py --workdir ROOT/cut",
    "again": "train --config ROOT/config.py --workdir ROOT/run",
    "more": "train --config ROOT/more.py --workdir ROOT/run",
    "convert": "convert ROOT/run/model.safetensors ROOT/convert/net.safetensors",
    "export": "export --run ROOT/run --out ROOT/export/net.npz",
    "predict": "predict --run ROOT/run --out ROOT/predict --probabilities "
    "ROOT/data/images/val",
    "evaluate": "evaluate --run ROOT/run --out ROOT/evaluate --save-confusion "
    "--save-predictions",
    "inspect": "inspect ROOT/run/model.safetensors",
    "verify": "inspect ROOT/run",
}
# Where each writes, if not in a folder of its name.
FOLDERS = {"train": "new", "resume": "cut", "again": "run", "more": "run"}
OVERWRITING = ("convert", "predict")  # Their results are there before.
OLD = hashlib.sha256(b"old").hexdigest()


class Hangs(BaseException):
    """Ends a command that takes too long."""


@dataclass
class Ending:
    """How a command ended.

    Attributes:
        how: "done", "error" (one sentence, status 1), "traceback", "killed" or "hangs".
        printed: to the standard output.
        error: printed beside it, or the traceback.
        seconds: that it took.
    """

    how: str
    printed: str
    error: str
    seconds: float


class Trial(NamedTuple):
    """What became of one fault.

    Attributes:
        kind: the class of the fault, a row of the table.
        fault: the fault itself.
        outcome: "recovered"; "warned" (only a damaged log differs, and a warning names
            it); "refused"; or, what must not be, "lost", "traceback", "hangs" or
            "unnamed" (an error that does not name the file).
        seconds: of the slowest command.
        note: the error.
    """

    kind: str
    fault: str
    outcome: str
    seconds: float
    note: str = ""


class Lab:
    """Break commands in a folder and compare what they leave at last.

    All happens at one path, so that nothing differs but by the faults.

    Attributes:
        root: the folder: data, configs, a finished "run", and "cut", a killed one.
        home: a copy of it that stays as it is.
    """

    def __init__(self, folder: Path):
        self.root, self.home = folder / "root", folder / "home"

    def build(self):
        """Make the folder and run each command once, unbroken."""
        self.root.mkdir()
        draw_data(self.root / "data")
        for name, steps in (("config.py", 6), ("more.py", 8)):
            text = CONFIG.format(root=str(self.root / "data"), steps=steps)
            (self.root / name).write_text(text)
        first = Disk(self.root)
        found = self.run("train", first, limit=10 * LIMIT)  # It compiles.
        assert found.how == "done", found
        (self.root / "new").rename(self.root / "run")
        cut = [o for o in first.operations if o.startswith("write new/log.jsonl")][6]
        assert self.run("train", Disk(self.root, cut)).how == "killed"
        (self.root / "new").rename(self.root / "cut")
        self.save()

    @functools.cache  # noqa: B019  There is one lab.
    def unbroken(self, command: str) -> tuple[list[str], dict]:
        """Return the file operations of an unbroken command, and what it makes."""
        self.restore()
        disk = Disk(self.root)
        ending = self.run(command, disk, limit=10 * LIMIT)  # It may compile.
        assert ending.how == "done", ending.error
        return disk.operations, self.result(command, ending)

    def save(self):
        """Make the folder as it is now the one that `restore` gives back."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.root, self.home)

    def restore(self):
        shutil.rmtree(self.root)
        shutil.copytree(self.home, self.root)

    def run(
        self, command: str, disk: Disk | None = None, *, limit: float = LIMIT
    ) -> Ending:
        """Run a command of `COMMANDS`, on a disk if given."""
        argv = COMMANDS[command].replace("ROOT", str(self.root)).split()
        watched = disk.watched() if disk else contextlib.nullcontext()
        printed, errors, crashes = io.StringIO(), io.StringIO(), []
        how, clock = "traceback", time.perf_counter()

        def note(args):
            if args.exc_type is not Killed:
                crashes.append(f"in a thread: {args.exc_value!r}")

        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(errors),
        ):
            patch.setattr(threading, "excepthook", note)
            try:
                with limited(limit), watched:
                    how = "done" if main(argv) == 0 else "error"
            except Killed:
                how = "killed"
            except Hangs:
                how = "hangs"
            except Exception:
                crashes.append(traceback.format_exc())
        seconds = time.perf_counter() - clock
        if disk and disk.dead:
            how = "killed"
        elif crashes and how != "hangs":
            how = "traceback"
        if how != "done":
            gc.collect()  # A lock ends with its process.
        error = errors.getvalue() + "\n".join(crashes)
        return Ending(how, printed.getvalue(), error, seconds)

    def result(self, command: str, ending: Ending) -> dict:
        """Return what a command has made, without what depends on the clock."""
        folder = self.root / FOLDERS.get(command, command)
        return {
            "files": {
                str(path.relative_to(self.root)): content(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and counts(path.relative_to(folder))
            },
            "printed": ending.printed,
        }

    def strikes(self, command: str, fault: str) -> list[str]:
        """Return the operations of a command that a fault can strike, not all alike."""
        operations, _ = self.unbroken(command)
        last = {o.rpartition(" ")[0]: o for o in operations}
        found = []
        for operation in operations:
            kind, number = operation.split()[0], int(operation.rpartition(" ")[2])
            if kind not in ERRORS.get(fault, {kind} - READS):
                continue
            often = 40 if "tensorboard" in operation else 10
            first = 2 if kind in READS else 3
            if number < first or number % often == 0 or operation in last.values():
                found.append(operation)
        return found

    def strike(self, command: str, operation: str, fault: str) -> Trial:
        """Strike one operation of a command, and run the command again."""
        files = self.unbroken(command)[1]["files"]
        self.restore()
        if command in OVERWRITING:
            for name in files:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_text("old")
        kind = f"{command}: {fault}"
        disk = Disk(self.root, operation, fault)
        first = self.run(command, disk)
        half = self.half_written(command)
        if fault in EVENTS:  # What the user brings back.
            shutil.copytree(self.home / "data", self.root / "data", dirs_exist_ok=True)
        second = self.run(command)
        outcome, note = "recovered", ""
        if not disk.struck:
            outcome = "not reached"
        elif first.how in ("traceback", "hangs"):
            outcome, note = first.how, first.error
        elif half:
            outcome, note = "lost", f"half written: {half}"
        elif second.how != "done":
            outcome = "lost" if second.how == "error" else second.how
            note = second.error
        elif found := self.difference(command, second):
            outcome, note = "lost", found
        elif first.how == "error" and not is_sentence(
            # A full disk and an event may stop other operations, too.
            first.error,
            disk.path if fault in ("EIO", "EACCES") else None,
        ):
            outcome, note = "unnamed", first.error
        return Trial(kind, f"{fault} at {operation}", outcome, first.seconds, note)

    def start(self, *options: str) -> subprocess.Popen:
        """Start to train in another process, with all programs compiled."""
        argv = COMMANDS["train"].replace("ROOT", str(self.root)).split()
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with open(self.root / "stderr", "a", encoding="utf-8") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "fcn_jax", *argv, *options],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def kill_process(self, seed: int, *, reader: bool = False) -> Trial:
        """Kill a run with reading processes, or one of these, and run it again."""
        self.unbroken("train")
        self.restore()
        rng = np.random.default_rng(seed)
        process = self.start("--config.data.workers=2")
        readers = wait_for(lambda: readers_of(process.pid), process)
        time.sleep(rng.uniform(0, 0.2 if reader else 3))
        readers = readers_of(process.pid) or readers
        clock = time.perf_counter()
        os.kill(readers[0] if reader else process.pid, signal.SIGKILL)
        process.communicate(timeout=10 * LIMIT)
        error = (self.root / "stderr").read_text()
        left = wait_for(lambda: not any(map(is_running, readers)), None) is None
        seconds = time.perf_counter() - clock
        what = "of a reading process" if reader else "of the process"
        fault = f"SIGKILL {what} (seed {seed})"
        outcome, note = self.end_of(process, error)
        ending = self.run("train")
        if left:
            outcome, note = "lost", f"processes {readers} go on"
        elif ending.how != "done":
            outcome, note = "lost", ending.error
        elif found := self.difference("train", ending):
            outcome, note = "lost", found
        return Trial(f"train: SIGKILL {what}", fault, outcome, seconds, note)

    def start_twice(self, seed: int) -> Trial:
        """Start two runs in one folder at about the same time."""
        self.unbroken("train")
        self.restore()
        first = self.start()
        time.sleep(np.random.default_rng(seed).uniform(0, 3))
        second = self.start()
        clock = time.perf_counter()
        wait_for(lambda: {first.poll(), second.poll()} != {None}, None)
        seconds = time.perf_counter() - clock
        for process in (first, second):
            process.communicate(timeout=10 * LIMIT)
        error = (self.root / "stderr").read_text()
        ending = self.run("train")
        outcome, note = "recovered", error
        statuses = sorted([first.returncode, second.returncode])
        if statuses == [0, 1] and "is in use by process" not in error:
            outcome = "unnamed"
        elif statuses not in ([0, 0], [0, 1]) or "Traceback" in error:
            outcome = "traceback"
        elif found := self.difference("train", ending):
            outcome, note = "lost", found
        fault = f"two starts (seed {seed})"
        return Trial("train: two starts", fault, outcome, seconds, note)

    def end_of(self, process: subprocess.Popen, error: str) -> tuple[str, str]:
        """Return the outcome of a process that has ended, and its error."""
        if process.returncode in (0, -signal.SIGKILL):
            return "recovered", ""
        if process.returncode != 1 or "Traceback" in error:
            return "traceback", error
        return ("recovered" if is_sentence(error) else "unnamed"), error

    def damages(self, folder: str, *, seeds: int) -> list[tuple[str, str, int]]:
        """Return the damages to the files of a run: path, damage, seed."""
        paths = (p for p in sorted((self.home / folder).rglob("*")) if p.is_file())
        names = [str(p.relative_to(self.home)) for p in paths if p.name != ".lock"]
        return list(itertools.product(names, DAMAGES, range(seeds)))

    def damage(self, command: str, path: str, damage: str, seed: int) -> Trial:
        """Damage a file and run a command that may need it."""
        self.restore()
        rng = np.random.default_rng([seed, *f"{path} {damage}".encode()])
        DAMAGES[damage](self.root / path, rng)
        ending = self.run(command)
        outcome, note = "recovered", ""
        if ending.how == "error":
            outcome = "refused" if is_sentence(ending.error) else "unnamed"
            note = ending.error
        elif ending.how != "done":
            outcome, note = ending.how, ending.error
        elif found := self.difference(command, ending):
            outcome, note = "lost", found
            # What carries a digest may stay damaged until it is needed.
            if found == path and path.endswith((".safetensors", "config.json")):
                outcome = "recovered"
            elif found == path and f"{self.root / path}" in ending.error:
                outcome = "warned"
        fault = f"{path} {damage} (seed {seed}) before {command}"
        return Trial(f"damage, then {command}", fault, outcome, ending.seconds, note)

    def half_written(self, command: str) -> str:
        """Name a result that holds neither its old nor its new content."""
        if command in FOLDERS:  # A run holds what is between the two.
            return ""
        for name, new in self.unbroken(command)[1]["files"].items():
            path = self.root / name
            if path.exists() and content(path) not in (OLD, new):
                return name
        return ""

    def difference(self, command: str, ending: Ending) -> str:
        """Tell in what the result of a command differs from the unbroken one."""
        expected, found = self.unbroken(command)[1], self.result(command, ending)
        a, b = expected["files"], found["files"]
        differing = sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))
        # A checkpoint too many is none lost.
        differing = [n for n in differing if n in a or "/checkpoints/" not in n]
        if expected["printed"] != found["printed"]:
            differing.append("what it prints")
        return ", ".join(differing)


def draw_data(root: Path):
    """Draw coloured halves, so that the scores of a short run rise and fall."""
    rng = np.random.default_rng(SEED)
    colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    for split, length in (("train", 5), ("val", 3)):
        for i in range(length):
            label = np.repeat(rng.permutation(3)[:2], 16).astype(np.uint8)
            label = np.tile(label, (32, 1))
            image = colors[label] + rng.integers(-40, 40, (32, 32, 3))
            for name, picture in (("images", image), ("labels", label)):
                path = root / name / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture.astype(np.uint8)).save(path)


def counts(path: Path) -> bool:
    """Tell whether a file must be the same after any fault."""
    pictures = r"(results|errors|confusion|curves)[_.].*png"
    drawn = re.match(rf"{pictures}|(report|evaluation)[_.]", path.name)
    return not (drawn or path.name.startswith(".") or "tensorboard" in path.parts)


def content(path: Path) -> str:
    """Return the content of a file without what depends on the clock."""
    data = path.read_bytes()
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:  # The bytes of its program vary.
                named = {n: file[n].tobytes() for n in file.files if n != "program"}
            return repr(named)
        if path.name == "log.jsonl":
            records = map(json.loads, data.splitlines())
            known = [r for r in records if "changes" not in r]
            return repr([{k: r[k] for k in r if k not in TIMES} for r in known])
        if path.parent.name == "checkpoints":
            end = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:end])
            for digest in ("sha256", "log"):  # They tell of a damaged log, too.
                header["__metadata__"].pop(digest)
            data = repr(header).encode() + data[end:]
    except (ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile):
        pass
    return hashlib.sha256(data).hexdigest()


def is_sentence(error: str, path: Path | None = None) -> bool:
    """Tell whether an error is for users, and names a file or its folder."""
    found = re.search(r"^(?:fcn_jax [\w-]+|left out): (.*)", error, re.DOTALL | re.M)
    if not found or "Traceback" in error:
        return False
    if path is None or re.search(rf"{re.escape(str(path.parent))}[ :']", found[1]):
        return True
    # An unfinished file is named as it will be.
    name = re.sub(r"^\.(.+)\.[^.]+\.\d+\.tmp$", r"\1", path.name)
    return name in found[1]


def readers_of(process: int) -> list[int]:
    """Return the reading processes of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
            if parent == process and b"spawn_main" in command:
                found.append(int(stat.parent.name))
    return found


def is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition, process: subprocess.Popen | None):
    """Return a value once it is true; None after a while or when a process ends."""
    end = time.monotonic() + (LIMIT / 4 if process is None else 5 * LIMIT)
    while time.monotonic() < end:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.02)
    return None


@contextlib.contextmanager
def limited(seconds: float):
    """End what takes longer."""

    def end(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 2)  # Again if a clean-up hangs too.
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
