import numpy as np
import pytest

from fcn_jax.data import shapes
from fcn_jax.data.labels import VOID
from fcn_jax.data.shapes import CLASS_NAMES, ShapesSource


def test_shapes_example_is_pure_function_of_split_and_index():
    first, again = ShapesSource("train")[3], ShapesSource("train", length=7)[3]
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], again["label"])
    assert first["name"] == again["name"] == "train_00003"


def test_shapes_splits_and_indices_give_different_pictures():
    train, val = ShapesSource("train"), ShapesSource("val")
    pictures = [train[0], train[1], val[0], val[1]]
    assert len({picture["image"].tobytes() for picture in pictures}) == 4


def test_shapes_iteration_gives_length_examples_of_the_size():
    source = ShapesSource("train", size=(33, 50), length=4)
    examples = list(source)
    assert len(source) == len(examples) == 4
    for example in examples:
        assert example["image"].shape == (33, 50, 3)
        assert example["image"].dtype == np.uint8
        assert example["label"].shape == (33, 50)
        assert example["label"].dtype == np.int32


def test_shapes_every_class_covers_a_fair_share():
    labels = np.stack([example["label"] for example in ShapesSource("t", length=200)])
    counts = np.bincount(labels.ravel(), minlength=256)
    assert counts.nonzero()[0].tolist() == [*range(len(CLASS_NAMES)), VOID]
    share = counts / labels.size
    assert 0.5 < share[0] < 0.8  # Background, yet not so much that it is all there is.
    assert (share[1:5] > 0.03).all()
    assert share[VOID] < 0.06


def test_shapes_colour_does_not_tell_the_class():
    examples = list(ShapesSource("t", length=400))
    pixels = np.concatenate([example["image"].reshape(-1, 3) for example in examples])
    labels = np.concatenate([example["label"].ravel() for example in examples])
    means = [pixels[labels == index].mean(axis=0) for index in range(1, 5)]
    # Colours of one class spread by some 90; their means agree to a fraction of it.
    assert np.ptp(means, axis=0).max() < 25


@pytest.mark.parametrize("axis", [0, 1])
def test_shapes_labels_follow_the_edges_in_the_image(axis):
    for example in ShapesSource("t", length=50):
        image = np.moveaxis(example["image"].astype(int), axis, 0)
        label = np.moveaxis(example["label"], axis, 0)
        before, after = label[:-1], label[1:]
        both = (before != VOID) & (after != VOID)
        assert (before == after)[both].all()  # Void lies between any two shapes.
        step = abs(np.diff(image, axis=0))[both & (before > 0)]
        assert step.max() < 50  # One colour within a shape: noise of 6 is all.


# Areas at radius 1: a disc of 0.85; a square of side 1.44; a triangle of inner radius
# 0.62; two bars of 1.9 x 0.68 less the square where they cross.
AREAS = {
    "circle": np.pi * 0.85**2,
    "square": 1.44**2,
    "triangle": 3 * np.sqrt(3) * 0.62**2,
    "cross": 2 * 1.9 * 0.68 - 0.68**2,
}


@pytest.mark.parametrize("name", CLASS_NAMES[1:])
def test_shapes_outline_encloses_its_area(name):
    outline = shapes._OUTLINES[CLASS_NAMES.index(name) - 1]
    y, x = np.mgrid[-150:150, -150:150] + 0.5
    inside = (outline(x, y, 100) < 0).sum()
    assert inside == pytest.approx(AREAS[name] * 100**2, rel=0.01)


@pytest.mark.parametrize("name", CLASS_NAMES[1:])
def test_shapes_outline_measures_pixels(name):
    outline = shapes._OUTLINES[CLASS_NAMES.index(name) - 1]
    x = np.linspace(-150, 150, 3001)  # Ten samples a pixel, along a line off centre.
    slope = np.abs(np.diff(outline(x, np.full_like(x, 20.0), 100))) * 10
    assert slope.max() <= 1 + 1e-9  # Never more than a pixel farther out per pixel.


@pytest.mark.parametrize("i", [-1, 5])
def test_shapes_index_outside_is_refused(i):
    with pytest.raises(IndexError, match=f"example {i} of 5"):
        ShapesSource("train", length=5)[i]
