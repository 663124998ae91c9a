"""Random changes of colour: brightness, contrast, saturation and hue."""

import numpy as np

from fcn_jax.data.strips import row_strips

# Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow.
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_STRIP = 2**17  # Values whose hue is turned at once, in the cache of a core.


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, in random order.

    The factor of each of the first three is uniform in [max(0, 1 - x), 1 + x]. The hue
    moves by a share of the colour circle that is uniform in [-hue, hue]. So does
    torchvision's ColorJitter.

    Args:
        image: [H, W, N] uint8 or float32, whose first three channels are red, green and
            blue in [0, 255]; the others stay as they are.
        rng: generator that draws order, factors and shift.
        brightness: x of `adjust_brightness`, at least 0.
        contrast: x of `adjust_contrast`, at least 0.
        saturation: x of `adjust_saturation`, at least 0.
        hue: largest shift of `adjust_hue`, in [0, 1/2].

    Returns:
        An image of the same shape and type.

    Raises:
        ValueError: if a value is out of range, or the first three channels reach beyond
            [0, 255].
    """
    strengths = brightness, contrast, saturation, hue
    if min(strengths) < 0 or hue > 0.5:
        raise ValueError(
            f"(brightness, contrast, saturation, hue) = {strengths} must be at least "
            "0, and hue at most 0.5"
        )
    rgb = np.moveaxis(image[..., :3], -1, 0).astype(np.float32, order="C")
    if image.dtype != np.uint8 and not 0 <= rgb.min() <= rgb.max() <= 255:
        raise ValueError(
            f"red, green and blue reach from {rgb.min():g} to {rgb.max():g}, and a "
            "change of colour needs values in [0, 255]: leave out the jitter, or store "
            "the first three channels with 8 bits"
        )
    for i in rng.permutation(4):
        if strengths[i]:
            center, low = (0, -np.inf) if i == 3 else (1, 0)
            value = rng.uniform(max(low, center - strengths[i]), center + strengths[i])
            rgb = _ADJUSTMENTS[i](rgb, value)
    if image.dtype == np.uint8:
        rgb = np.rint(rgb).astype(np.uint8)
    changed = image.copy()
    changed[..., :3] = np.moveaxis(rgb, 0, -1)
    return changed


def adjust_brightness(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all values by a factor.

    Args:
        rgb: [3, H, W] float32, RGB in [0, 255].
        factor: 0 for black, 1 for no change.

    Returns:
        [3, H, W] float32, RGB in [0, 255].
    """
    changed = rgb * np.float32(factor)
    return np.clip(changed, 0, 255, out=changed)


def adjust_contrast(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distances of all values from the image's mean grey by a factor.

    Args:
        rgb: [3, H, W] float32, RGB in [0, 255].
        factor: 0 for the mean grey alone, 1 for no change.

    Returns:
        [3, H, W] float32, RGB in [0, 255].
    """
    return _from_grey(rgb, _GREY @ rgb.mean(axis=(1, 2)), factor)


def adjust_saturation(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the distances of all values from their pixel's grey by a factor.

    Args:
        rgb: [3, H, W] float32, RGB in [0, 255].
        factor: 0 for a grey image, 1 for no change.

    Returns:
        [3, H, W] float32, RGB in [0, 255].
    """
    # A product of NumPy's would start threads that hinder the other reading threads.
    grey = np.einsum("c,chw->hw", _GREY, rgb)
    return _from_grey(rgb, grey, factor)


def adjust_hue(rgb: np.ndarray, shift: float) -> np.ndarray:
    """Turn all colours on the colour circle of HSV; saturation and value stay.

    Args:
        rgb: [3, H, W] float32, RGB in [0, 255].
        shift: share of a full turn; 1/3 turns red into green.

    Returns:
        [3, H, W] float32, RGB in [0, 255].
    """
    turned = np.empty_like(rgb)
    for rows in row_strips(rgb.shape[1], 3 * rgb.shape[2], _STRIP):
        _turn_hue(rgb[:, rows], shift, turned[:, rows])
    return turned


def _turn_hue(rgb: np.ndarray, shift: float, turned: np.ndarray) -> None:
    """Write some rows of what `adjust_hue` returns into another array."""
    red, green, blue = rgb
    value = rgb.max(axis=0)
    chroma = value - rgb.min(axis=0)
    slope = 1 / np.maximum(chroma, np.float32(1e-6))  # Grey has no hue.
    # The hue in sixths of a turn, counted from the largest of the three.
    hue = np.where(
        value == red,
        (green - blue) * slope,
        np.where(value == green, (blue - red) * slope + 2, (red - green) * slope + 4),
    )
    hue += np.float32(6 * shift)
    for channel, offset in zip(turned, (5, 3, 1), strict=True):
        sixths = hue + offset
        sixths -= 6 * np.floor(sixths / 6)  # Much faster than %.
        # The channel is the smallest for three sixths, and the largest for two.
        channel[:] = value - chroma * np.clip(2 - abs(sixths - 2), 0, 1)


def _from_grey(
    rgb: np.ndarray, grey: np.ndarray | np.float32, factor: float
) -> np.ndarray:
    """Multiply the distances from grey by a factor."""
    changed = rgb - grey
    changed *= np.float32(factor)
    changed += grey
    return np.clip(changed, 0, 255, out=changed)


_ADJUSTMENTS = adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue
