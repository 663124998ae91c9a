"""Charts of numbers: learning curves, the confusion of classes and their shares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.files import replacing
from fcn_jax.visualize import Palette, colorize, shortened

_DPI = 100
_MOST_BARS = 50  # One above the other in class_chart.
_LONGEST_NAME = 24  # Letters of a class's name.
_MOST_NUMBERS = 25  # Classes of a confusion matrix with a number in each cell.
_MOST_NAMES = 60  # Classes of a chart that are named.
_SCORES = {"mean_iu": "mean IU", "pixel_accuracy": "pixel accuracy"}
_LETTERS = 12  # Size of letters in charts of a slide, in points.
_COLOR, _MARK = "tab:blue", "tab:orange"


def learning_curves(path: str | Path, records: Sequence[dict[str, Any]]) -> None:
    """Draw loss, learning rate and validation scores over the steps, as PNG.

    The step of the best mean IU is marked.

    Args:
        path: of the file, replaced as a whole.
        records: entries of a run's log: with "step", "loss" and "learning_rate" of
            training, with "step", "mean_iu", "pixel_accuracy" and "iu" (of each class)
            of validation; others are ignored. Of a step that a resumed run logged
            again, the last entry counts.
    """
    from matplotlib.figure import Figure

    figure = Figure((16, 9), layout="constrained")
    grid = figure.add_gridspec(4, 2)
    places = grid[:3, 0], grid[3, 0], grid[:2, 1], grid[2:, 1]
    panels = loss, rate, scores, classes = list(map(figure.add_subplot, places))
    _draw_loss(loss, *curve(records, "loss"))
    steps, rates = curve(records, "learning_rate")
    rate.plot(steps, rates, _style(steps), color=_COLOR, linewidth=2)
    best = _draw_scores(scores, {key: curve(records, key) for key in _SCORES})
    first = _draw_classes(figure, classes, records, best)
    titles = "training loss", "learning rate", "", "IU of each class"
    last = max((record["step"] for record in records), default=0)
    for panel, title in zip(panels, titles, strict=True):
        _set_style(panel, title)
        panel.set_xlabel("step", fontsize=_LETTERS)
        panel.set_xlim(first, 1.01 * max(last, 1))
        panel.xaxis.get_major_locator().set_params(integer=True)
        if panel is not classes:
            panel.grid(alpha=0.3)
        if best is not None:
            panel.axvline(best, color=_MARK, linestyle=":", linewidth=2, zorder=3)
    _save(figure, path)


def _set_style(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=_LETTERS + 3, loc="left")
    panel.tick_params(axis="x", labelsize=_LETTERS)
    panel.spines[["top", "right"]].set_visible(False)


def _style(steps: np.ndarray) -> str:
    return "-" if len(steps) > 1 else "o"  # A line of one point cannot be seen.


def _draw_loss(panel: Any, steps: np.ndarray, loss: np.ndarray) -> None:
    if not len(steps):
        return
    window = np.ones(min(max(1, len(loss) // 20), 100))
    # The window is cut at the ends of the curve.
    weight = np.convolve(np.ones(len(loss)), window, "same")
    smooth = np.convolve(loss, window, "same") / weight
    panel.plot(steps, loss, color=_COLOR, alpha=0.3, linewidth=1)
    panel.plot(steps, smooth, _style(steps), color=_COLOR, linewidth=2)
    if loss.min() > 0 and loss.max() > 20 * loss.min():
        panel.set_yscale("log")


def _draw_scores(
    panel: Any, curves: dict[str, tuple[np.ndarray, np.ndarray]]
) -> int | None:
    """Draw curves of scores; return the step of the best mean IU, if there is one."""
    panel.set_ylim(0, 1.03)
    panel.set_ylabel("validation", fontsize=_LETTERS)
    colors = {"mean_iu": _COLOR, "pixel_accuracy": "tab:gray"}
    for key, (steps, values) in curves.items():
        style = {"marker": "o", "markersize": 4, "color": colors[key]}
        panel.plot(steps, values, label=_SCORES[key], **style)
    steps, values = curves["mean_iu"]
    best = None
    if np.isfinite(values).any():
        at = int(np.nanargmax(values))
        best = int(steps[at])
        label = f"best: {values[at]:.3f} at step {best}"
        style = {"marker": "*", "markersize": 16, "linestyle": ""}
        panel.plot(best, values[at], label=label, color=_MARK, zorder=4, **style)
    # Above the panel the legend covers nothing.
    place = {"loc": "lower left", "bbox_to_anchor": (0, 0.98), "frameon": False}
    style = {"ncols": 3, "handlelength": 1, "columnspacing": 1}
    panel.legend(fontsize=_LETTERS, **place, **style)
    return best


def _draw_classes(
    figure: Any, panel: Any, records: Sequence[dict[str, Any]], best: int | None
) -> int:
    """Draw the IU of each class over the steps in shades, the best class on top.

    Returns:
        The left end of the axis.
    """
    found = {r["step"]: r["iu"] for r in records if r.get("iu")}
    panel.set_yticks([])
    if not found:
        return 0
    steps = sorted(found)
    last = found[best if best in found else steps[-1]]
    names = sorted(last, key=lambda name: last[name] or 0.0)
    values = [[found[step].get(name) for step in steps] for name in names]
    # A cell ends at the step of its evaluation.
    edges = [0, *steps] if steps[0] > 0 else [-max(1, steps[-1] // 50), *steps]
    rows = np.arange(len(names) + 1) - 0.5
    panel.set_facecolor("lightgrey")  # Classes that never occur have no IU.
    masked = np.ma.masked_invalid(np.array(values, float))
    shades = panel.pcolormesh(edges, rows, masked, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(shades, ax=panel, pad=0.01)
    if len(names) <= _MOST_NAMES:
        labels = [shortened(f"{name} {_score(last[name])}", 32) for name in names]
        size = min(_LETTERS, 290 / len(names))
        panel.set_yticks(range(len(names)), labels, fontsize=size, parse_math=False)
    return edges[0]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def curve(records: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of a log with a value, and the values, nan for None.

    Args:
        records: as for `learning_curves`.
        key: the name of the value.
    """
    points = {record["step"]: record[key] for record in records if key in record}
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps], float)


def confusion_chart(
    path: str | Path,
    confusion: np.ndarray,
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw what the pixels of each class were taken for, and the IU, as PNG.

    A row of the matrix has the shares of a true class, in per cent. Its cells have
    numbers up to 25 classes.

    Args:
        path: of the file, replaced as a whole.
        confusion: [C, C] integers, ``confusion[true, predicted]`` in pixels.
        class_names: C names.
        palette: as for `fcn_jax.colorize`, for the bars of the IU.
    """
    from matplotlib.figure import Figure

    confusion = np.asarray(confusion, float)
    count, true = len(confusion), confusion.sum(1)
    shares = np.full(confusion.shape, np.nan)
    np.divide(confusion, true[:, None], out=shares, where=true[:, None] > 0)
    figure = Figure((16, 9), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    matrix.set_facecolor("lightgrey")  # Classes that never occur have no shares.
    places = np.arange(count + 1) - 0.5
    shades = np.ma.masked_invalid(shares)
    matrix.pcolormesh(places, places, shades, vmin=0, vmax=1, cmap="Blues")
    matrix.set(ylim=(count - 0.5, -0.5))
    kind = "class" if count <= _MOST_NAMES else "class, by number"
    matrix.set_xlabel(f"predicted {kind}", fontsize=_LETTERS)
    matrix.set_ylabel(f"true {kind}", fontsize=_LETTERS)
    _set_style(matrix, "what each true class was taken for, in %")
    size = min(15, 290 / max(count, 1))
    if count <= _MOST_NUMBERS:
        _write_shares(matrix, shares, size)
    if count <= _MOST_NAMES:
        names = [shortened(name, _LONGEST_NAME) for name in class_names]
        style = {"fontsize": size, "parse_math": False}
        matrix.set_yticks(range(count), names, **style)
        matrix.set_xticks(range(count), names, rotation=45, ha="right", **style)
    _draw_iu(bars, confusion, colorize(np.arange(count), palette) / 255, size)
    _save(figure, path)


def _write_shares(panel: Any, shares: np.ndarray, size: float) -> None:
    """Write shares into the cells of a matrix, in per cent; leave out rounded zeros."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            place = {"ha": "center", "va": "center_baseline"}
            text = f"{100 * share:.0f}"
            panel.text(column, row, text, color=color, fontsize=size, **place)


def _draw_iu(
    panel: Any, confusion: np.ndarray, colors: np.ndarray, size: float
) -> None:
    right = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - right
    iu = np.divide(right, union, out=np.zeros(len(right)), where=union > 0)
    panel.barh(range(len(iu)), iu, 0.6, color=colors, edgecolor="grey")
    _set_style(panel, "IU of each class")
    panel.set(xlim=(0, 1.1), xticks=np.arange(0, 1.01, 0.2))
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    if len(iu) <= _MOST_NAMES:
        for i, value in enumerate(iu):
            text = f" {value:.2f}" if union[i] else " never occurs"
            panel.text(value, i, text, va="center_baseline", fontsize=size)


def _save(figure: Any, path: str | Path) -> None:
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=_DPI)


def class_chart(
    path: str | Path,
    shares: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw each class's share of the labelled pixels, largest first, as PNG.

    Bars of one split have the classes' colours, those of several the splits'. The
    axis is logarithmic where shares differ more than a hundredfold.

    Args:
        path: of the file, replaced as a whole.
        shares: of one or more splits, [C] each; those of the first give the order.
        class_names: C names.
        palette: as for `fcn_jax.colorize`.
    """
    from matplotlib.figure import Figure

    splits, shares = list(shares), np.array(list(shares.values()))  # [S, C]
    order = np.argsort(-shares[0], kind="stable")
    parts = np.array_split(order, -(-len(order) // _MOST_BARS))
    rows = len(parts[0])
    height = 1 + rows * (0.1 + 0.11 * len(shares))
    figure = Figure((1 + 4.5 * len(parts), height), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for panel, part in zip(panels, parts, strict=True):
        panel.set(**_share_axis(shares), ylim=(rows - 0.4, -0.6))
        panel.xaxis.set_major_formatter(_percent)
        _draw_shares(panel, shares[:, part], colorize(part, palette) / 255)
        names = [shortened(class_names[i], _LONGEST_NAME) for i in part]
        panel.set_yticks(range(len(part)), names, fontsize=8, parse_math=False)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("share of each class in the pixels that are not void", fontsize=11)
    if len(splits) > 1:
        _add_legend(figure, splits)
    _save(figure, path)


def _add_legend(figure: Any, splits: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    legend = figure.legend(
        [Patch(facecolor=f"C{i}", edgecolor="grey") for i in range(len(splits))],
        ["-" for _ in splits],
        loc="outside lower center",
        ncols=len(splits),
        fontsize=8,
        frameon=False,
    )
    # Names go in late: matplotlib drops labels like "_val" from a legend.
    for text, name in zip(legend.get_texts(), splits, strict=True):
        text.set(text=name, parse_math=False)


def _share_axis(shares: np.ndarray) -> dict[str, Any]:
    """Return scale and limits of an axis for the shares, with room for a number."""
    occurring = shares[shares > 0]
    low, high = (occurring.min(), occurring.max()) if occurring.size else (1, 1)
    if high <= 100 * low:
        return {"xscale": "linear", "xlim": (0, 1.15 * high)}
    left = 10 ** np.floor(np.log10(low / 1.5))
    return {"xscale": "log", "xlim": (left, high * (high / left) ** 0.15)}


def _draw_shares(panel: Any, shares: np.ndarray, colors: np.ndarray) -> None:
    """Draw bars of [S, C] shares, in the classes' [C, 3] colours if S is 1."""
    left, _ = panel.get_xlim()
    thickness = 0.8 / len(shares)
    for i, row in enumerate(shares):
        y = np.arange(len(row)) + thickness * (i - (len(shares) - 1) / 2)
        color = f"C{i}" if len(shares) > 1 else colors
        panel.barh(y, row, thickness, color=color, edgecolor="grey", linewidth=0.5)
        for share, at in zip(row, y, strict=True):
            panel.annotate(
                _percent(share) if share else "never",
                (max(share, left), at),
                xytext=(2, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=6,
                color="black" if share else "crimson",
            )


def _percent(share: float, _: Any = None) -> str:
    return f"{100 * share:.3g}%"
