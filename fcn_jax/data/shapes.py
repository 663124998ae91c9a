"""A synthetic data set: pictures of coloured shapes, drawn on demand."""

import colorsys
from collections.abc import Callable

import numpy as np

from fcn_jax.data.labels import VOID

CLASS_NAMES = ("background", "circle", "square", "triangle", "cross")
"""The name of each class."""
PALETTE = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
"""Black, orange, sky blue, bluish green and reddish purple, one for each class.

Readers with any kind of colour vision tell these apart. Reference: Okabe and Ito, Color
Universal Design.
"""


class ShapesSource:
    """Draw overlapping shapes of random size, rotation and place on textures.

    Example i is a pure function of (split, size, i). Colours do not depend on the
    class, so only the form tells it. A pixel on an edge mixes two colours and is
    labelled void (255), as the outlines in PASCAL VOC are.

    Args:
        split: name of the split. Different names give different pictures.
        size: (H, W) of every picture.
        length: number of pictures.
    """

    def __init__(
        self, split: str, *, size: tuple[int, int] = (64, 64), length: int = 1000
    ):
        self.split, self.size, self.length = split, size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.length:
            raise IndexError(f"example {i} of {self.length}")
        rng = np.random.default_rng([i, *self.split.encode()])
        image = _background(rng, *self.size)
        label = np.zeros(self.size, np.int32)
        for _ in range(rng.integers(1, 3)):
            class_index = int(rng.integers(1, len(CLASS_NAMES)))
            outside = _place(rng, _OUTLINES[class_index - 1], *self.size)
            cover = np.clip(0.5 - outside, 0, 1)[..., None]  # Share of each pixel.
            image += cover * (_vivid_color(rng) - image)
            label[outside < 0.5] = VOID
            label[outside <= -0.5] = class_index
        image += rng.normal(0, 6, image.shape)
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return {"image": image, "label": label, "name": f"{self.split}_{i:05d}"}


# An outline function takes coordinates [H, W] relative to the centre and a radius. It
# returns how far outside the outline each point lies, in pixels, negative inside: for a
# convex polygon, the largest signed distance to a side. The factors of the radius make
# the four areas equal to within a factor of 1.3, so that no class is rare.


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x, y) - 0.85 * radius


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.72 * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    sides = np.maximum(np.abs(x) * np.sqrt(0.75) - y / 2, y)
    return sides - 0.62 * radius


def _cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    long, short = 0.95 * radius, 0.34 * radius
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))


_OUTLINES = (_circle, _square, _triangle, _cross)  # In the order of CLASS_NAMES[1:].


def _place(
    rng: np.random.Generator, outline: Callable, height: int, width: int
) -> np.ndarray:
    """Draw size, rotation and centre; return [H, W] pixels outside the outline."""
    radius = min(height, width) * rng.uniform(0.18, 0.34)
    cosine, sine = _direction(rng)
    y = np.arange(height)[:, None] + 0.5 - height * rng.uniform(0.12, 0.88)
    x = np.arange(width) + 0.5 - width * rng.uniform(0.12, 0.88)
    return outline(cosine * x + sine * y, cosine * y - sine * x, radius)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Mix two muted colours by a few waves: [H, W, 3] float in [0, 255]."""
    waves, low, high = (  # Cycles across the picture, between low and high.
        (1, 0.3, 0.6),  # A gradient.
        (1, 4.0, 9.0),  # Stripes.
        (5, 0.5, 4.0),  # Clouds.
    )[rng.integers(3)]
    y, x = np.arange(height)[:, None] / height, np.arange(width) / width
    mix = np.full((height, width), 0.5)
    for _ in range(waves):
        cosine, sine = rng.uniform(low, high) * np.array(_direction(rng))
        phase = rng.uniform()
        mix += np.cos(2 * np.pi * (cosine * x + sine * y + phase)) / (2 * waves)
    first, second = rng.uniform(40, 215) + rng.uniform(-40, 40, (2, 3))
    return first + mix[..., None] * (second - first)


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle), np.sin(angle)


def _vivid_color(rng: np.random.Generator) -> np.ndarray:
    saturation, value = rng.uniform(0.65, 1, 2)
    return 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), saturation, value))
