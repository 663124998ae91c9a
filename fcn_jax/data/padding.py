"""Batches of images of several sizes, in few shapes."""

import numpy as np

STEP = 64  # Sides of buckets are multiples of this.


def bucket(size: tuple[int, int], step: int = STEP) -> tuple[int, int]:
    """The smallest height and width that are multiples of ``step`` and hold a size."""
    return tuple(-(-side // step) * step for side in size)


def fill_up(
    images: list[np.ndarray], shape: tuple[int, int], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One batch of images of several sizes.

    Args:
        images: [h, w, 3] each, of one dtype; at most ``batch_size`` of them.
        shape: height and width that hold every image.
        batch_size: B; images of one pixel make up what lacks.
    Returns:
        batch: [B, *shape, 3], zeros where there is no image.
        size: [B, 2] int32, the heights and widths.
    """
    batch = np.zeros((batch_size, *shape, 3), images[0].dtype)
    size = np.ones((batch_size, 2), np.int32)
    for i, image in enumerate(images):
        size[i] = h, w = image.shape[:2]
        batch[i, :h, :w] = image
    return batch, size
