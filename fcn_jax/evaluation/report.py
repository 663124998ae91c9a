"""The figures of an evaluation as a table, as files, and beside published ones."""

import csv
from pathlib import Path
from typing import Any

from fcn_jax.evaluation.evaluate import Evaluation
from fcn_jax.files import replacing, write_json
from fcn_jax.network import Palette
from fcn_jax.visualize import results_figure

RESULT_ROWS = 10  # Examples shown in the picture of the results.
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
    with (
        replacing(path) as unfinished,
        open(unfinished, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        for name, row in zip(names, confusion.tolist(), strict=True):
            writer.writerow([name, *row])


def write_report(
    folder: Path, evaluation: Evaluation, *, palette: Palette = (), suffix: str = ""
) -> None:
    """Write metrics.json and results.png.

    Args:
        folder: where to write.
        evaluation: with the examples to show.
        palette: one RGB colour for each class, or () for VOC's colours.
        suffix: comes before the dot, to tell several evaluations in one folder apart.
    """
    # The picture first: metrics.json tells that the report is complete.
    draw_results(folder, evaluation, palette=palette, suffix=suffix)
    write_json(folder / f"metrics{suffix}.json", evaluation.figures)


def draw_results(
    folder: Path, evaluation: Evaluation, *, palette: Palette = (), suffix: str = ""
) -> None:
    """Write results.png as `write_report` does."""
    results_figure(
        folder / f"results{suffix}.png",
        evaluation.examples,
        evaluation.class_names,
        palette=palette,
    )
