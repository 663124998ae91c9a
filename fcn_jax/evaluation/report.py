"""The figures of an evaluation as a table, as files, and beside published ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_jax.charts import confusion_chart
from fcn_jax.evaluation.evaluate import Evaluation, evaluate_example
from fcn_jax.files import write_csv, write_json
from fcn_jax.network import Network
from fcn_jax.rows import Row, results_figure

_ROWS = 4  # Examples in a picture.
_LONGEST_SIDE = 600  # Of an example that is kept for a picture, in pixels.
SCORES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "frequency-weighted IU",
}

# The released networks on seg11valid, in per cent, in the order of SCORES. Reference:
# the README of github.com/shelhamer/fcn.berkeleyvision.org.
PUBLISHED_SPLIT = "seg11valid"
PUBLISHED_FIGURES = {
    "fcn32s-heavy-pascal": (90.4810, 76.4824, 63.6261, 83.4580),
    "fcn16s-heavy-pascal": (90.9971, 78.0710, 65.0050, 84.2614),
    "fcn8s-heavy-pascal": (91.2212, 77.6146, 65.5126, 84.5445),
    "fcn8s-atonce-pascal": (91.1288, 78.4979, 65.3998, 84.4326),
}


def table(figures: dict[str, Any]) -> str:
    """Return the figures of an `Evaluation` as lines to print, in per cent."""

    def percent(value: float | None) -> str:
        return "     -" if value is None else f"{100 * value:6.2f}"

    rows = [(name, figures[score]) for score, name in SCORES.items()]
    rows += [(f"  IU {name}", value) for name, value in figures["iu"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}} {percent(value)}" for name, value in rows)


def beside_published(name: str, split: str, figures: dict[str, Any]) -> str:
    """Return the four figures of a released network beside the published ones.

    Args:
        name: of the network, as in `PUBLISHED_FIGURES`.
        split: that was evaluated.
        figures: of an `Evaluation`.

    Returns:
        Lines to print, or "" where nothing was published.
    """
    if name not in PUBLISHED_FIGURES or split != PUBLISHED_SPLIT:
        return ""
    lines = [f"{'':<23}{'here':>9}{'published':>11}{'difference':>12}"]
    published = zip(SCORES.items(), PUBLISHED_FIGURES[name], strict=True)
    for (score, title), there in published:
        here = 100 * (figures[score] or 0.0)
        lines.append(f"{title:<23}{here:9.4f}{there:11.4f}{here - there:+12.4f}")
    return "\n".join(lines)


def write_confusion(path: Path, evaluation: Evaluation) -> None:
    """Write a confusion matrix as CSV, a row for each true class, in pixels."""
    names, confusion = evaluation.class_names, evaluation.confusion
    rows = [(name, *row) for name, row in zip(names, confusion.tolist(), strict=True)]
    write_csv(path, [("true \\ predicted", *names), *rows])


def write_report(
    folder: Path, net: Network, source: Any, evaluation: Evaluation, *, suffix: str = ""
) -> None:
    """Write metrics.json and the pictures of `draw_results`.

    Args:
        folder: where to write.
        net: the network that was evaluated.
        source: the images that it was evaluated on.
        evaluation: what `evaluate` returned.
        suffix: comes before the dot, to tell several evaluations in one folder apart.
    """
    # The pictures first: metrics.json tells that the report is complete.
    draw_results(folder, net, source, evaluation, suffix=suffix)
    write_json(folder / f"metrics{suffix}.json", evaluation.figures)


def draw_results(
    folder: Path, net: Network, source: Any, evaluation: Evaluation, *, suffix: str = ""
) -> None:
    """Write results.png, errors.png and confusion.png.

    The first shows images of all qualities, the second the worst ones. Only these are
    read and predicted again, one by one. Takes what `write_report` does.
    """
    names, scores = evaluation.class_names, evaluation.scores
    chosen = {"results": typical_images(scores), "errors": worst_images(scores)}
    images = {i for indices in chosen.values() for i in indices}
    rows = {i: _row(net, source, scores, i) for i in sorted(images)}
    for name, indices in chosen.items():
        path = folder / f"{name}{suffix}.png"
        shown = [rows[i] for i in indices]
        results_figure(path, shown, names, palette=net.palette)
    path = folder / f"confusion{suffix}.png"
    confusion_chart(path, evaluation.confusion, names, palette=net.palette)


def typical_images(scores: Sequence[float | None]) -> list[int]:
    """Choose images of all qualities: at equal steps between the best and the worst.

    Neighbours may be frames of one video, so two images lie more than a sixteenth of
    the split apart.

    Args:
        scores: the mean IU of each image, or None where it has no labelled pixel.

    Returns:
        Four indices, the best image first, or fewer if the split has fewer images.
    """
    ranked = _candidates(scores)
    chosen: list[int] = []
    for i in range(_ROWS):
        wanted = (2 * i + 1) * len(ranked) // (2 * _ROWS)
        near = sorted(range(len(ranked)), key=lambda place: abs(place - wanted))
        _add_apart(chosen, [ranked[place] for place in near], len(scores))
    return sorted(chosen, key=ranked.index)


def worst_images(scores: Sequence[float | None]) -> list[int]:
    """Choose the worst images, the very worst first, apart as in `typical_images`."""
    chosen: list[int] = []
    for _ in range(_ROWS):
        _add_apart(chosen, _candidates(scores)[::-1], len(scores))
    return chosen


def ranked_images(scores: Sequence[float | None]) -> list[int]:
    """Return the indices of the images that have a score, the best first."""
    known = [i for i, score in enumerate(scores) if score is not None]
    return sorted(known, key=lambda i: -scores[i])


def _candidates(scores: Sequence[float | None]) -> list[int]:
    """Return the images by rank; without any score, all."""
    return ranked_images(scores) or list(range(len(scores)))


def _add_apart(chosen: list[int], wanted: Sequence[int], length: int) -> None:
    """Add the first of the wanted indices that lies apart from all that are chosen."""
    gap = length // (4 * _ROWS)
    for i in wanted:
        if all(abs(i - other) > gap for other in chosen):
            chosen.append(i)
            return


def _row(net: Network, source: Any, scores: Sequence[float | None], i: int) -> Row:
    """Return an image of a source with its prediction, made small for a picture."""
    example = evaluate_example(net, source, i)
    note = "no labelled pixel"
    if scores[i] is not None:
        ranked = ranked_images(scores)
        rank = f"rank {ranked.index(i) + 1} of {len(ranked)}"
        note = f"mean IU {scores[i]:.2f}\n{rank}"
    return Row(example.name, note, *example.shrunk(_LONGEST_SIDE)[1:])
