from xml.etree import ElementTree

import numpy as np
import pytest

from fcn_jax.training.line_chart import line_chart


def chart(curves, limits=None):
    return ElementTree.fromstring(line_chart("Loss", curves, limits=limits))


def points(svg):
    return [
        np.array([p.split(",") for p in line.get("points").split()], float)
        for line in svg.iter("polyline")
    ]


def test_values_lie_between_their_limits():
    svg = chart({"a": ([1, 2, 3], [0.0, 0.5, 1.0])}, limits=(0.0, 1.0))
    (line,) = points(svg)
    (x0, bottom), (x1, middle), (x2, top) = line
    assert x1 - x0 == x2 - x1 > 0
    assert bottom - middle == middle - top > 0


def test_values_of_many_sizes_get_a_logarithmic_axis():
    (line,) = points(chart({"a": ([1, 2, 3], [100.0, 10.0, 1.0])}))
    assert np.diff(line[:, 1]) == pytest.approx([93, 93], abs=0.2)


def test_labels_are_round_numbers():
    svg = chart({"a": ([0, 40], [0.0, 1.0])}, limits=(0.0, 1.0))
    texts = [text.text for text in svg.iter("text")]
    assert texts == ["0", "0.5", "1", "0", "10", "20", "30", "40", "step", "a"]


def test_long_curve_is_thinned_and_keeps_its_mean():
    values = np.random.default_rng(0).random(3000).tolist()
    (line,) = points(chart({"a": (range(3000), values)}, limits=(0.0, 1.0)))
    assert len(line) == 300
    share = (226 - line[:, 1]) / (226 - 40)
    assert share.mean() == pytest.approx(np.mean(values), abs=1e-3)


def test_title_tells_the_curves_in_words():
    svg = chart({"a<b": ([1, 9], [2.0, 0.5])})
    assert svg.find("title").text == "Loss: a<b 2 at step 1, 0.5 at step 9"


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 0.0]])
def test_curve_without_extent_is_drawn(values):
    svg = chart({"a": (list(range(len(values))), values)})
    assert all(np.isfinite(line).all() for line in points(svg))


def test_chart_without_curves_says_so():
    assert "nothing is logged yet" in line_chart("Loss", {"a": ([], [])}, limits=None)
