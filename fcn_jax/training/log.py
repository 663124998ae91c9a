"""The log of a run: JSON lines, TensorBoard events and a progress bar."""

import collections
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fcn_jax.files import replacing

# Steps between taking metrics and reading them. Reading at once would make the host
# wait for the device, and then the device for the host.
LAG = 2
LOG_FILE = "log.jsonl"  # In a run directory.


class Log:
    """Write ``log.jsonl`` and TensorBoard events into a run directory.

    Args:
        workdir: the run directory.
        start_step: the step that the run begins or resumes at. Later records, which an
            interrupted run left, are dropped, because their steps are run again.
        silent: whether to write nothing, for all processes of a run but one.
    """

    def __init__(self, workdir: Path, *, start_step: int, silent: bool = False):
        self.path = workdir / LOG_FILE
        self._silent = silent
        if silent:
            return
        records = [r for r in read_log(self.path) if r["step"] <= start_step]
        write_records(self.path, records)
        self._file = self.path.open("a")
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )

    def scalars(self, step: int, values: dict[str, float], *, prefix: str) -> None:
        """Log the numbers of a step, in TensorBoard under ``prefix``."""
        if self._silent:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            # tensorboardX prints a warning for each NaN.
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{prefix}/{name}", value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log a picture, [H, W, 3] uint8 RGB, to TensorBoard."""
        if not self._silent:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Close both files."""
        if not self._silent:
            self._file.close()
            self._board.close()


class Meter:
    """Read the metrics of steps late, check them and log them at intervals.

    Args:
        log: receives the means since its last line.
        bar: shows them.
        schedule: ``step -> learning rate``, for the log.
        batch_size: images per step.
        every: steps between lines of the log.
    """

    def __init__(
        self,
        log: Log,
        bar: tqdm,
        *,
        schedule: optax.Schedule,
        batch_size: int,
        every: int,
    ):
        self._log, self._bar, self._schedule = log, bar, schedule
        self._batch_size, self._every = batch_size, every
        self._pending: collections.deque = collections.deque()
        self._since_last_line: list[dict] = []
        self._compiles = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count images per second from now on."""
        self._clock, self._waited = time.perf_counter(), 0.0

    def add(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        *,
        waited: float = 0.0,
        compiles: int = 1,
    ) -> None:
        """Take the metrics of a step and read those of an earlier one.

        Args:
            step: the number of the step.
            metrics: as `make_train_step` returns them.
            waited: seconds that the step waited for its batch.
            compiles: programs that the run has compiled so far.

        Raises:
            FloatingPointError: if the metrics of the earlier step are not finite.
        """
        self._pending.append((step, metrics, waited, compiles))
        if len(self._pending) > LAG:
            self._read()

    def drain(self) -> None:
        """Read all pending metrics; raise as `add` does."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        step, metrics, waited, self._compiles = self._pending.popleft()
        self._waited += waited
        metrics = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise FloatingPointError(
                    f"the {name} is {metrics[name]} at step {step}. Earlier "
                    "checkpoints are kept. A lower learning rate or a warm-up often "
                    "helps"
                )
        self._since_last_line.append(metrics)
        self._bar.update(step - self._bar.n)
        if step % self._every == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        steps, seconds = len(self._since_last_line), time.perf_counter() - self._clock
        sums = {
            name: sum(metrics[name] for metrics in self._since_last_line)
            for name in ("loss", "loss_count", "correct", "pixels", "grad_norm")
        }
        pixels = max(sums["pixels"], 1)
        values = {
            "loss": sums["loss"] / max(sums["loss_count"], 1),
            # An evaluation logs "pixel_accuracy".
            "train_pixel_accuracy": sums["correct"] / pixels,
            "grad_norm": sums["grad_norm"] / steps,
            "learning_rate": float(self._schedule(step - 1)),
            "images_per_second": steps * self._batch_size / seconds,
            # As a share of the time; near 0 if reading keeps up with the device.
            "waited_for_data": self._waited / seconds,
            "compiles": self._compiles,
        }
        self._log.scalars(step, values, prefix="train")
        speed = f"{values['images_per_second']:.3g}"
        self._bar.set_postfix({"loss": f"{values['loss']:.4f}", "images/s": speed})
        self._since_last_line.clear()
        self.restart_clock()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``log.jsonl``, or [] if the file does not exist.

    The last line is left out if an interruption cut it short.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a ``log.jsonl``, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text("".join(json.dumps(r) + "\n" for r in records))
