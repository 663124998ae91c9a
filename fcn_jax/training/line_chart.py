"""A line chart as SVG."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fcn_jax.markup import Html, element

# Steps and values.
Curve = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 40, 44  # Margins.
_MOST_POINTS = 300  # Of a curve; more are averaged.
_LOG_RATIO = 20  # Of the largest value to the smallest, for a logarithmic axis.


def line_chart(
    title: str, curves: Mapping[str, Curve], *, limits: tuple[float, float] | None
) -> Html:
    """Draw curves over the steps of a run.

    Args:
        title: says what the chart shows to those who cannot see it, too.
        curves: the steps and the values of each name. Curves are told apart by the
            classes "line0", "line1", ... of a style sheet.
        limits: lowest and highest value of the axis, or None for those of the curves,
            on a logarithmic axis where they differ much.

    Returns:
        An element, which takes the width of what it lies in.
    """
    curves = {name: _thinned(*curve) for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return element("p", f"{title}: nothing is logged yet.")
    steps = np.concatenate([steps for steps, _ in curves.values()])
    values = np.concatenate([values for _, values in curves.values()])
    low, high = limits or (values.min(), values.max())
    is_log = limits is None and 0 < _LOG_RATIO * low < high
    across = _scale(steps.min(), steps.max(), _LEFT, _WIDTH - _RIGHT)
    up = _scale(*_axis([low, high], is_log), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        *_grid(_ticks(low, high, is_log), lambda v: up(_axis([v], is_log)[0])),
        *_step_labels(_ticks(steps.min(), steps.max(), False), across),
    ]
    for i, (name, (at, heights)) in enumerate(curves.items()):
        xs, ys = across(at), up(_axis(heights, is_log))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(element("polyline", points=points, class_=f"line line{i}"))
        if len(xs) == 1:  # A line of one point cannot be seen.
            parts.append(element("circle", cx=xs[0], cy=ys[0], r=4, class_=f"dot{i}"))
        parts += _key(i, name)
    return element(
        "svg",
        element("title", f"{title}: {_in_words(curves)}"),
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
    )


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple:
    """Return a curve of fewer points, means of neighbours."""
    count = min(len(steps), _MOST_POINTS)
    return tuple(
        np.array([part.mean() for part in np.array_split(np.array(each, float), count)])
        for each in (steps, values)
    )


def _axis(values: Sequence[float], is_log: bool) -> np.ndarray:
    return np.log10(values) if is_log else np.asarray(values, float)


def _scale(low: float, high: float, start: float, end: float):
    """Return a function from values to places."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Return about five round numbers between two values."""
    if is_log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [m * 10.0**k for k in powers for m in (1, 2, 5)]
        inside = [t for t in ticks if low <= t <= high]
        return inside if len(inside) < 7 else inside[:: len(inside) // 4]
    if high <= low:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if rough <= m * power * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _grid(ticks: list[float], place) -> list[Html]:
    parts = []
    for tick in ticks:
        y = f"{place(tick):.1f}"
        parts += [
            element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"),
            element(
                "text", f"{tick:.4g}", x=_LEFT - 8, y=y, dy="0.35em", class_="left"
            ),
        ]
    return parts


def _step_labels(ticks: list[float], place) -> list[Html]:
    y = _HEIGHT - _BOTTOM + 20
    labels = [
        element("text", f"{t:,.10g}", x=f"{place(t):.1f}", y=y, class_="middle")
        for t in ticks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*labels, element("text", "step", x=middle, y=y + 19, class_="middle")]


def _key(i: int, name: str) -> list[Html]:
    x = _LEFT + 170 * i
    line = element("line", x1=x, x2=x + 30, y1=16, y2=16, class_=f"line line{i}")
    return [line, element("text", name, x=x + 38, y=16, dy="0.35em")]


def _in_words(curves: Mapping[str, Curve]) -> str:
    return "; ".join(
        f"{name} {values[0]:.4g} at step {steps[0]:.0f}, "
        f"{values[-1]:.4g} at step {steps[-1]:.0f}"
        for name, (steps, values) in curves.items()
    )
