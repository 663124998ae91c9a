"""Transforms: pure functions from example to example.

An example is a dict. Its "image" is [H, W, 3] uint8 RGB, or [H, W, N] uint8 or float32
with N > 3, whose first three channels are red, green and blue. Its "label" is [H, W]
int32. Both keep their types in each transform; other entries pass through. Sizes are
(H, W). Random transforms draw only from the generator they are given.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fcn_jax.data.jitter import color_jitter
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
    image = resize_image(example["image"], size, part)
    label = resize_label(example["label"], size, part)
    return example | {"image": image, "label": label}


def resize_image(
    image: np.ndarray, size: tuple[int, int], part: tuple[slice, slice] = _ALL
) -> np.ndarray:
    """Resize an image [H, W, N] uint8 or float32 as `resize` does.

    The channels of an image other than RGB are resized one by one.
    """
    height, width = _checked(size)
    top, bottom, _ = part[0].indices(height)
    left, right, _ = part[1].indices(width)
    h, w = image.shape[:2]
    box = left * w / width, top * h / height, right * w / width, bottom * h / height

    def resized(channels: np.ndarray) -> Image.Image:
        return Image.fromarray(channels).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR, box
        )

    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(resized(image))
    return np.dstack([resized(channel) for channel in _channels(image)])


def resize_label(
    label: np.ndarray, size: tuple[int, int], part: tuple[slice, slice] = _ALL
) -> np.ndarray:
    """Resize a label [H, W] as `resize` does: each pixel takes the nearest value."""
    rows, columns = (
        _nearest(old, new)[kept]
        for old, new, kept in zip(label.shape, _checked(size), part, strict=True)
    )
    return label.take(rows, 0).take(columns, 1)


def random_rotation(
    example: dict, rng: np.random.Generator, degrees: float, mean: Sequence[float]
) -> dict:
    """Rotate about the centre by a random angle, uniform in [-degrees, degrees].

    The size stays. A pixel whose centre comes from outside the image is mean-coloured
    and void. Any other takes the label of the pixel that its centre comes from, and the
    bilinear mean of the four nearest pixels of the image, whose outermost rows and
    columns continue outside.

    Args:
        example: the example.
        rng: generator that draws the angle; positive angles turn counterclockwise.
        degrees: largest angle, in [0, 180].
        mean: [N], the colour of the pixels from outside.

    Raises:
        ValueError: if ``degrees`` is out of range, or ``mean`` has not N numbers.
    """
    if not 0 <= degrees <= 180:
        raise ValueError(f"degrees = {degrees} must be from 0 to 180")
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    image, label = example["image"], example["label"]
    fill = _fill(mean, image).tolist()
    rotated = [
        _rotate(channel.astype(np.float32), angle, Image.Resampling.BILINEAR, value)
        for channel, value in zip(_channels(image), fill, strict=True)
    ]
    # Labels as 16 bits: Pillow rotates an 8-bit image with rounded coordinates.
    nearest = Image.Resampling.NEAREST
    label = _rotate(label.astype(np.uint16), angle, nearest, VOID).astype(np.int32)
    if image.dtype == np.uint8:
        rotated = [np.rint(channel).astype(np.uint8) for channel in rotated]
    return example | {"image": np.dstack(rotated), "label": label}


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
    mean: Sequence[float],
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
        mean: [N], the colour of the pixels around the image.
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
    return _window(example, top, left, size, mean)


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
    mean: Sequence[float],
    rotation: float = 0.0,
    jitter: Sequence[float] = (),
    transform: Callable[[dict, np.random.Generator], dict] | None = None,
) -> dict:
    """Resize, rotate, scale, crop, flip and recolour, in this order, for training.

    Args:
        example: the example.
        rng: generator that draws all that is random.
        size: (H, W) to resize to first; () keeps the size of the image.
        scale: (low, high), the factors of `random_scale`; (1, 1) for none.
        crop: (H, W) of `random_crop`; () for none.
        flip: whether to apply `random_flip`.
        mean: [N], the colour of pixels outside the image.
        rotation: the degrees of `random_rotation`; 0 for none.
        jitter: (brightness, contrast, saturation, hue) of
            `fcn_jax.data.jitter.color_jitter`; () for none. It also changes the colour
            of the pixels outside the image.
        transform: a transform to apply last.
    """
    if size and example["label"].shape != tuple(size):  # A cache may have resized it.
        example = resize(example, size)
    if rotation:
        example = random_rotation(example, rng, rotation, mean)
    scales = tuple(scale) != (1, 1)
    if crop:
        shape = example["label"].shape
        example = random_crop(
            example,
            rng,
            crop,
            scaled=_random_size(shape, rng, *scale) if scales else None,
            mean=mean,
        )
    elif scales:
        example = random_scale(example, rng, *scale)
    if flip:
        example = random_flip(example, rng)
    if jitter:
        example = example | {"image": color_jitter(example["image"], rng, *jitter)}
    return transform(example, rng) if transform else example


def _window(
    example: dict,
    top: int,
    left: int,
    size: tuple[int, int],
    mean: Sequence[float],
) -> dict:
    """Cut out a window whose corner may lie outside the example."""
    height, width = size
    row = np.tile(_fill(mean, example["image"]), width)  # Faster than by pixel.
    image = np.tile(row, (height, 1)).reshape(height, width, -1)
    label = np.full((height, width), VOID, np.int32)
    source = np.s_[max(top, 0) : top + height, max(left, 0) : left + width]
    seen = example["label"][source]
    target = np.s_[max(-top, 0) :, max(-left, 0) :]
    label[target][: seen.shape[0], : seen.shape[1]] = seen
    image[target][: seen.shape[0], : seen.shape[1]] = example["image"][source]
    return example | {"image": image, "label": label}


def _rotate(
    channel: np.ndarray, angle: float, resample: Image.Resampling, fill: float
) -> np.ndarray:
    """Rotate [H, W] counterclockwise by an angle in radians, about the centre."""
    height, width = channel.shape
    y, x = height / 2, width / 2
    cosine, sine = np.cos(angle), np.sin(angle)
    # The place that a pixel comes from: the rotation by -angle.
    rows = (
        *(cosine, -sine, x - cosine * x + sine * y),
        *(sine, cosine, y - sine * x - cosine * y),
    )
    rotated = Image.fromarray(channel).transform(
        (width, height), Image.Transform.AFFINE, rows, resample, fillcolor=fill
    )
    return np.asarray(rotated)


def _channels(image: np.ndarray) -> list[np.ndarray]:
    """Return the channels of an image, [H, W] each."""
    return list(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def _fill(mean: Sequence[float], image: np.ndarray) -> np.ndarray:
    """Return a colour in the type of the image."""
    if len(mean) != image.shape[2]:
        raise ValueError(
            f"mean has {len(mean)} numbers, the image {image.shape[2]} channels"
        )
    if image.dtype == np.uint8:
        return np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    return np.asarray(mean, image.dtype)


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
