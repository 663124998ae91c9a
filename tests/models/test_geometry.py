"""Sides, offsets and crops, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.convolution import max_pool
from fcn_jax.models.geometry import caffe_offsets, crop_offset, crop_to


@pytest.mark.parametrize(
    ("side", "pooled"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4), (224, 112), (375, 188)]
)
def test_pooled_side_is_half_rounded_up(side, pooled):
    assert max_pool(jnp.zeros([1, side, side, 1])).shape == (1, pooled, pooled, 1)


@pytest.mark.parametrize(
    ("big", "small", "center"),
    [(4, 4, 0), (5, 4, 0), (6, 4, 1), (7, 4, 1), (8, 4, 2), (32, 1, 15), (512, 500, 6)],
)
def test_crop_offset_is_half_the_surplus_rounded_down_or_the_corner(big, small, center):
    assert crop_offset(big, small, "center") == center
    assert crop_offset(big, small, "corner") == 0


@pytest.mark.parametrize(
    ("crop", "rows"),
    [
        ("center", [[11, 12, 13], [21, 22, 23]]),
        ("corner", [[0, 1, 2], [10, 11, 12]]),
    ],
)
def test_crop_to_keeps_the_rows_and_columns_at_the_offset(crop, rows):
    # Entry 10 * row + column; 5 rows to 2 (offset 1), 6 columns to 3 (offset 1).
    grid = 10 * np.arange(5)[:, None] + np.arange(6)
    batch = np.stack([grid, grid + 100])[..., None] + np.array([0, 0.5])
    cropped = crop_to(jnp.asarray(batch), (2, 3), crop)
    assert cropped.shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(cropped[0, :, :, 0], rows)
    np.testing.assert_array_equal(cropped[1, :, :, 1], np.array(rows) + 100.5)


@pytest.mark.parametrize(
    ("skips", "offsets"),
    [((), [19]), (("pool4",), [5, 27]), (("pool4", "pool3"), [5, 9, 31])],
)
def test_caffe_offsets_are_the_numbers_of_the_release(skips, offsets):
    assert caffe_offsets(skips) == offsets


@pytest.mark.parametrize("crop", ["center", "corner"])
def test_crop_to_the_same_size_changes_nothing(crop):
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_array_equal(crop_to(x, (3, 4), crop), x)


def test_crop_to_takes_rows_and_columns_each_by_their_own_surplus():
    x = jnp.arange(5 * 12.0).reshape(1, 5, 12, 1)
    # 5 to 5: offset 0. 12 to 3: offset 4.
    np.testing.assert_array_equal(
        crop_to(x, (5, 3), "center")[0, :, :, 0],
        [[12 * row + col for col in (4, 5, 6)] for row in range(5)],
    )
