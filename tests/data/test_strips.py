import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.data.strips import row_strips


@given(st.integers(0, 500), st.integers(0, 50), st.integers(1, 100))
def test_strips_hold_each_row_once_and_are_bounded(height, row_values, most):
    strips = row_strips(height, row_values, most)
    rows = np.concatenate([np.arange(height)[s] for s in strips] or [np.zeros(0)])
    np.testing.assert_array_equal(rows, np.arange(height))
    for strip in strips:
        assert (strip.stop - strip.start - 1) * row_values < most


def test_strips_are_equal_but_for_the_last():
    assert row_strips(10, 3, 12) == [slice(0, 4), slice(4, 8), slice(8, 10)]
