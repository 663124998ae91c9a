"""How far a run is: one bar on a terminal, a line now and then elsewhere."""

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from fcn_jax import progress
from fcn_jax.progress import say, size
from fcn_jax.training.config import Config, steps_per_epoch

_LATEST = 50  # The time of a step is a mean over about so many.
_BAR = 8  # Columns for the bar, at least.


class Display:
    """Show how far a run is; use it as a context, which ends the bar.

    The time left is that of the steps, at their latest pace, and of the evaluations,
    each as long as the last one. Steps that compile a program are left out.

    Args:
        config: the config of the run, with its steps.
        examples: the number of training images.
        start: the step that this process begins at.
        best: mean IU of the best network so far, or None.
        shown: whether to show anything.

    Attributes:
        best: the same, to be set after an evaluation.
    """

    def __init__(
        self,
        config: Config,
        examples: int,
        start: int,
        *,
        best: float | None = None,
        shown: bool = True,
    ):
        self._config, self._examples, self._step = config, examples, start
        self._evaluated = start // config.eval_every
        self._timed, self._pace = 0, 0.0
        self._pause: float | None = None
        self._figures = ["compiling"]
        self.best = best
        self._is_plain = shown and not progress.on_terminal()
        self._bar = tqdm(
            initial=start,
            total=config.steps,
            bar_format="{desc}",
            dynamic_ncols=True,
            disable=not shown or self._is_plain,
        )
        self._refresh()
        self._bar.refresh()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def step(self, step: int, seconds: float, *, compiled: bool) -> None:
        """Take the time of a step, and whether that included a compilation."""
        self._step = step
        if not compiled:
            self._timed += 1
            if self._timed == 1:
                self._figures = []
            self._pace += (seconds - self._pace) / min(self._timed, _LATEST)
        self._refresh()
        self._bar.update(step - self._bar.n)

    def figures(self, values: Mapping[str, float]) -> None:
        """Show the figures that a line of the log has after the latest step."""
        self._figures = [
            f"loss {values['loss']:.4g}",
            f"{values['images_per_second']:.3g} images/s",
            f"rate {values['learning_rate']:.3g}",
            *([f"memory {size(used)}"] if (used := memory_in_use()) else []),
        ]
        self._refresh()
        if self._is_plain:
            figures = ", ".join(self._with_best())
            say(
                f"step {self._step} of {self._config.steps}, {self._epoch()}: "
                f"{figures}, {self.time_left()} left"
            )

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Take the time of an evaluation after the latest step."""
        clock = time.perf_counter()
        yield
        self._pause = time.perf_counter() - clock
        self._evaluated = math.ceil(self._step / self._config.eval_every)
        self._refresh()

    def time_left(self) -> str:
        """Return the expected time, such as "01:35" or "01:20 + 2 evaluations"."""
        if not self._timed:
            return "?"
        config = self._config
        steps = config.steps - self._step
        evaluations = math.ceil(config.steps / config.eval_every) - self._evaluated
        left = steps * self._pace + evaluations * (self._pause or 0.0)
        text = tqdm.format_interval(left)
        if self._pause is None and evaluations:
            plural = "s" if evaluations > 1 else ""
            text += f" + {evaluations} evaluation{plural}"
        return text

    def _epoch(self) -> str:
        """Return the pass over the images that the latest step belongs to."""
        length = steps_per_epoch(self._config, self._examples)
        passes = (math.ceil(n / length) for n in (self._step, self._config.steps))
        return "epoch {}/{}".format(*(max(1, n) for n in passes))

    def _with_best(self) -> list[str]:
        best = [] if self.best is None else [f"best IU {self.best:.3f}"]
        return self._figures[:2] + best + self._figures[2:]

    def _refresh(self) -> None:
        """Set what the bar shows: as many of the figures as the terminal is wide."""
        if self._bar.disable:
            return
        step = f"{self._epoch()}, {self._step}/{self._config.steps}"
        room = (self._bar.format_dict["ncols"] or 80) - len(step) - _BAR
        shown = [f"{self.time_left()} left", *self._with_best()]
        while len(shown) > 1 and len(", ".join(shown)) > room:
            shown.pop()
        self._bar.bar_format = f"{step} |{{bar}}| {', '.join(shown)}"


def memory_in_use() -> int:
    """Return bytes: the most that a device has used, or on a CPU what the process has.

    It is 0 where the system does not tell.
    """
    if stats := jax.local_devices()[0].memory_stats():
        return stats.get("peak_bytes_in_use", 0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
