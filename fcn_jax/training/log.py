"""The log of a run: JSON lines to compute with, TensorBoard and a bar to look at."""

import collections
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fcn_jax.files import replacing

# Steps whose metrics are still on their way. Reading them at once would make the host
# wait for the device, and the device then for the host.
LAG = 2


class Log:
    """Writes ``log.jsonl`` and TensorBoard events into a run directory.

    Args:
        workdir: the run directory.
        start_step: where the run begins or resumes; what an interrupted run logged
            beyond it is dropped, for it will be logged again.
        silent: writes nothing: of several processes, one logs.
    """

    def __init__(self, workdir: Path, *, start_step: int, silent: bool = False):
        self.path = workdir / "log.jsonl"
        self._silent = silent
        if silent:
            return
        records = [r for r in read_log(self.path) if r["step"] <= start_step]
        with replacing(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(r) + "\n" for r in records))
        self._file = self.path.open("a")
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )

    def scalars(self, step: int, values: dict[str, float], *, prefix: str) -> None:
        """Logs numbers of a step, in TensorBoard under ``prefix``."""
        if self._silent:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            # No NaN: tensorboardX would print a warning for each.
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{prefix}/{name}", value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture, [H, W, 3] uint8, to TensorBoard."""
        if self._silent:
            return
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Ends both files."""
        if self._silent:
            return
        self._file.close()
        self._board.close()


class Meter:
    """Reads the metrics of steps late, checks them, and logs them every so often.

    Args:
        log: receives the means since its last line.
        bar: shows them.
        schedule: the learning rate, for the log.
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
        self._read_since: list[dict] = []
        self._compiles = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of images/s what time went by until now."""
        self._clock, self._waited = time.perf_counter(), 0.0

    def add(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        *,
        waited: float = 0.0,
        compiles: int = 1,
    ) -> None:
        """Takes the metrics of a step; reads those of an earlier one.

        Args:
            step: its number.
            metrics: of the step.
            waited: seconds that went by until its batch was there.
            compiles: how many programs the run has compiled for its batches so far.
        Raises:
            FloatingPointError: if the earlier one's are not finite.
        """
        self._pending.append((step, metrics, waited, compiles))
        if len(self._pending) > LAG:
            self._read()

    def drain(self) -> None:
        """Reads all that is left, raising as `add`."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        step, metrics, waited, self._compiles = self._pending.popleft()
        self._waited += waited
        metrics = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise FloatingPointError(
                    f"the {name} is {metrics[name]} at step {step}. What was saved "
                    "before is kept. A lower config.optim.learning_rate or a warm-up "
                    "(config.optim.warmup_steps) often helps"
                )
        self._read_since.append(metrics)
        self._bar.update(step - self._bar.n)
        if step % self._every == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        def total(name: str) -> float:
            return sum(metrics[name] for metrics in self._read_since)

        seconds = time.perf_counter() - self._clock
        pixels = max(total("pixels"), 1)
        values = {
            "loss": total("loss") / pixels,
            # Not "pixel_accuracy", which is that of an evaluation.
            "train_pixel_accuracy": total("correct") / pixels,
            "grad_norm": total("grad_norm") / len(self._read_since),
            "learning_rate": float(self._schedule(step - 1)),
            "images_per_second": len(self._read_since) * self._batch_size / seconds,
            # Of the time; near 0 where reading keeps up with the device.
            "waited_for_data": self._waited / seconds,
            "compiles": self._compiles,
        }
        self._log.scalars(step, values, prefix="train")
        speed = f"{values['images_per_second']:.3g}"
        self._bar.set_postfix({"loss": f"{values['loss']:.4f}", "images/s": speed})
        self._read_since.clear()
        self.restart_clock()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl``, none where there is no file.

    A last line that an interruption cut short is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
