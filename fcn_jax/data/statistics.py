"""The mean and the standard deviation of the channels of many images."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Hold the first two moments of each channel; those of two sets of pixels add up.

    Attributes:
        count: number of pixels.
        mean: [N] float64, the mean of each channel.
        squares: [N] float64, the sum of the squared deviations from the mean.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each channel: [N] float64, 0 without pixels."""
        return np.sqrt(self.squares / max(1, self.count))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not count:
            return self
        # Sums of squares would cancel where the mean is far above the deviation.
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = step**2 * (self.count * other.count / count)
        return Moments(count, mean, self.squares + other.squares + between)


def no_moments(channels: int) -> Moments:
    """Return the moments of no pixels, to begin a sum."""
    return Moments(0, np.zeros(channels), np.zeros(channels))


def image_moments(image: np.ndarray) -> Moments:
    """Return the moments of an image [H, W, N]."""
    channels = image.shape[2]
    mean, squares = np.zeros(channels), np.zeros(channels)
    for i in range(channels):  # One by one, in the memory of one channel.
        # The first value as the origin: it makes a constant channel exactly constant.
        first = float(image[0, 0, i])
        values = image[..., i].astype(np.float64) - first
        mean[i] = values.mean()
        squares[i] = np.square(values - mean[i]).sum()
        mean[i] += first
    return Moments(image.shape[0] * image.shape[1], mean, squares)
