import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fcn_jax.data.transforms import (
    augment,
    random_crop,
    random_flip,
    random_scale,
    resize,
)

MEAN_RGB = (103.6, 116.2, 10.5)
MEAN_PIXEL = [104, 116, 10]  # Rounded, halves to even.
VOID = 255
FILL = {"mean_rgb": MEAN_RGB}

sides = st.integers(1, 12)
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**32 - 1)


def numbered(height, width):
    """Every pixel has its own number, in the label and in the image's first channels.

    Numbers stay below 200 so that no pixel looks like the mean or void.
    """
    label = np.arange(height * width, dtype=np.int32).reshape(height, width) % 200
    image = np.stack([label, label, np.full_like(label, 200)], axis=-1)
    return {"image": image.astype(np.uint8), "label": label, "name": "x"}


def assert_aligned(example):
    """Each pixel is an original one under its own label, or mean-coloured and void."""
    image, label = example["image"], example["label"]
    void = label == VOID
    assert image.dtype == np.uint8 and label.dtype == np.int32
    np.testing.assert_array_equal(image[~void][:, 0], label[~void])
    assert (image[~void][:, 2] == 200).all()
    assert (image[void] == MEAN_PIXEL).all()


def rng(seed=0):
    return np.random.default_rng(seed)


@given(sizes)
def test_resize_to_own_size_changes_nothing(size):
    example = numbered(*size)
    resized = resize(example, size)
    np.testing.assert_array_equal(resized["image"], example["image"])
    np.testing.assert_array_equal(resized["label"], example["label"])
    assert resized["name"] == "x"


@given(sizes, sizes)
def test_resize_label_takes_the_pixel_under_each_centre(old, new):
    example = numbered(*old)
    label = resize(example, new)["label"]
    for i, j in np.ndindex(new):
        row = int((i + 0.5) * old[0] / new[0])
        column = int((j + 0.5) * old[1] / new[1])
        assert label[i, j] == example["label"][row, column]


@given(sizes, sizes)
def test_resize_flat_image_stays_flat(old, new):
    image = np.full((*old, 3), (1, 128, 255), np.uint8)
    resized = resize({"image": image, "label": np.zeros(old, np.int32)}, new)
    assert resized["image"].shape == (*new, 3) and resized["label"].shape == new
    assert (resized["image"] == (1, 128, 255)).all()


def test_resize_image_interpolates_between_centres():
    row = np.array([[0, 100]], np.uint8)
    example = {"image": np.dstack([row] * 3), "label": row.astype(np.int32)}
    resized = resize(example, (1, 4))
    # The centres 0.25 .. 1.75 lie at -0.25, 0.25, 0.75, 1.25 between the old two.
    assert resized["image"][0, :, 0].tolist() == [0, 25, 75, 100]
    assert resized["label"][0].tolist() == [0, 0, 100, 100]


def test_resize_image_is_antialiased_when_it_shrinks():
    stripes = np.tile(np.array([0, 200], np.uint8), (16, 8))
    example = {"image": np.dstack([stripes] * 3), "label": stripes.astype(np.int32)}
    shrunk = resize(example, (4, 4))["image"]
    assert (abs(shrunk[:, 1:-1].astype(int) - 100) <= 1).all()  # Their mean.


@given(sizes, seeds)
def test_random_scale_keeps_the_factor_within_bounds(size, seed):
    scaled = random_scale(numbered(*size), rng(seed), 0.5, 2.0)
    for old, new in zip(size, scaled["label"].shape, strict=True):
        assert max(1, round(old / 2)) <= new <= 2 * old
    assert scaled["image"].shape == (*scaled["label"].shape, 3)


def test_random_scale_scales_both_sides_alike():
    scaled = random_scale(numbered(100, 50), rng(), 1.5, 1.5)
    assert scaled["label"].shape == (150, 75)


@given(sizes, sizes, seeds)
def test_random_crop_keeps_labels_on_their_pixels(old, new, seed):
    example = numbered(*old)
    cropped = random_crop(example, rng(seed), new, **FILL)
    assert cropped["label"].shape == new and cropped["image"].shape == (*new, 3)
    assert_aligned(cropped)
    kept = min(old[0], new[0]) * min(old[1], new[1])
    assert (cropped["label"] != VOID).sum() == kept
    rows, columns = (cropped["label"] != VOID).nonzero()
    part = cropped["label"][rows.min() : rows.max() + 1, columns.min() :]
    part = part[:, : min(old[1], new[1])]
    windows = np.lib.stride_tricks.sliding_window_view(example["label"], part.shape)
    assert (windows == part).all(axis=(-2, -1)).any()  # One piece, in order.


@pytest.mark.parametrize("old, new", [((6, 6), (4, 4)), ((4, 4), (6, 6))])
def test_random_crop_reaches_every_place_about_equally(old, new):
    generator, corners = rng(), np.zeros((3, 3), int)
    for _ in range(900):
        label = random_crop(numbered(*old), generator, new, **FILL)["label"]
        if old > new:
            corners[divmod(label[0, 0], 6)] += 1
        else:
            corners[tuple(np.argwhere(label == 0)[0])] += 1
    assert (abs(corners - 100) < 45).all()  # 4.5 standard deviations of a fair draw.


@given(sizes, seeds)
def test_random_flip_mirrors_both_or_neither(size, seed):
    example = numbered(*size)
    flipped = random_flip(example, rng(seed))
    assert_aligned(flipped)
    same = np.array_equal(flipped["label"], example["label"])
    assert same or np.array_equal(flipped["label"], np.fliplr(example["label"]))


def test_random_flip_flips_half_the_time():
    generator, example = rng(), numbered(1, 2)
    flips = sum(random_flip(example, generator)["label"][0, 0] for _ in range(400))
    assert 160 < flips < 240  # 4 standard deviations of a fair coin.


@given(sizes, sizes, seeds)
def test_augment_with_crop_gives_its_size(size, crop, seed):
    out = augment(
        numbered(*size),
        rng(seed),
        size=(),
        scale=(0.5, 2),
        crop=crop,
        flip=True,
        **FILL,
    )
    assert out["image"].shape == (*crop, 3) and out["image"].dtype == np.uint8
    assert out["label"].shape == crop and out["label"].dtype == np.int32


@given(st.tuples(st.integers(8, 40), st.integers(8, 40)), sizes, seeds)
def test_augment_makes_only_the_window_but_the_same(size, crop, seed):
    colors = rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    example = numbered(*size) | {"image": colors}
    generator = rng(seed)
    scaled = random_scale(example, generator, 0.5, 2.0)
    expected = random_flip(random_crop(scaled, generator, crop, **FILL), generator)
    options = {"size": (), "scale": (0.5, 2.0), "crop": crop, "flip": True}
    found = augment(example, rng(seed), **options, **FILL)
    np.testing.assert_array_equal(found["label"], expected["label"])
    # Pillow rounds the place of a window to float32.
    apart = found["image"].astype(int) - expected["image"]
    assert np.abs(apart).max() <= 2


def test_augment_of_nothing_returns_the_example():
    example = numbered(3, 4)
    out = augment(example, rng(), size=(), scale=(1, 1), crop=(), flip=False, **FILL)
    assert out is example


def test_augment_of_size_alone_resizes():
    example = numbered(3, 4)
    options = {"scale": (1.0, 1.0), "crop": (), "flip": False}
    out = augment(example, rng(), size=(6, 5), **options, **FILL)
    np.testing.assert_array_equal(out["label"], resize(example, (6, 5))["label"])


@given(sizes, seeds)
def test_augment_is_pure(size, seed):
    example = numbered(*size)
    options = {"size": (5, 7), "scale": (0.5, 2), "crop": (6, 6), "flip": True}
    first, second = (augment(example, rng(seed), **options, **FILL) for _ in "12")
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["label"], second["label"])
    untouched = numbered(*size)
    np.testing.assert_array_equal(example["image"], untouched["image"])
    np.testing.assert_array_equal(example["label"], untouched["label"])


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (1, 2, 3)])
def test_wrong_size_is_refused(size):
    with pytest.raises(ValueError, match=r"size must be \(H, W\), both at least 1"):
        resize(numbered(3, 3), size)
    with pytest.raises(ValueError, match=r"size must be \(H, W\), both at least 1"):
        random_crop(numbered(3, 3), rng(), size, **FILL)


@pytest.mark.parametrize("scale", [(0, 1), (2, 1), (-1, 1)])
def test_random_scale_wrong_bounds_are_refused(scale):
    with pytest.raises(ValueError, match=r"scale must be 0 < low <= high, got \("):
        random_scale(numbered(3, 3), rng(), *scale)
