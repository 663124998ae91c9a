import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fcn_jax.data.jitter import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
IMAGE[0, :5] = [(0, 0, 0), (255, 255, 255), (9, 9, 9), (255, 0, 0), (0, 255, 255)]


def planes(image):
    return np.moveaxis(image, -1, 0).astype(np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("factor", [0, 0.3, 0.9, 1, 1.5, 3])
@pytest.mark.parametrize(
    "adjust, enhance",
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
    ],
)
def test_adjustment_is_that_of_pillow(adjust, enhance, factor):
    expected = enhance(Image.fromarray(IMAGE)).enhance(factor)
    found = adjust(planes(IMAGE), factor)
    assert found.dtype == np.float32 and 0 <= found.min() and found.max() <= 255
    # Pillow rounds grey to an integer, and the result down.
    apart = found - planes(np.asarray(expected))
    assert np.abs(apart).max() < 1.01 + 0.5 * abs(1 - factor)


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0, 0.05, 1 / 3, 0.5])
def test_adjust_hue_is_that_of_colorsys(shift):
    found = adjust_hue(planes(IMAGE), shift)
    for i, j in np.ndindex(IMAGE.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(IMAGE[i, j] / 255))
        expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        np.testing.assert_allclose(found[:, i, j] / 255, expected, atol=1e-5)


def test_adjust_hue_of_a_large_image_is_that_of_each_row():
    rgb = np.random.default_rng(0).uniform(0, 255, (3, 301, 200)).astype(np.float32)
    rows = [adjust_hue(rgb[:, i : i + 1], 0.2) for i in range(301)]
    np.testing.assert_array_equal(adjust_hue(rgb, 0.2), np.concatenate(rows, 1))


def test_color_jitter_of_nothing_changes_nothing():
    changed = color_jitter(IMAGE, rng(), 0, 0, 0, 0)
    np.testing.assert_array_equal(changed, IMAGE)


def test_color_jitter_draws_factors_within_bounds():
    grey = np.full((1, 1, 3), 100, np.uint8)
    values = [color_jitter(grey, rng(i), 0.2, 0, 0, 0)[0, 0, 0] for i in range(300)]
    assert min(values) in (80, 81) and max(values) in (119, 120)
    assert abs(np.mean(values) - 100) < 3  # 4 standard deviations of a fair draw.
    values = [color_jitter(grey, rng(i), 2, 0, 0, 0)[0, 0, 0] for i in range(300)]
    assert min(values) < 10 and max(values) == 255  # The factor is at least 0.


def test_color_jitter_draws_shifts_of_both_signs():
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    pixels = [color_jitter(red, rng(i), 0, 0, 0, 0.1)[0, 0] for i in range(50)]
    assert all(pixel[0] == 255 and pixel.min() == 0 for pixel in pixels)
    assert any(pixel[1] > 100 for pixel in pixels)
    assert any(pixel[2] > 100 for pixel in pixels)
    assert max(pixel.astype(int).sum() for pixel in pixels) <= 255 + 0.6 * 255 + 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_color_jitter_leaves_other_channels_and_its_input(dtype):
    image = np.dstack([IMAGE, IMAGE[..., 0] + np.float32(999)]).astype(dtype)
    before = image.copy()
    changed = color_jitter(image, rng(1), 0.5, 0.5, 0.5, 0.5)
    assert changed.dtype == dtype and changed.shape == image.shape
    np.testing.assert_array_equal(changed[..., 3], image[..., 3])
    assert not np.array_equal(changed[..., :3], image[..., :3])
    np.testing.assert_array_equal(image, before)
    again = color_jitter(image, rng(1), 0.5, 0.5, 0.5, 0.5)
    np.testing.assert_array_equal(changed, again)


def test_color_jitter_of_float_equals_that_of_bytes_but_for_rounding():
    options = (0.5, 0.5, 0.5, 0.5)
    found = color_jitter(IMAGE.astype(np.float32), rng(3), *options)
    np.testing.assert_array_equal(np.rint(found), color_jitter(IMAGE, rng(3), *options))


def test_color_jitter_refuses_colors_beyond_255():
    image = np.full((2, 2, 4), 3000, np.float32)
    with pytest.raises(ValueError, match="reach from 3000 to 3000.*first three chann"):
        color_jitter(image, rng(), 0.1, 0, 0, 0)


@pytest.mark.parametrize("strengths", [(-0.1, 0, 0, 0), (0, 0, 0, 0.6)])
def test_color_jitter_refuses_strengths_out_of_range(strengths):
    with pytest.raises(ValueError, match=r"must be at least 0, and hue at most 0.5"):
        color_jitter(IMAGE, rng(), *strengths)
