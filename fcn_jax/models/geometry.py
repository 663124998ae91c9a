"""Sides and crops: how large each map is and how one is laid over another."""

from typing import Literal

import jax

Crop = Literal["center", "corner"]


def pooled_side(side: int) -> int:
    """Side of a map after a 2x2 max-pool of stride 2 with SAME padding."""
    return (side + 1) // 2


def crop_offset(big: int, small: int, crop: Crop) -> int:
    """First row (or column) of a ``big`` map that is kept beside a ``small`` one.

    Args:
        big: side of the map to be cropped.
        small: side of the map it must fit, at most ``big``.
        crop: "center" keeps the middle, ``(big - small) // 2``; "corner" keeps the top
            left, where SAME pools of stride 2 are anchored.
    Returns:
        The offset in pixels of the big map.
    """
    return (big - small) // 2 if crop == "center" else 0


def crop_to(x: jax.Array, size: tuple[int, int], crop: Crop) -> jax.Array:
    """Crops a map to a smaller height and width.

    Args:
        x: [B, H, W, C], at least as large as ``size``.
        size: the height and width wanted.
        crop: "center" or "corner", see `crop_offset`.
    Returns:
        [B, *size, C].
    """
    top = crop_offset(x.shape[1], size[0], crop)
    left = crop_offset(x.shape[2], size[1], crop)
    return x[:, top : top + size[0], left : left + size[1]]
