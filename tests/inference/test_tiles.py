"""Tiles against the whole image; receptive fields against impulses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.inference.predict import apply
from fcn_jax.inference.tiles import (
    logits_tiled,
    margins,
    needs_tiles,
    predict_tiled,
    receptive_field,
)
from fcn_jax.models.fcn import FCN

WIDTH, CLASSES = 1 / 32, 4

# (variant, geometry, crop, learned upsampling, pool scales)
CASES = {
    **{
        f"{variant}-{geometry}": (variant, geometry, "center", False, (1.0, 1.0))
        for variant in ("fcn32s", "fcn16s", "fcn8s")
        for geometry in ("same", "caffe")
    },
    "fcn32s-corner": ("fcn32s", "same", "corner", False, (1.0, 1.0)),
    "fcn8s-corner": ("fcn8s", "same", "corner", False, (0.5, 0.25)),
    "fcn8s-learned": ("fcn8s", "same", "center", True, (1.0, 1.0)),
    "fcn16s-caffe-learned": ("fcn16s", "caffe", "center", True, (0.5, 0.25)),
}


def network(reference, variant, geometry, crop, learned, scales):
    weights = reference.random_weights(
        np.random.default_rng(4), width=WIDTH, num_classes=CLASSES
    )
    model = FCN(
        variant=variant,
        num_classes=CLASSES,
        geometry=geometry,
        crop=crop,
        width=WIDTH,
        dropout=0.0,
        pool_scales=scales,
        learn_upsampling=learned,
    )
    params = {
        "body": reference.body_params(weights),
        "head": reference.head_params(weights, variant, learned),
    }
    return model, params


def picture(height, width, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def stitched(model, params, image, tile):
    """The logits of all tiles, and how often each pixel is among them."""
    logits = np.zeros((*image.shape[:2], model.num_classes), np.float32)
    times = np.zeros(image.shape[:2], int)
    for rows, cols, part in logits_tiled(model, params, image, tile=tile):
        logits[rows, cols] = part
        times[rows, cols] += 1
    return logits, times


def apart(logits, tolerance):
    """Where the two best scores differ by more than errors of a tolerance can turn."""
    first, second = np.sort(logits, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    return first - second > 2 * tolerance


@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_the_whole_image(reference, case):
    model, params = network(reference, *CASES[case])
    # Four tiles in a column and two in a row; neither side a multiple of 8.
    image = picture(849, 710)
    whole = np.asarray(apply(params, image, model=model))
    logits, times = stitched(model, params, image, (608, 608))
    assert (times == 1).all()
    tolerance = 1e-4 * np.abs(whole).max()
    np.testing.assert_allclose(logits, whole, rtol=0, atol=tolerance)
    decided = apart(whole, tolerance)
    same = logits.argmax(-1) == whole.argmax(-1)
    assert same[decided].all() and decided.mean() > 0.5


@pytest.mark.parametrize("case", ["fcn32s-same", "fcn32s-caffe"])
def test_tiles_equal_the_whole_image_of_any_remainder(reference, case):
    model, params = network(reference, *CASES[case])
    for height in (608, 609, 639):
        image = picture(height, 20, seed=height)
        whole = np.asarray(apply(params, image, model=model))
        logits, _ = stitched(model, params, image, (576, 576))
        tolerance = 1e-4 * np.abs(whole).max()
        np.testing.assert_allclose(logits, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", ["fcn32s", "fcn16s", "fcn8s"])
@pytest.mark.parametrize(
    ("geometry", "crop", "side"),
    [
        ("same", "center", 960),
        ("same", "center", 961),
        ("same", "corner", 961),
        ("caffe", "center", 961),
    ],
)
def test_receptive_field_is_where_an_impulse_comes_through(
    variant, geometry, crop, side
):
    model = FCN(
        variant=variant,
        num_classes=1,
        geometry=geometry,
        crop=crop,
        mean_rgb=(0.0, 0.0, 0.0),
        width=1 / 64,
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 3)))
    # Without biases, all scores are zero but those that depend on the impulse; with
    # positive kernels, those are positive.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.uniform(0.5, 1, leaf.shape) * (leaf.ndim > 1)),
        shapes["params"],
    )
    impulses = side // 2 + np.arange(32)  # One in each phase of the pools.
    image = np.zeros((len(impulses), side, 1, 3), np.float32)
    image[np.arange(len(impulses)), impulses] = 1
    logits = np.asarray(apply(params, image, model=model))[:, :, 0, 0]
    fields = [receptive_field(model, row, side=side) for row in range(side)]
    first, last = np.array(fields).T
    seen = (first <= impulses[:, None]) & (impulses[:, None] <= last)
    np.testing.assert_array_equal(logits != 0, seen)
    before, after = margins(model, side)
    rows = np.arange(side)
    assert (rows - first).max() == before and (last - rows).max() == after


def test_receptive_field_by_hand():
    # pool5 of VGG-16 sees 212 rows at a stride of 32, fc6 seven rows of it, and a row
    # upsampled by 32 is made of two of fc6: 212 + 6 * 32 + 32 = 436.
    model = FCN(variant="fcn32s")
    for row in range(32):
        first, last = receptive_field(model, row, side=320)
        assert last - first + 1 == 436


@pytest.fixture(scope="module")
def small(reference):
    return network(reference, *CASES["fcn8s-same"])


def test_labels_are_those_of_the_best_logits(small):
    model, params = small
    image = picture(33, 650)
    logits, _ = stitched(model, params, image, 32 * 608)
    labels = predict_tiled(model, params, image, tile=32 * 608)
    assert labels.shape == (33, 650) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(-1))
