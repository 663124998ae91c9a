import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from fcn_jax.evaluation.metrics import (
    confusion_matrix,
    frequency_weighted_iu,
    iu_per_class,
    mean_accuracy,
    mean_iu,
    pixel_accuracy,
    summarize,
)

SCORES = [pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu]
LABEL = np.array([0, 0, 0, 1, 1, 2, 255, 255])
PREDICTION = np.array([0, 0, 1, 1, 0, 2, 0, 2])
CONFUSION = np.array([[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
OF_TWO = {"num_classes": 2}

confusions = st.integers(1, 5).flatmap(
    lambda n: hnp.arrays(np.int64, (n, n), elements=st.integers(0, 3))
)


def mean(values):
    return sum(values) / len(values) if values else math.nan


def scores_by_loops(confusion):
    """The four formulas of the paper, written out; nan for a class without pixels."""
    n = len(confusion)
    right = [int(confusion[i, i]) for i in range(n)]
    true = [sum(int(confusion[i, j]) for j in range(n)) for i in range(n)]
    predicted = [sum(int(confusion[j, i]) for j in range(n)) for i in range(n)]
    union = [true[i] + predicted[i] - right[i] for i in range(n)]
    total = sum(true)
    return {
        "pixel_accuracy": sum(right) / total if total else math.nan,
        "mean_accuracy": mean([right[i] / true[i] for i in range(n) if true[i]]),
        "mean_iu": mean([right[i] / union[i] for i in range(n) if union[i]]),
        "frequency_weighted_iu": (
            sum(true[i] * right[i] / union[i] for i in range(n) if union[i]) / total
            if total
            else math.nan
        ),
    }


def test_confusion_counts_pixels_by_true_then_predicted_class():
    confusion = confusion_matrix(LABEL, PREDICTION, num_classes=4)
    np.testing.assert_array_equal(confusion, CONFUSION)
    assert confusion.dtype == np.int64


def test_scores_of_the_case_by_hand():
    assert summarize(CONFUSION) == pytest.approx(
        {
            "pixel_accuracy": 2 / 3,  # 4 of 6
            "mean_accuracy": 13 / 18,  # of 2/3, 1/2, 1
            "mean_iu": 11 / 18,  # of 2/4, 1/3, 1/1
            "frequency_weighted_iu": 19 / 36,  # (3 * 2/4 + 2 * 1/3 + 1) / 6
        }
    )
    np.testing.assert_allclose(iu_per_class(CONFUSION), [1 / 2, 1 / 3, 1, np.nan])


def test_class_predicted_but_absent_counts_as_zero():
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 1]), num_classes=3)
    np.testing.assert_array_equal(iu_per_class(confusion), [0.5, 0, np.nan])
    assert mean_iu(confusion) == 0.25
    assert mean_accuracy(confusion) == 0.5


@given(confusions)
def test_scores_equal_the_formulas_written_out(confusion):
    assert summarize(confusion) == pytest.approx(
        scores_by_loops(confusion), nan_ok=True
    )


@given(st.data())
def test_confusion_equals_a_loop_over_pixels(data):
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    classes = data.draw(st.sampled_from([1, 3]))
    valid = st.integers(0, classes - 1)
    label = data.draw(hnp.arrays(np.int32, shape, elements=valid | st.just(255)))
    prediction = data.draw(hnp.arrays(np.uint8, shape, elements=valid))
    expected = np.zeros((classes, classes), np.int64)
    for true, predicted in zip(label.ravel(), prediction.ravel(), strict=True):
        if true != 255:
            expected[true, predicted] += 1
    confusion = confusion_matrix(label, prediction, num_classes=classes)
    np.testing.assert_array_equal(confusion, expected)


def test_many_classes_do_not_overflow_bytes():
    values = np.array([250, 3], np.uint8)
    confusion = confusion_matrix(values, values[::-1], num_classes=251)
    assert confusion[250, 3] == confusion[3, 250] == 1 and confusion.sum() == 2


def test_prediction_at_void_may_be_anything():
    confusion = confusion_matrix(np.array([0, 255]), np.array([1, 9]), **OF_TWO)
    np.testing.assert_array_equal(confusion, [[0, 1], [0, 0]])


@pytest.mark.parametrize("value", [-1, 2, 254])
def test_values_out_of_range_are_refused(value):
    bad, good = np.array([[0, value]]), np.array([[0, 1]])
    named = rf"label value {value} is not in \[0, 2\) .*not void \(255\)"
    with pytest.raises(ValueError, match=named):
        confusion_matrix(bad, good, **OF_TWO)
    with pytest.raises(ValueError, match=rf"prediction value {value} is not in"):
        confusion_matrix(good, bad, **OF_TWO)


def test_prediction_of_void_is_refused():
    with pytest.raises(ValueError, match="prediction value 255 is not in"):
        confusion_matrix(np.array([0]), np.array([255]), **OF_TWO)


def test_more_classes_than_fit_below_void_are_refused():
    with pytest.raises(ValueError, match="num_classes = 256 must be at most 255"):
        confusion_matrix(np.array([0]), np.array([0]), num_classes=256)


def test_other_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and prediction \(2, 2\)"):
        confusion_matrix(np.zeros(2, int), np.zeros((2, 2), int), **OF_TWO)
    with pytest.raises(ValueError, match="prediction must hold integers, got float"):
        confusion_matrix(np.zeros(2, int), np.zeros(2), **OF_TWO)


@pytest.mark.parametrize("score", [*SCORES, iu_per_class, summarize])
@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 2, 2)])
def test_confusion_that_is_not_square_is_refused(score, shape):
    with pytest.raises(ValueError, match="must be square"):
        score(np.ones(shape, np.int64))


def test_no_pixels_give_nan_without_a_warning():
    empty = confusion_matrix(np.array([255, 255]), np.array([0, 1]), **OF_TWO)
    assert not empty.any()
    assert all(math.isnan(score(empty)) for score in SCORES)
    assert np.isnan(iu_per_class(empty)).all()


def test_summary_is_ready_for_json():
    assert json.loads(json.dumps(summarize(CONFUSION))) == summarize(CONFUSION)
