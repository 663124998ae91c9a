import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.evaluation.evaluate import Evaluation, evaluate
from fcn_jax.evaluation.report import (
    beside_published,
    draw_results,
    table,
    typical_images,
    worst_images,
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


def test_report_holds_the_figures_and_the_pictures(reference, tmp_path):
    net = reference.network("fcn32s")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 20, 30, 3), np.uint8)
    labels = rng.integers(0, 4, (6, 20, 30))
    labels[2] = 255  # An image without any labelled pixel.
    source = list(zip(images, labels, strict=True))
    found = evaluate(net, source, progress=False)
    write_report(tmp_path, net, source, found, suffix="_val")
    written = json.loads((tmp_path / "metrics_val.json").read_text())
    assert written == found.figures
    assert written["iu"].keys() == {f"class {i}" for i in range(4)}
    for name in ("results", "errors", "confusion"):
        with Image.open(tmp_path / f"{name}_val.png") as picture:
            assert picture.width > picture.height


def test_pictures_of_images_without_labels_are_drawn_too(reference, tmp_path):
    net = reference.network("fcn32s")
    source = [(np.zeros((8, 9, 3), np.uint8), np.full((8, 9), 255))]
    found = evaluate(net, source, progress=False)
    draw_results(tmp_path, net, source, found)
    names = ["confusion.png", "errors.png", "results.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_examples_are_of_all_qualities_the_best_first():
    scores = [i / 100 for i in range(100)]
    assert typical_images(scores) == [87, 62, 37, 12]
    assert typical_images([0.1, 0.9, 0.5]) == [1, 2, 0]
    assert worst_images([0.1, None, 0.9, 0.5]) == [0, 3, 2]
    assert typical_images([None, None]) == [0, 1]
    assert typical_images([]) == worst_images([]) == []


@pytest.mark.parametrize("choose", [typical_images, worst_images])
@given(st.lists(st.none() | st.floats(0, 1), min_size=16, max_size=200))
def test_examples_lie_apart_in_the_split(choose, scores):
    chosen = sorted(choose(scores))
    assert len(chosen) == len(set(chosen)) <= 4
    gaps = np.diff(chosen)
    assert (gaps > len(scores) // 16).all()
    if None not in scores:
        assert len(chosen) == 4


def test_worst_frames_of_a_video_are_not_all_shown():
    scores = [0.9] * 100
    scores[10:20] = np.linspace(0.1, 0.2, 10)  # A bad scene.
    scores[60] = 0.5
    first, second, *_ = worst_images(scores)
    assert first == 10 and second == 17  # The first that is 7 frames away.
    assert 60 in worst_images(scores)


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
