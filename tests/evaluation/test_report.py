import csv
import json

import numpy as np
from PIL import Image

from fcn_jax.evaluation.evaluate import Evaluation, Example
from fcn_jax.evaluation.report import (
    beside_published,
    table,
    write_confusion,
    write_report,
)

EVALUATION = Evaluation(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("a", "b", "c"))


def test_table_is_in_per_cent_with_a_dash_for_what_never_occurs():
    assert table(EVALUATION.figures).splitlines() == [
        "pixel accuracy         87.50",
        "mean accuracy          87.50",
        "mean IU                77.50",
        "frequency-weighted IU  77.50",
        "  IU a                 75.00",
        "  IU b                 80.00",
        "  IU c                     -",
    ]


def test_confusion_is_a_table_of_names(tmp_path):
    write_confusion(tmp_path / "c.csv", EVALUATION)
    with open(tmp_path / "c.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["true \\ predicted", "a", "b", "c"],
        ["a", "3", "1", "0"],
        ["b", "0", "4", "0"],
        ["c", "0", "0", "0"],
    ]


def test_report_holds_the_figures_and_the_picture(tmp_path):
    image, label = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.int32)
    example = Example("one", image, label, label)
    evaluation = Evaluation(EVALUATION.confusion, ("a", "b", "c"), (example,))
    write_report(tmp_path, evaluation, suffix="_val")
    written = json.loads((tmp_path / "metrics_val.json").read_text())
    assert written == EVALUATION.figures
    assert written["iu"] == {"a": 0.75, "b": 0.8, "c": None}
    with Image.open(tmp_path / "results_val.png") as picture:
        picture.load()


def test_published_figures_stand_beside_those_of_a_released_network():
    figures = {
        "pixel_accuracy": 0.904810,
        "mean_accuracy": 0.75,
        "mean_iu": 0.636361,
        "frequency_weighted_iu": None,
    }
    text = beside_published("fcn32s-heavy-pascal", "seg11valid", figures)
    assert text.splitlines() == [
        "                            here  published  difference",
        "pixel accuracy           90.4810    90.4810     +0.0000",
        "mean accuracy            75.0000    76.4824     -1.4824",
        "mean IU                  63.6361    63.6261     +0.0100",
        "frequency-weighted IU     0.0000    83.4580    -83.4580",
    ]
    assert beside_published("fcn32s-heavy-pascal", "val", figures) == ""
    assert beside_published("mine.safetensors", "seg11valid", figures) == ""
