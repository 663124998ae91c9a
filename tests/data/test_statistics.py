import numpy as np

from fcn_jax.data.statistics import image_moments, no_moments

SIZES = ((3, 4), (1, 1), (7, 2))


def images(*draws):
    """Images of several sizes, a channel from each draw(rng, size)."""
    rngs = map(np.random.default_rng, range(len(SIZES)))
    return [
        np.dstack([draw(rng, size) for draw in draws]).astype(np.float32)
        for rng, size in zip(rngs, SIZES, strict=True)
    ]


def uniform(low, high):
    return lambda rng, size: rng.uniform(low, high, size)


def moments_of(images):
    return sum(map(image_moments, images), no_moments(images[0].shape[2]))


def test_moments_are_those_of_all_pixels_together():
    found = images(uniform(0, 255), uniform(0, 65_535), uniform(-1, 0))
    pixels = np.concatenate([x.astype(np.float64).reshape(-1, 3) for x in found])
    moments = moments_of(found)
    np.testing.assert_allclose(moments.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, pixels.std(axis=0), rtol=1e-12)
    assert moments.count == len(pixels)


def test_small_deviation_from_a_large_mean_is_exact():
    rows = np.float32([[[1e6], [1e6 + 1]], [[1e6], [1e6 + 1]]])
    moments = moments_of([rows] * 9)
    assert (moments.mean.item(), moments.std.item()) == (1e6 + 0.5, 0.5)


def test_constant_channel_has_no_deviation():
    moments = moments_of(images(uniform(0, 255), lambda rng, size: np.full(size, 0.1)))
    assert (moments.mean[1], moments.std[1]) == (np.float32(0.1), 0)
    assert moments.std[0] > 0


def test_no_pixels_have_mean_and_deviation_zero():
    moments = no_moments(2) + no_moments(2)
    assert moments.mean.tolist() == moments.std.tolist() == [0, 0]
