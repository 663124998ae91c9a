import numpy as np
import pytest

from fcn_jax.data.labels import to_classes

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
    with pytest.raises(ValueError, match="0 and 255 is black and white"):
        to_classes(label, "a.png", num_classes=2, ignore_label=254)
