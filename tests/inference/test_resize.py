"""Resizing against Pillow and against the definition."""

import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference.resize import (
    resize,
    resize_columns,
    resize_inside,
    resize_strip,
    resize_weights,
)

SIZES = [((7, 9), (7, 9)), ((7, 9), (20, 31)), ((30, 41), (7, 9)), ((5, 40), (40, 5))]


def maps(size, channels=2, seed=0):
    shape = (*size, channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_pillow(x, size):
    """Pillow resizes float maps, one channel at a time."""
    channels = [
        Image.fromarray(np.ascontiguousarray(x[..., i])).resize(
            size[::-1], Image.Resampling.BILINEAR
        )
        for i in range(x.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_is_pillows_bilinear(old, new):
    x = maps(old)
    found = np.asarray(resize(x[None], new))[0]
    np.testing.assert_allclose(found, by_pillow(x, new), atol=2e-6)


def test_weights_by_hand():
    np.testing.assert_allclose(
        resize_weights(2, 4, (4, 2)), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    # Centres 1 and 3 of four pixels, a triangle of two pixels on each side.
    np.testing.assert_allclose(
        resize_weights(4, 2, (2, 4)),
        np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7,
        rtol=1e-6,
    )
    np.testing.assert_array_equal(resize_weights(5, 5, (5, 5)), np.eye(5))


@pytest.mark.parametrize(("old", "new"), [(1, 200), (200, 1), (7, 150), (150, 64)])
def test_rows_of_weights_sum_to_one(old, new):
    weights = np.asarray(resize_weights(old, new, (new, old)))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_corner_of_a_padded_map_is_resized_as_the_map_alone(old, new):
    x = maps(old)
    padded = np.full((1, old[0] + 3, old[1] + 5, 2), 100, np.float32)
    padded[0, : old[0], : old[1]] = x
    shape = (new[0] + 4, new[1] + 2)
    found = np.asarray(resize_inside(padded, old, new, shape))
    assert found.shape == (1, *shape, 2)
    expected = np.asarray(resize(x[None], new))[0]
    np.testing.assert_allclose(found[0, : new[0], : new[1]], expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_strips_make_the_whole(old, new):
    x = maps(old)
    expected = np.asarray(resize(x[None], new))[0]
    strips = [resize_strip(x, new[0], (1, new[1]), first) for first in range(new[0])]
    np.testing.assert_allclose(np.concatenate(strips), expected, atol=1e-6)
    columns = np.asarray(resize_columns(x, new[1]))
    np.testing.assert_allclose(columns, by_pillow(x, (old[0], new[1])), atol=2e-6)
