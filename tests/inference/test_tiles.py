"""Tiles against the whole image; receptive fields against impulses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.inference import tiles
from fcn_jax.inference.predict import apply, predict
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
    "fcn8s-learned": ("fcn8s", "same", "corner", True, (0.5, 0.25)),
    "fcn16s-caffe": ("fcn16s", "caffe", "center", True, (0.5, 0.25)),
}

# Of images of several tiles in one direction or in both; sides of many remainders.
SIZES = {
    "fcn8s-same": (849, 710),
    "fcn16s-caffe": (701, 734),
    "fcn32s-same": (45, 800),
    "fcn8s-learned": (66, 773),
}
LONG = (801, 33)


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
    image = picture(*SIZES.get(case, LONG))
    whole = np.asarray(apply(params, image, model=model))
    logits, times = stitched(model, params, image, (608, 608))
    assert (times == 1).all()
    tolerance = 1e-4 * np.abs(whole).max()
    np.testing.assert_allclose(logits, whole, rtol=0, atol=tolerance)
    decided = apart(whole, tolerance)
    same = logits.argmax(-1) == whole.argmax(-1)
    assert same[decided].all() and decided.mean() > 0.5


@pytest.mark.parametrize("variant", ["fcn32s", "fcn16s", "fcn8s"])
@pytest.mark.parametrize(
    ("geometry", "crop", "side"),
    [
        ("same", "center", 576),
        ("same", "center", 577),
        ("same", "corner", 577),
        ("caffe", "center", 577),
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
    image = np.zeros((len(impulses), side, 1, 3), np.uint8)
    image[np.arange(len(impulses)), impulses] = 255
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
    image = picture(33, 850)
    logits, _ = stitched(model, params, image, (608, 608))
    labels = predict_tiled(model, params, image, tile=(608, 608))
    assert labels.shape == (33, 850) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(-1))


def test_an_image_of_one_tile_gives_the_labels_of_predict(small):
    model, params = small
    image = picture(45, 37)
    expected = predict(params, image, model=model)
    np.testing.assert_array_equal(predict_tiled(model, params, image), expected)


def test_image_and_labels_may_be_files(small, tmp_path):
    model, params = small
    image = picture(33, 850)
    np.save(tmp_path / "image.npy", image)
    out = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int16, (33, 850))
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    assert predict_tiled(model, params, mapped, tile=(608, 608), out=out) is out
    expected = predict_tiled(model, params, image, tile=(608, 608))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_images_of_many_sizes_share_one_program(small, monkeypatch):
    model, params = small
    traced, compute = [], FCN.apply

    def apply(self, variables, batch, size):
        traced.append(batch.shape)
        return compute(self, variables, batch, size)

    monkeypatch.setattr(FCN, "apply", apply)
    model = model.copy(dropout=0.25)  # Not one that another test has compiled.
    for width in (650, 663, 777):
        predict_tiled(model, params, picture(width % 32 + 1, width), tile=(608, 608))
    assert traced == [(1, 32, 608, 3)]


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((5000, 6000), (768, 768)),
        ((20000, 32), (18432, 32)),
        ((40, 9000), (64, 9024)),
        ((40, 10000), (64, 9216)),
        ((500, 400), (512, 416)),
    ],
)
def test_tiles_are_as_large_as_their_pixels_allow(small, monkeypatch, size, seen):
    batches = []

    def logits(model, params, batch, size):
        batches.append(batch.shape)
        return np.zeros((*batch.shape[:3], 1))

    monkeypatch.setattr(tiles, "scores_of", logits)
    image = np.broadcast_to(np.uint8(0), (*size, 3))
    next(logits_tiled(*small, image, tile=768 * 768))
    assert batches == [(1, *seen, 3)]


def test_more_pixels_than_the_limit_need_tiles():
    assert not needs_tiles((2048, 2048, 3)) and needs_tiles((2048, 2049, 3))
    assert not needs_tiles((10, 10), 100) and needs_tiles((10, 11), 100)


def test_too_small_a_tile_is_refused_with_the_least_that_works(small):
    model, params = small
    image = np.broadcast_to(np.uint8(0), (30, 850, 3))
    with pytest.raises(ValueError, match="at least 544 on a side"):
        logits_tiled(model, params, image, tile=(543, 543))
    logits_tiled(model, params, image, tile=(544, 544))
    for tile in (0, (0, 64), 31):
        with pytest.raises(ValueError, match="at least"):
            logits_tiled(model, params, image, tile=tile)


def test_a_batch_is_refused(small):
    with pytest.raises(ValueError, match=r"batch \[2, 8, 8, 3\]"):
        predict_tiled(*small, np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((8, 9), np.uint8), r"\[8, 8\]"),
        (np.zeros((8, 8), np.float32), "float32"),
    ],
)
def test_out_that_does_not_fit_is_refused(small, out, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(*small, np.zeros((8, 8, 3), np.uint8), out=out)


def test_classes_that_out_cannot_hold_are_refused(small):
    model = small[0].copy(num_classes=129)
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="129 classes"):
        predict_tiled(model, small[1], image, out=np.zeros((8, 8), np.int8))


# Peak memory never falls: so in a process of its own.
MEMORY = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from fcn_jax.inference.tiles import predict_tiled
from fcn_jax.models.fcn import FCN

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model = FCN(variant="fcn32s", num_classes=2, width=1 / 64)
params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))["params"]
for width in (4800, 19200):
    image = np.broadcast_to(np.uint8([9, 90, 200]), (500, width, 3))
    labels = predict_tiled(model, params, image, tile=(512, 2048))
    print(labels.nbytes / 2**20, peak())
"""


def test_memory_beside_the_labels_does_not_grow_with_the_image():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEMORY],
        check=True,
        capture_output=True,
        text=True,
    )
    (small, before), (large, after) = (
        map(float, line.split()) for line in result.stdout.splitlines()
    )
    # MiB. At once, the larger image would take 290 more.
    assert after - before < large - small + 100
