"""The figures of an evaluation as a dictionary, a table and files."""

import csv
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.evaluation.evaluate import Kept, evaluate, spread
from fcn_jax.evaluation.metrics import iu_per_class, summarize
from fcn_jax.files import replacing, write_json
from fcn_jax.inference.buckets import predict_many
from fcn_jax.models.fcn import FCN
from fcn_jax.visualize import results_figure

RESULT_ROWS = 10  # Examples shown in the picture of the results.
SCORES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "frequency-weighted IU",
}


def judge(
    model: FCN,
    params: dict[str, Any],
    source: Any,
    class_names: Sequence[str],
    *,
    ignore_label: int,
    size: tuple[int, int] | tuple[()],
    save: Callable[[str, np.ndarray], None] | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, list[Kept]]:
    """Evaluates a network on a split, with examples for the picture of its results.

    Args:
        model: the network.
        params: of the model.
        source: the split (fcn_jax.data.sources).
        class_names: C names.
        ignore_label: label of void pixels.
        size: (h, w) that the network sees each image at; () for the image's own.
        save: is given the name and the labels of each prediction.
        progress: whether to show a progress bar.
    Returns:
        The confusion matrix, for `report`, and the examples that `evaluate` kept.
    """
    return evaluate(
        functools.partial(predict_many, model, params, size=size, progress=progress),
        source,
        num_classes=len(class_names),
        ignore_label=ignore_label,
        keep=spread(len(source), RESULT_ROWS),
        save=save,
        progress=progress,
    )


def report(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The four metrics and the IU of each class, ready for JSON.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
        class_names: C names.
    Returns:
        "pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu" in [0, 1],
        and "iu": {class name: IU, None for a class that does not occur}.
    """
    per_class = zip(class_names, iu_per_class(confusion), strict=True)
    figures = {**summarize(confusion), "iu": dict(per_class)}
    return _without_nan(figures)


def table(figures: dict[str, Any]) -> str:
    """The figures of `report` as lines to print, in per cent."""

    def percent(value: float | None) -> str:
        return "     -" if value is None else f"{100 * value:6.2f}"

    rows = [(name, figures[score]) for score, name in SCORES.items()]
    rows += [(f"  IU {name}", value) for name, value in figures["iu"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}} {percent(value)}" for name, value in rows)


def write_confusion(
    path: Path, confusion: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes a confusion matrix as CSV, a row for each true class, in pixels."""
    with replacing(path) as unfinished, open(unfinished, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *class_names])
        for name, row in zip(class_names, confusion.tolist(), strict=True):
            writer.writerow([name, *row])


def write_report(
    folder: Path,
    figures: dict[str, Any],
    rows: Sequence[Kept],
    class_names: Sequence[str],
    *,
    ignore_label: int,
    suffix: str = "",
) -> None:
    """Writes metrics.json and results.png, ``suffix`` before the dot.

    Args:
        folder: where to.
        figures: of `report`, and what else belongs to them.
        rows: the examples that `evaluate` kept.
        class_names: C names.
        ignore_label: label of void pixels.
        suffix: tells several evaluations in one folder apart.
    """
    write_json(folder / f"metrics{suffix}.json", figures)
    results_figure(
        folder / f"results{suffix}.png", rows, class_names, ignore_label=ignore_label
    )


def _without_nan(value: Any) -> Any:
    """NaN is no JSON; None says that there was nothing to measure."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if math.isnan(value) else float(value)
