"""Tiles against the whole image; receptive fields against impulses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.inference import tiles
from fcn_jax.inference.predict import apply, predict
from fcn_jax.inference.shares import ClassShares
from fcn_jax.inference.tiles import (
    logits_tiled,
    margins,
    needs_tiles,
    plan_tiles,
    predict_tiled,
    receptive_field,
)
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network

LEARNED = {"learn_upsampling": True, "pool_scales": (0.5, 0.25)}
# Fields of the network.
CASES = {
    **{
        f"{variant}-{geometry}": {"variant": variant, "geometry": geometry}
        for variant in ("fcn32s", "fcn16s", "fcn8s")
        for geometry in ("same", "caffe")
    },
    "fcn32s-corner": {"variant": "fcn32s", "crop": "corner"},
    "fcn8s-learned": {"variant": "fcn8s", "crop": "corner", **LEARNED},
    "fcn16s-caffe": {"variant": "fcn16s", "geometry": "caffe", **LEARNED},
}

# Of images of several tiles in one direction or in both; sides of many remainders.
SIZES = {
    "fcn8s-same": (849, 710),
    "fcn16s-caffe": (701, 734),
    "fcn32s-same": (45, 800),
    "fcn8s-learned": (66, 773),
}
LONG = (801, 33)


def picture(height, width, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def stitched(net, image, tile):
    """The logits of all tiles, and how often each pixel is among them."""
    logits = np.zeros((*image.shape[:2], net.model.num_classes), np.float32)
    times = np.zeros(image.shape[:2], int)
    for rows, cols, part in logits_tiled(net, image, tile=tile):
        logits[rows, cols] = part
        times[rows, cols] += 1
    return logits, times


def apart(logits, tolerance):
    """Where the two best scores differ by more than errors of a tolerance can turn."""
    first, second = np.sort(logits, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    return first - second > 2 * tolerance


@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_the_whole_image(reference, case):
    net = reference.network(**CASES[case])
    image = picture(*SIZES.get(case, LONG))
    whole = np.asarray(apply(net, image))
    logits, times = stitched(net, image, (608, 608))
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
        mean=(0.0, 0.0, 0.0),
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
    logits = np.asarray(apply(Network(params, model), image))[:, :, 0, 0]
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
    return reference.network(**CASES["fcn8s-same"])


def test_labels_are_those_of_the_best_logits(small):
    image = picture(33, 850)
    logits, _ = stitched(small, image, (608, 608))
    labels = predict_tiled(small, image, tile=(608, 608))
    assert labels.shape == (33, 850) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(-1))


@pytest.mark.parametrize("size", [(), (40, 30)])
def test_shares_are_counted_once_for_each_pixel_of_all_tiles(small, monkeypatch, size):
    net, image = small.replace(size=size), picture(33, 850)
    monkeypatch.setattr(tiles, "_STRIP_VALUES", 10 * 850 * 4)
    shares = ClassShares(4)
    labels = predict_tiled(net, image, tile=(608, 608), shares=shares)
    logits, _ = stitched(net, image, (608, 608))
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    pixels = np.bincount(labels.ravel(), minlength=4)
    np.testing.assert_array_equal(shares.pixels, pixels)
    confidence = np.asarray(jax.nn.softmax(logits)).max(-1)
    sums = np.bincount(labels.ravel(), confidence.ravel(), 4)
    found = np.nan_to_num(shares.mean_confidence) * pixels
    np.testing.assert_allclose(found, sums, rtol=1e-4)


def test_an_image_of_one_tile_gives_the_labels_of_predict(small):
    image = picture(45, 37)
    expected = predict(small, image)
    np.testing.assert_array_equal(predict_tiled(small, image), expected)


def test_image_and_labels_may_be_files(small, tmp_path):
    image = picture(33, 850)
    np.save(tmp_path / "image.npy", image)
    out = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int16, (33, 850))
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    assert predict_tiled(small, mapped, tile=(608, 608), out=out) is out
    expected = predict_tiled(small, image, tile=(608, 608))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_tiles_of_images_of_about_one_size_share_one_program(small, traced):
    net = small.replace(model=small.model.copy(dropout=0.25))
    for width in (680, 717, 735):
        predict_tiled(net, picture(width % 32 + 1, width), tile=(640, 640))
    assert traced == [(1, 32, 640, 3)]


@pytest.mark.parametrize("size", [(40, 30), (33, 801)])
def test_resizing_network_gives_the_labels_of_the_whole_in_strips(
    small, monkeypatch, size
):
    net, image = small.replace(size=size), picture(70, 150)
    whole = np.asarray(apply(net, image))
    monkeypatch.setattr(tiles, "_STRIP_VALUES", 20 * 150 * 4)
    monkeypatch.setattr(tiles, "needs_tiles", lambda shape: shape[1] > 800)
    logits, times = stitched(net, image, (608, 608))
    assert (times == 1).all()
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-4 * np.abs(whole).max())
    labels = predict_tiled(net, image, tile=(608, 608))
    np.testing.assert_array_equal(labels, logits.argmax(-1))


@pytest.fixture
def seen(monkeypatch):
    """The shapes of the batches that the network would see; it is not run."""
    batches = []

    def logits(net, batch, size):
        batches.append(batch.shape)
        return np.zeros((*batch.shape[:3], 1))

    monkeypatch.setattr(tiles, "scores_of", logits)
    return batches


# Neighbours overlap by 512 rows of a multiple of 32, by up to 544 of another number.
LAYOUTS = [
    # A little above the limit: two, each with half of what is left beside the overlap.
    ((2049, 2048), 2**22, [(1312, 2048)] * 2),
    ((2048, 2049), 2**22, [(2048, 1312)] * 2),
    ((3000, 4000), 2**22, [(1760, 2272)] * 4),
    # Narrow: tiles as long as their pixels allow.
    ((20000, 32), 768 * 768, [(10272, 32)] * 2),
    ((40, 9000), 768 * 768, [(64, 9024)]),
    ((40, 10000), 768 * 768, [(64, 5280)] * 2),
    # No larger than the image, nor than it takes.
    ((500, 400), 768 * 768, [(512, 416)]),
    ((500, 800), (640, 767), [(512, 672)] * 2),
]


@pytest.mark.parametrize(("size", "tile", "expected"), LAYOUTS)
def test_tiles_are_equal_and_see_few_pixels(small, seen, size, tile, expected):
    image = np.broadcast_to(np.uint8(0), (*size, 3))
    net = small.replace(model=small.model.copy(num_classes=1))
    _, times = stitched(net, image, tile)
    assert (times == 1).all()
    assert seen == [(1, *shape, 3) for shape in expected]


@settings(max_examples=40)
@given(
    variant=st.sampled_from(["fcn32s", "fcn16s", "fcn8s"]),
    geometry=st.sampled_from(["same", "caffe"]),
    size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    side=st.integers(576, 2500),
)
def test_tiles_keep_to_the_limit_and_each_pixel_once(variant, geometry, size, side):
    model = FCN(variant=variant, geometry=geometry)
    (height, width), parts = plan_tiles(model, size, side * side)
    assert height * width <= side * side and height % 32 == width % 32 == 0
    times = np.zeros(size, np.uint8)
    for (seen_rows, rows), (seen_cols, cols) in parts:
        times[rows, cols] += 1
        assert 0 <= seen_rows.start <= rows.start < rows.stop <= seen_rows.stop
        assert 0 <= seen_cols.start <= cols.start < cols.stop <= seen_cols.stop
        assert seen_rows.stop - seen_rows.start <= height
        assert seen_cols.stop - seen_cols.start <= width
    assert (times == 1).all()


def test_progress_bar_counts_tiles(small, terminal):
    image = picture(33, 850)
    predict_tiled(small, image, tile=(608, 608))
    assert terminal.readouterr().err == ""
    predict_tiled(small, image, tile=(608, 608), progress=True)
    assert "0/4" in terminal.readouterr().err


def test_more_pixels_than_the_limit_need_tiles():
    assert not needs_tiles((2048, 2048, 3)) and needs_tiles((2048, 2049, 3))
    assert not needs_tiles((10, 10), 100) and needs_tiles((10, 11), 100)


def test_too_small_a_tile_is_refused_with_the_least_that_works(small):
    image = np.broadcast_to(np.uint8(0), (30, 850, 3))
    with pytest.raises(ValueError, match="32 x 544 pixels or more"):
        logits_tiled(small, image, tile=(543, 543))
    logits_tiled(small, image, tile=(544, 544))
    for tile in (0, (0, 64), 31):
        with pytest.raises(ValueError, match=r"too small .* \[30, 850\]"):
            logits_tiled(small, image, tile=tile)


def test_a_batch_is_refused(small):
    with pytest.raises(ValueError, match=r"batch \[2, 8, 8, 3\]"):
        predict_tiled(small, np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((8, 9), np.uint8), r"\[8, 8\]"),
        (np.zeros((8, 8), np.float32), "float32"),
    ],
)
def test_out_that_does_not_fit_is_refused(small, out, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(small, np.zeros((8, 8, 3), np.uint8), out=out)


def test_classes_that_out_cannot_hold_are_refused(small):
    net = small.replace(model=small.model.copy(num_classes=129))
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="129 classes"):
        predict_tiled(net, image, out=np.zeros((8, 8), np.int8))


# Peak memory never falls: so in a process of its own.
MEMORY = """
import resource, sys
import jax, numpy as np
import fcn_jax
from fcn_jax.inference.tiles import predict_tiled

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

net = fcn_jax.init(jax.random.key(0), "fcn32s", 2, width=1 / 64)
for width in (4800, 19200):
    image = np.broadcast_to(np.uint8([9, 90, 200]), (500, width, 3))
    labels = predict_tiled(net, image, tile=(512, 2048))
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


@pytest.mark.parametrize("shape", [(70_000, 1, 3), (1, 70_000, 3)])
def test_side_too_long_to_be_resized_is_refused(net, shape):
    image = np.broadcast_to(np.uint8(7), shape)
    match = f"{shape[0]}x{shape[1]} has a side that is too long to be resized to 32x32"
    with pytest.raises(ValueError, match=match):
        predict_tiled(net.replace(size=(32, 32)), image)
