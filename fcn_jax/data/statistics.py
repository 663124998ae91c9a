"""The mean and the standard deviation of each channel of the images of a source."""

from typing import Any

import numpy as np
from tqdm import tqdm

from fcn_jax.data.read_ahead import read_ahead

Moments = tuple[int, np.ndarray, np.ndarray]


def channel_statistics(
    source: Any, *, channels: int, threads: int = 4, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Read every image and return the mean and standard deviation of each channel.

    Args:
        source: anything with ``__len__`` and ``__getitem__(i)`` that gives a dict with
            "image" [H, W, N], as `fcn_jax.data.sources.CheckedSource` does.
        channels: N.
        threads: number of reading threads. The result does not depend on it.
        progress: whether to show a progress bar.

    Returns:
        mean: [N] float64, over all pixels.
        std: [N] float64, 0 for a channel that is constant.

    Raises:
        ValueError: if the source is empty, or an image has another number of channels
            or holds NaN or infinity.
    """
    if not len(source):
        raise ValueError("the source holds no images to take the mean of")

    def read(i: int) -> Moments:
        example = source[i]
        return _moments(example["image"], channels, example.get("name", i))

    n = len(source)
    parts = read_ahead(read, n, threads=threads)
    total: Moments = 0, np.zeros(channels), np.zeros(channels)
    for part in tqdm(parts, "channels", n, unit="image", disable=not progress):
        total = _merged(total, part)
    count, mean, squares = total
    return mean, np.sqrt(squares / count)


def _moments(image: np.ndarray, channels: int, name: object) -> Moments:
    """Return the pixels, the mean and the sum of squared deviations of each channel."""
    if image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(
            f"example {name}: the image is {list(image.shape)}, want [H, W, {channels}]"
        )
    mean, squares = np.zeros(channels), np.zeros(channels)
    for i in range(channels):  # One by one, in the memory of one channel.
        values = image[..., i].astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(
                f"example {name}: channel {i} holds NaN or infinity: replace them by "
                "numbers"
            )
        # The first value as the origin: it makes a constant channel exactly constant.
        values -= (first := values[0, 0])
        mean[i] = values.mean()
        squares[i] = np.square(values - mean[i]).sum()
        mean[i] += first
    return image.shape[0] * image.shape[1], mean, squares


def _merged(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets of pixels together.

    Sums of squares themselves would cancel where the mean is far above the deviation.
    """
    count, step = a[0] + b[0], b[1] - a[1]
    mean = a[1] + step * (b[0] / count)
    return count, mean, a[2] + b[2] + step**2 * (a[0] * b[0] / count)
