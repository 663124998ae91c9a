"""What several tests of models use; modules of tests cannot import one another."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def assert_close():
    """A function that compares an array with the expected one."""

    def check(actual, expected, tolerance=1e-4):
        """The largest difference is at most ``tolerance`` of the largest number."""
        assert actual.shape == expected.shape
        largest = np.abs(expected).max()
        assert largest > 0
        difference = np.abs(np.asarray(actual, np.float64) - expected)
        assert difference.max() <= tolerance * largest

    return check


@pytest.fixture(scope="session")
def make_image():
    """A function that draws an RGB image, or a batch, of a shape and a dtype."""

    def make(shape, dtype, seed=0):
        image = np.random.default_rng(seed).uniform(0, 255, (*shape, 3))
        return image.astype(dtype)

    return make
