import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from scipy import ndimage

from fcn_jax.data.transforms import (
    augment,
    random_crop,
    random_flip,
    random_rotation,
    random_scale,
    resize,
    resize_image,
)

MEAN_RGB = (103.6, 116.2, 10.5)
MEAN_PIXEL = [104, 116, 10]  # Rounded, halves to even.
VOID = 255
FILL = {"mean": MEAN_RGB}

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


def many_channels(height, width, dtype, channels=5):
    """Random values of full range, with a channel of zeros."""
    values = rng().integers(0, 256 if dtype == "uint8" else 60_000, (height, width, 5))
    values[..., 3] = 0
    label = rng(1).integers(0, 4, (height, width)).astype(np.int32)
    return {"image": values.astype(dtype), "label": label, "name": "x"}


MEANS = (10.4, 20.5, 30.6, 40.7, 5000.3)
MEAN_CHANNELS = {"uint8": [10, 20, 31, 41, 255], "float32": np.float32(MEANS)}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("size", [(9, 14), (31, 44)])
def test_resize_image_of_many_channels_treats_each_alone(dtype, size):
    image = many_channels(17, 23, dtype)["image"]
    found = resize_image(image, size)
    assert found.shape == (*size, 5) and found.dtype == dtype
    for i in range(5):
        channel = Image.fromarray(image[..., i])
        expected = channel.resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[..., i], expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("crop", [(), (30, 40)])
def test_augment_keeps_many_channels_and_their_type(dtype, crop):
    example = many_channels(20, 26, dtype)
    if dtype == "float32":
        example["image"][..., :3] /= 256
    out = augment(
        example,
        rng(3),
        size=(18, 22),
        scale=(0.5, 1.5),
        crop=crop,
        flip=True,
        mean=MEANS,
        rotation=30,
    )
    assert out["image"].dtype == dtype and out["label"].dtype == np.int32
    assert out["image"].shape == (*out["label"].shape, 5)
    if crop:
        assert out["label"][0, 0] == VOID
        np.testing.assert_array_equal(out["image"][0, 0], MEAN_CHANNELS[dtype])


def sources_of(size, angle):
    """Rows and columns that the pixels of a rotated example come from."""
    height, width = size
    y = np.arange(height)[:, None] + 0.5 - height / 2
    x = np.arange(width) + 0.5 - width / 2
    # Counterclockwise in an image, whose rows go down.
    columns = np.cos(angle) * x - np.sin(angle) * y + width / 2
    rows = np.sin(angle) * x + np.cos(angle) * y + height / 2
    return rows, columns


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("seed", range(4))
def test_random_rotation_takes_the_label_under_each_centre_and_bilinear_colors(
    dtype, seed
):
    example = many_channels(21, 34, dtype)
    found = random_rotation(example, rng(seed), 180, MEANS)
    angle = np.deg2rad(rng(seed).uniform(-180, 180))
    rows, columns = sources_of((21, 34), angle)
    inside = (0 <= rows) & (rows < 21) & (0 <= columns) & (columns < 34)
    at = np.floor(rows[inside]).astype(int), np.floor(columns[inside]).astype(int)
    label = np.full((21, 34), VOID)
    label[inside] = example["label"][at]
    np.testing.assert_array_equal(found["label"], label)
    assert found["image"].dtype == dtype and found["label"].dtype == np.int32
    assert (found["image"][~inside] == MEAN_CHANNELS[dtype]).all()
    for i in range(5):
        channel = example["image"][..., i].astype(float)
        places = rows[inside] - 0.5, columns[inside] - 0.5
        expected = ndimage.map_coordinates(channel, places, order=1, mode="nearest")
        apart = np.abs(found["image"][inside][:, i] - expected)
        assert apart.max() <= (0.501 if dtype == "uint8" else 0.01)


def test_random_rotation_turns_counterclockwise_and_within_bounds():
    image = np.zeros((41, 41, 3), np.uint8)
    label = np.zeros((41, 41), np.int32)
    label[19:22, 30:] = 1  # A hand that points right.
    angles = []
    for seed in range(200):
        turned = random_rotation(
            {"image": image, "label": label}, rng(seed), 30, MEAN_RGB
        )
        rows, columns = (turned["label"] == 1).nonzero()
        angles.append(np.degrees(np.arctan2(20 - rows.mean(), columns.mean() - 20)))
        assert angles[-1] == pytest.approx(rng(seed).uniform(-30, 30), abs=1.5)
    assert -31 < min(angles) < -27 and 27 < max(angles) < 31


def test_random_rotation_of_zero_degrees_changes_nothing():
    example = numbered(7, 9)
    turned = random_rotation(example, rng(), 0, MEAN_RGB)
    np.testing.assert_array_equal(turned["image"], example["image"])
    np.testing.assert_array_equal(turned["label"], example["label"])
    assert turned["name"] == "x"


@pytest.mark.parametrize("degrees", [-1, 181, float("nan")])
def test_random_rotation_of_degrees_out_of_range_is_refused(degrees):
    with pytest.raises(ValueError, match="degrees = .* must be from 0 to 180"):
        random_rotation(numbered(3, 3), rng(), degrees, MEAN_RGB)


@settings(max_examples=50)
@given(seeds, st.floats(0.5, 2), st.floats(0, 180), st.booleans())
def test_rotated_and_scaled_blocks_keep_the_class_of_their_grey(
    seed, factor, degrees, cropped
):
    classes = rng(seed).integers(0, 6, (4, 5)).repeat(16, 0).repeat(16, 1)
    grey = (40 * classes).astype(np.uint8)
    example = {"image": np.dstack([grey] * 3), "label": classes.astype(np.int32)}
    out = augment(
        example,
        rng(seed),
        size=(),
        scale=(factor, factor),
        crop=(50, 70) if cropped else (),
        flip=True,
        mean=(250, 250, 250),
        rotation=degrees,
    )
    label, image = out["label"], out["image"][..., 0]
    # Rotation and scale mix pixels that are up to a pixel of the image away.
    far = int(np.ceil(2 * max(factor, 1)))
    low = ndimage.minimum_filter(label, 2 * far + 1, mode="constant", cval=-1)
    high = ndimage.maximum_filter(label, 2 * far + 1)
    same = low == high
    assert same.any()
    expected = np.where(label == VOID, 250, 40 * label)
    np.testing.assert_array_equal(image[same], expected[same])


@settings(max_examples=50)
@given(seeds, st.integers(1, 31), st.floats(0, 180), st.floats(1, 3), st.booleans())
def test_edge_of_the_label_lies_where_the_image_is_half(
    seed, place, degrees, factor, rotated
):
    label = np.zeros((24, 32), np.int32)
    label[:, place:] = 1
    image = np.dstack([255 * label] * 4).astype(np.float32)
    example = {"image": image, "label": label}
    if rotated:
        out = random_rotation(example, rng(seed), degrees, (0, 0, 0, 0))
    else:
        out = random_scale(example, rng(seed), factor, factor)
    image, label = out["image"][..., 0], out["label"]
    clear = (abs(image - 127.5) > 0.01) & (label != VOID)
    np.testing.assert_array_equal(label[clear], image[clear] > 127.5)
    assert clear.sum() >= (label != VOID).sum() - 64


def test_augment_applies_the_transform_last():
    seen = []

    def note(example, generator):
        seen.append((example["label"].shape, generator.random()))
        return example | {"label": example["label"] + 1}

    options = {"size": (), "scale": (1, 1), "crop": (5, 6), "flip": False}
    found = augment(numbered(5, 6), rng(7), **options, **FILL, transform=note)
    assert seen[0][0] == (5, 6)
    np.testing.assert_array_equal(found["label"], numbered(5, 6)["label"] + 1)


def test_augment_of_jitter_changes_colors_alone():
    example = numbered(8, 9)
    options = {"size": (), "scale": (1, 1), "crop": (), "flip": False}
    found = augment(example, rng(), **options, **FILL, jitter=(0.5, 0, 0, 0))
    assert not np.array_equal(found["image"], example["image"])
    np.testing.assert_array_equal(found["label"], example["label"])


def test_mean_of_other_channels_is_refused():
    wrong = "mean has 5 numbers, the image 3 channels"
    with pytest.raises(ValueError, match=wrong):
        random_rotation(numbered(4, 4), rng(), 9, MEANS)
    with pytest.raises(ValueError, match=wrong):
        random_crop(numbered(4, 4), rng(), (3, 3), mean=MEANS)
