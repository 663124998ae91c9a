"""Transforms: pure functions from example to example.

An example is a dict. Its "image" is [H, W, 3] uint8 RGB and its "label" [H, W] int32,
before and after each transform; other entries pass through. Sizes are (H, W). Random
transforms draw only from the generator they are given.
"""

import numpy as np
from PIL import Image

from fcn_jax.data.labels import VOID

_ALL = np.s_[:, :]


def resize(
    example: dict, size: tuple[int, int], part: tuple[slice, slice] = _ALL
) -> dict:
    """Resize the image bilinearly (antialiased when it shrinks), the label by nearest.

    Both are sampled at pixel centres, so labels stay aligned with their pixels.

    Args:
        example: the example.
        size: (H, W) to resize to.
        part: rows and columns of the resized example to compute, by default all.

    Raises:
        ValueError: if ``size`` is not two positive integers.
    """
    image, label = resize_image(example["image"], size, part), example["label"]
    rows, columns = (
        _nearest(old, new)[kept]
        for old, new, kept in zip(label.shape, size, part, strict=True)
    )
    return example | {"image": image, "label": label.take(rows, 0).take(columns, 1)}


def resize_image(
    image: np.ndarray, size: tuple[int, int], part: tuple[slice, slice] = _ALL
) -> np.ndarray:
    """Resize an image [H, W, 3] uint8 as `resize` does."""
    height, width = _checked(size)
    top, bottom, _ = part[0].indices(height)
    left, right, _ = part[1].indices(width)
    h, w = image.shape[:2]
    resized = Image.fromarray(image).resize(
        (right - left, bottom - top),
        Image.Resampling.BILINEAR,
        box=(
            left * w / width,
            top * h / height,
            right * w / width,
            bottom * h / height,
        ),
    )
    return np.array(resized)


def random_scale(
    example: dict, rng: np.random.Generator, low: float, high: float
) -> dict:
    """Resize both sides by one random factor, uniform in [low, high]."""
    return resize(example, _random_size(example["label"].shape, rng, low, high))


def random_crop(
    example: dict,
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    scaled: tuple[int, int] | None = None,
    mean_rgb: tuple[float, float, float],
) -> dict:
    """Crop a window of ``size`` at a random place.

    Along a side where the image is smaller than the window, it lies at a random place
    inside the window. The rest of the window is mean-coloured (zero to the network) and
    void.

    Args:
        example: the example.
        rng: generator that draws the place.
        size: (H, W) of the window.
        scaled: (H, W) to resize to first; only the pixels in the window are computed.
        mean_rgb: colour of the pixels around the image, RGB in [0, 255].
    """
    shape = example["label"].shape
    scaled = scaled or shape
    spare = np.subtract(scaled, _checked(size))
    corner = rng.integers(np.minimum(spare, 0), np.maximum(spare, 0), endpoint=True)
    top, left = corner.tolist()
    if scaled != shape:
        part = np.s_[max(top, 0) : top + size[0], max(left, 0) : left + size[1]]
        example = resize(example, scaled, part)
        top, left = min(top, 0), min(left, 0)
    return _window(example, top, left, size, mean_rgb)


def random_flip(example: dict, rng: np.random.Generator) -> dict:
    """Mirror image and label left to right with probability 1/2."""
    if rng.random() < 0.5:
        return example
    return example | {key: example[key][:, ::-1] for key in ("image", "label")}


def augment(
    example: dict,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] | tuple[()],
    scale: tuple[float, float],
    crop: tuple[int, int] | tuple[()],
    flip: bool,
    mean_rgb: tuple[float, float, float],
) -> dict:
    """Resize, scale, crop and flip, in this order, for training.

    Args:
        example: the example.
        rng: generator that draws scale, crop and flip.
        size: (H, W) to resize to first; () keeps the size of the image.
        scale: (low, high), the factors of `random_scale`; (1, 1) for none.
        crop: (H, W) of `random_crop`; () for none.
        flip: whether to apply `random_flip`.
        mean_rgb: colour of pixels outside the image, RGB in [0, 255].
    """
    if size:
        example = resize(example, size)
    scales = tuple(scale) != (1, 1)
    if crop:
        shape = example["label"].shape
        example = random_crop(
            example,
            rng,
            crop,
            scaled=_random_size(shape, rng, *scale) if scales else None,
            mean_rgb=mean_rgb,
        )
    elif scales:
        example = random_scale(example, rng, *scale)
    return random_flip(example, rng) if flip else example


def _window(
    example: dict,
    top: int,
    left: int,
    size: tuple[int, int],
    mean_rgb: tuple[float, float, float],
) -> dict:
    """Cut out a window whose corner may lie outside the example."""
    height, width = size
    row = np.tile(np.rint(mean_rgb).astype(np.uint8), width)
    image = np.tile(row, (height, 1)).reshape(height, width, 3)  # Faster than by pixel.
    label = np.full((height, width), VOID, np.int32)
    source = np.s_[max(top, 0) : top + height, max(left, 0) : left + width]
    seen = example["label"][source]
    target = np.s_[max(-top, 0) :, max(-left, 0) :]
    label[target][: seen.shape[0], : seen.shape[1]] = seen
    image[target][: seen.shape[0], : seen.shape[1]] = example["image"][source]
    return example | {"image": image, "label": label}


def _nearest(old: int, new: int) -> np.ndarray:
    """Return [new] indices of the old pixels under the new centres."""
    return (2 * np.arange(new) + 1) * old // (2 * new)  # (i + 1/2) old / new


def _random_size(
    old: tuple[int, int], rng: np.random.Generator, low: float, high: float
) -> tuple[int, int]:
    if not 0 < low <= high:
        raise ValueError(f"scale must be 0 < low <= high, got ({low}, {high})")
    factor = rng.uniform(low, high)
    return _scaled(old[0], factor), _scaled(old[1], factor)


def _scaled(side: int, factor: float) -> int:
    return max(1, round(side * factor))


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (H, W), both at least 1, got {size}")
    return size
