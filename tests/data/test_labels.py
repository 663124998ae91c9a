import pickle

import numpy as np
import pytest

from fcn_jax.data.labels import (
    LabelValueError,
    check_classes,
    classes_needed,
    to_classes,
)

CLASSES = {"num_classes": 3, "ignore_label": 255}


def test_values_are_mapped_at_once_not_one_after_the_other():
    label = np.array([[0, 1, 2], [7, 255, 2]], np.int32)
    found = to_classes(
        label, "a", label_map=((0, 1), (1, 0), (7, 255), (2, 2)), **CLASSES
    )
    np.testing.assert_array_equal(found, [[1, 0, 2], [255, 255, 2]])
    assert found.dtype == np.int32


def test_void_of_the_data_set_becomes_255_after_the_mapping():
    label = np.array([[0, 11, 7]], np.int32)
    found = to_classes(label, "a", num_classes=3, ignore_label=11, label_map=((7, 11),))
    np.testing.assert_array_equal(found, [[0, 255, 255]])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(label, [[0, 11, 7]])


def test_255_is_a_stray_value_where_another_marks_void():
    label = np.array([[0, 1, 255]], np.int32)
    with pytest.raises(ValueError, match=r"values 255 are .*\(ignore_label = 11\)"):
        to_classes(label, "a", num_classes=3, ignore_label=11)


def test_more_classes_than_fit_below_void_are_refused():
    label = np.array([[254, 255]], np.int32)
    found = to_classes(label, "a", num_classes=255, ignore_label=255)
    np.testing.assert_array_equal(found, label)
    with pytest.raises(ValueError, match="num_classes = 256 must be at most 255"):
        to_classes(label, "a", num_classes=256, ignore_label=-1)


def test_values_beyond_16_bits_are_no_classes():
    label = np.array([[2**20, 0]], np.int32)
    with pytest.raises(ValueError, match="a.png: label values 1048576 are neither"):
        to_classes(label, "a.png", label_map=((0, 1),), **CLASSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [0, 255, 3, 4, 5, 6, 7, 9],
            r"label values 3, 4, 5, 6, 7, \.\.\. and 1 more are neither",
        ),
        ([0, -1], "label values -1 are neither .* with label_map"),
    ],
)
def test_other_values_are_named_with_the_way_out(values, message):
    with pytest.raises(ValueError, match=message):
        to_classes(np.array([values], np.int32), "a.png", **CLASSES)


def test_black_and_white_mask_is_recognised():
    label = np.array([[0, 255]], np.int32)
    with pytest.raises(ValueError, match="0 and 255 is black and white.* label_map"):
        to_classes(label, "a.png", num_classes=2, ignore_label=254)


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 255], "the values 0 and 255, so"), ([255, 255], "the values 255, so")],
)
def test_255_of_two_classes_is_ambiguous_until_it_is_mapped(values, found):
    label = np.array([values], np.int32)
    ways_out = rf"{found}.*\(\(255, 1\),\) .*\(\(255, 255\),\), or .*ignore_label"
    with pytest.raises(LabelValueError, match=ways_out):
        to_classes(label, "a.png", num_classes=2)
    with pytest.raises(LabelValueError, match=ways_out):
        to_classes(label, "a.png", num_classes=2, label_map=((0, 1),))
    for new in (1, 255):
        mapped = to_classes(label, "a.png", num_classes=2, label_map=((255, new),))
        np.testing.assert_array_equal(mapped, np.where(label == 255, new, label))


@pytest.mark.parametrize("values", [[0, 0], [0, 1, 255], [1, 255]])
def test_masks_that_are_not_black_and_white_are_taken_as_they_are(values):
    label = np.array([values], np.int32)
    np.testing.assert_array_equal(to_classes(label, "a", num_classes=2), label)


def test_void_between_two_classes_is_never_ambiguous_to_check_classes():
    check_classes(np.array([[0, 255]], np.int32), "a", num_classes=2)
    with pytest.raises(LabelValueError, match="a: label values 2 are neither"):
        check_classes(np.array([[0, 2]], np.int32), "a", num_classes=2)
    with pytest.raises(ValueError, match="num_classes = 256"):
        check_classes(np.array([[0]], np.int32), "a", num_classes=256)


def test_error_tells_how_many_classes_the_values_need():
    label = np.array([[0, 9, 4, 255]], np.int32)
    with pytest.raises(LabelValueError, match="raise num_classes to 10, set") as error:
        to_classes(label, "a.png", **CLASSES)
    assert error.value.values == [4, 9]
    copy = pickle.loads(pickle.dumps(error.value))
    assert copy.values == [4, 9] and str(copy) == str(error.value)


@pytest.mark.parametrize("values", [[-1, 4], [4, 300], [255]])
def test_error_about_other_values_asks_for_no_more_classes(values):
    with pytest.raises(LabelValueError) as error:
        to_classes(np.array([values], np.int32), "a", num_classes=3, ignore_label=254)
    assert "raise num_classes" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "ignore_label", "needed"),
    [
        ([3], 255, 4),
        ([3, 254], 255, 255),
        ([3, 255], 0, None),
        ([-1, 3], 255, None),
        ([5], 4, None),  # 4 would have to be a class.
        ([], 255, None),
    ],
)
def test_classes_needed_are_one_more_than_the_largest_value(
    values, ignore_label, needed
):
    assert classes_needed(values, 3, ignore_label) == needed
