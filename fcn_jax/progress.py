"""What a command shows while it works: bars on a terminal, plain lines elsewhere.

All of it goes to the standard error. A bar moves the cursor, which would fill a log
file or a pipe with control characters, so a plain line now and then takes its place.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

INTERVAL = 15.0  # Seconds between plain lines.

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Tell whether the standard error is a terminal."""
    return sys.stderr.isatty()


def say(line: str) -> None:
    """Write a line to the standard error, above any bars."""
    tqdm.write(line, file=sys.stderr)


class Progress:
    """Show how far some work is; use it as a context, which removes the bar at its end.

    Args:
        title: what is done, such as "evaluate".
        total: how many units there are, or None if that is unknown.
        unit: the name of a unit, or "B" for bytes.
        initial: how many are done already.
        shown: whether to show anything.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        unit: str,
        initial: int = 0,
        shown: bool = True,
    ):
        self._title, self._total, self._unit = title, total, unit
        self._first = self._done = initial
        self._start = self._last = time.monotonic()
        self._is_plain = shown and not on_terminal()
        self._bar = tqdm(
            desc=title,
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            initial=initial,
            leave=False,
            dynamic_ncols=True,
            disable=not shown or self._is_plain,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """Count units that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._is_plain and now - self._last >= INTERVAL:
            self._last = now
            say(self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        amount, unit = (size, "") if self._unit == "B" else (str, f" {self._unit}s")
        line = f"{self._title}: {amount(self._done)}"
        rate = (self._done - self._first) / seconds
        if self._total is None or not rate:
            return line + unit
        left = tqdm.format_interval((self._total - self._done) / rate)
        return f"{line} of {amount(self._total)}{unit}, {left} left"


def track(
    items: Iterable[Item],
    title: str,
    total: int | None,
    *,
    unit: str,
    shown: bool = True,
) -> Iterator[Item]:
    """Yield the items and show how many are done; arguments as for `Progress`."""
    with Progress(title, total, unit=unit, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()


def size(count: float) -> str:
    """Return a number of bytes to read, such as "1.23 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
