"""The log of a run: JSON lines and TensorBoard events, and the meter of its steps."""

import collections
import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fcn_jax.files import reading, replacing, writing
from fcn_jax.training.display import Display
from fcn_jax.training.events import Events

# Steps between taking metrics and reading them. Reading at once would make the host
# wait for the device, and then the device for the host.
LAG = 2
LOG_FILE = "log.jsonl"  # In a run directory.
TIMES = ("images_per_second", "waited_for_data")  # What depends on the clock.
_SUMMED = ("loss", "loss_count", "correct", "pixels", "grad_norm")

_log = logging.getLogger("fcn_jax")


class Log:
    """Write ``log.jsonl`` and TensorBoard events into a run directory.

    Args:
        workdir: the run directory.
        start_step: the step that the run begins or resumes at. Later records, which an
            interrupted run left, are dropped, because their steps are run again.
        silent: whether to write nothing, for all processes of a run but one.

    Raises:
        WriteError: if ``log.jsonl`` cannot be written.
    """

    def __init__(self, workdir: Path, *, start_step: int, silent: bool = False):
        self.path = workdir / LOG_FILE
        self._silent = silent
        if silent:
            return
        records = [r for r in read_log(self.path) if r["step"] <= start_step]
        write_records(self.path, records)
        self._hash = hashlib.sha256(_timeless(records))
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        self._events = Events(workdir / "tensorboard", start_step=start_step)

    def scalars(self, step: int, values: dict[str, Any], *, prefix: str) -> None:
        """Log the numbers of a step, in TensorBoard under ``prefix``."""
        if self._silent:
            return
        record = {"step": step, **values}
        with writing(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._hash.update(_timeless([record]))
        self._events.scalars(step, values, prefix=prefix)

    def text(self, step: int, name: str, text: str) -> None:
        """Log a text in Markdown to TensorBoard."""
        if not self._silent:
            self._events.text(step, name, text)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log a picture, [H, W, 3] uint8 RGB, to TensorBoard."""
        if not self._silent:
            self._events.image(step, name, image)

    @property
    def digest(self) -> str:
        """The digest of all records, as `digest_of` returns it."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close both files."""
        if not self._silent:
            self._events.close()
            # All lines are on the disk. After a failed one, closing fails once more.
            with contextlib.suppress(OSError):
                self._file.close()


class _Step(NamedTuple):
    """A step whose metrics are not read yet; times are those of `time.perf_counter`."""

    number: int
    metrics: Mapping[str, jax.Array]
    rate: Any  # The learning rate, for the steps that get a line.
    shapes: int  # Batches of different shapes up to this step.
    compiled: bool  # Whether its shape is new to this process.
    asked: float  # When the step began to wait for its batch, and when it had it.
    got: float
    done: Future[float]  # When the device was done with it.


class Meter:
    """Read the metrics of steps late, check them and log them at intervals.

    Use it as a context, which ends its thread.

    Args:
        log: receives the means since its last line.
        display: shows them.
        schedule: ``step -> learning rate``, for the log.
        batch_size: images per step.
        every: steps between lines of the log.
        progress: what `progress` of an earlier process of the run returned.
    """

    def __init__(
        self,
        log: Log,
        display: Display,
        *,
        schedule: optax.Schedule,
        batch_size: int,
        every: int,
        progress: Mapping[str, Any] | None = None,
    ):
        self._log, self._display, self._schedule = log, display, schedule
        self._batch_size, self._every = batch_size, every
        self._pending: collections.deque[_Step] = collections.deque()
        none = {"steps": 0, "sums": dict.fromkeys(_SUMMED, 0.0), "shapes": ()}
        before = progress or none
        self._steps, self._sums = before["steps"], dict(before["sums"])
        self._shapes = set(map(tuple, before["shapes"]))
        self._compiled: set[tuple[int, ...]] = set()  # By this process.
        # A thread sees when the device is done, which this one may learn late.
        self._watch = ThreadPoolExecutor(1)
        self._start_interval()
        self.restart_clock()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.shutdown()

    @property
    def progress(self) -> dict[str, Any]:
        """What the next line of the log needs from the steps so far, for JSON."""
        shapes = sorted(self._shapes)
        return {"steps": self._steps, "sums": self._sums, "shapes": shapes}

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the log."""
        self._free = time.perf_counter()  # Since when the device has nothing to do.

    def add(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        *,
        shape: tuple[int, ...],
        asked: float,
        got: float,
    ) -> None:
        """Take the metrics of a step and read those of an earlier one.

        Args:
            step: the number of the step.
            metrics: as `make_train_step` returns them.
            shape: the shape of its images; the step is compiled once for each.
            asked: when the step began to wait for its batch, in the seconds of
                `time.perf_counter`.
            got: when it had its batch.

        Raises:
            FloatingPointError: if the metrics of the earlier step are not finite.
        """
        self._shapes.add(shape)
        # Computed now, since the device computes in order: later, it would have to
        # finish the steps in between first.
        rate = self._schedule(step - 1) if step % self._every == 0 else None
        done = self._watch.submit(_time_when_done, metrics["loss"])
        shapes, compiled = len(self._shapes), shape not in self._compiled
        self._compiled.add(shape)
        self._pending.append(
            _Step(step, metrics, rate, shapes, compiled, asked, got, done)
        )
        if len(self._pending) > LAG:
            self._read()

    def drain(self) -> None:
        """Read all pending metrics; raise as `add` does."""
        while self._pending:
            self._read()

    def _start_interval(self) -> None:
        # Lines after a resumption tell the speed of this process alone.
        self._timed, self._seconds, self._waited = 0, 0.0, 0.0

    def _read(self) -> None:
        step = self._pending.popleft()
        done = step.done.result()
        seconds = done - self._free
        self._timed += 1
        self._seconds += seconds
        # Without a batch, the device waits from the end of the step before.
        self._waited += max(0.0, step.got - max(step.asked, self._free))
        self._free = done
        metrics = {name: float(step.metrics[name]) for name in _SUMMED}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise FloatingPointError(
                    f"the {name} is {metrics[name]} at step {step.number}. Earlier "
                    "checkpoints are kept. A lower learning rate or a warm-up often "
                    "helps"
                )
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] += value
        self._display.step(step.number, seconds, compiled=step.compiled)
        if step.rate is not None:
            self._write(step)

    def _write(self, step: _Step) -> None:
        sums, seconds = self._sums, max(self._seconds, 1e-9)
        values = {
            "loss": sums["loss"] / max(sums["loss_count"], 1),
            # An evaluation logs "pixel_accuracy".
            "train_pixel_accuracy": sums["correct"] / max(sums["pixels"], 1),
            "grad_norm": sums["grad_norm"] / self._steps,
            "learning_rate": float(step.rate),
            "images_per_second": self._timed * self._batch_size / seconds,
            # As a share of the time; near 0 if reading keeps up with the device.
            "waited_for_data": self._waited / seconds,
            "compiles": step.shapes,
        }
        self._log.scalars(step.number, values, prefix="train")
        self._display.figures(values)
        self._steps, self._sums = 0, dict.fromkeys(_SUMMED, 0.0)
        self._start_interval()


def _time_when_done(array: jax.Array) -> float:
    array.block_until_ready()
    return time.perf_counter()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``log.jsonl``, or [] if the file does not exist.

    The last line is left out if an interruption cut it short, and a damaged line with
    a warning.
    """
    records, damaged = parse_log(path) if path.exists() else ([], [])
    for number in damaged:
        _log.warning("%s: line %d is damaged and left out", path, number)
    return records


def parse_log(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the records of a ``log.jsonl`` and the numbers of its damaged lines."""
    with reading(path):
        *lines, _ = path.read_bytes().split(b"\n")
    found = list(map(_record, lines))
    damaged = [i for i, record in enumerate(found, start=1) if record is None]
    return [record for record in found if record is not None], damaged


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    numbers = (v for name, v in record.items() if name not in ("iu", "changes"))
    return record if all(map(_is_number, numbers)) else None


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number that float64 can hold, or None for none."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, float)


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a ``log.jsonl``, whole or not at all."""
    with replacing(path, durable=True) as unfinished:
        unfinished.write_bytes(_lines(records))


def records_at(records: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return what a log held when the checkpoint of a step was saved.

    Changes of the config after that step, which have its number, came later.
    """
    return [
        r
        for r in records
        if r["step"] < step or r["step"] == step and "changes" not in r
    ]


def digest_of(records: Sequence[dict[str, Any]]) -> str:
    """Return a SHA-256 of records without their times.

    Two runs of one config differ in their times alone.
    """
    return hashlib.sha256(_timeless(records)).hexdigest()


def _timeless(records: Sequence[dict[str, Any]]) -> bytes:
    return _lines([{k: v for k, v in r.items() if k not in TIMES} for r in records])


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
