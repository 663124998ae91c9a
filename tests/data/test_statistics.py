import numpy as np
import pytest

from fcn_jax.data.statistics import channel_statistics

SIZES = ((3, 4), (1, 1), (7, 2))


def source_of(*draws):
    """Images of several sizes, a channel from each draw(rng, size)."""
    examples = []
    for i, size in enumerate(SIZES):
        rng = np.random.default_rng(i)
        image = np.dstack([draw(rng, size) for draw in draws]).astype(np.float32)
        examples.append({"image": image, "name": f"image {i}"})
    return examples


def pixels(source):
    images = [example["image"].astype(np.float64) for example in source]
    return np.concatenate([image.reshape(-1, image.shape[2]) for image in images])


def uniform(low, high):
    return lambda rng, size: rng.uniform(low, high, size)


def test_statistics_are_those_of_all_pixels_together():
    source = source_of(uniform(0, 255), uniform(0, 65_535), uniform(-1, 0))
    mean, std = channel_statistics(source, channels=3, progress=False)
    np.testing.assert_allclose(mean, pixels(source).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels(source).std(axis=0), rtol=1e-12)
    assert mean.dtype == std.dtype == np.float64


def test_statistics_do_not_depend_on_threads():
    source = source_of(uniform(0, 255), uniform(0, 1))
    for threads in (1, 7):
        found = channel_statistics(source, channels=2, threads=threads, progress=False)
        expected = channel_statistics(source, channels=2, progress=False)
        np.testing.assert_array_equal(found, expected)


def test_small_deviation_from_a_large_mean_is_exact():
    rows = np.float32([[[1e6], [1e6 + 1]], [[1e6], [1e6 + 1]]])
    mean, std = channel_statistics([{"image": rows}] * 9, channels=1, progress=False)
    assert (mean.item(), std.item()) == (1e6 + 0.5, 0.5)


def test_constant_channel_has_no_deviation():
    source = source_of(uniform(0, 255), lambda rng, size: np.full(size, 0.1))
    mean, std = channel_statistics(source, channels=2, progress=False)
    assert (mean[1], std[1]) == (np.float32(0.1), 0) and std[0] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_named_with_its_example(value):
    source = source_of(uniform(0, 255), uniform(0, 1))
    source[2]["image"][6, 1, 1] = value
    with pytest.raises(ValueError, match="example image 2: channel 1 holds NaN or inf"):
        channel_statistics(source, channels=2, progress=False)


def test_other_channels_and_an_empty_source_are_refused():
    source = source_of(uniform(0, 255), uniform(0, 1))
    with pytest.raises(ValueError, match=r"image 0: .*\[3, 4, 2\], want \[H, W, 3\]"):
        channel_statistics(source, channels=3, progress=False)
    with pytest.raises(ValueError, match="holds no images"):
        channel_statistics([], channels=3, progress=False)


def test_progress_is_shown(capsys):
    channel_statistics(source_of(uniform(0, 1)), channels=1)
    assert "channels: 100%" in capsys.readouterr().err
