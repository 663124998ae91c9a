"""Padding images of several sizes to few shapes."""

import numpy as np

from fcn_jax.data.labels import VOID

STEP = 64  # Sides of padded images are multiples of this.


def bucket(size: tuple[int, int], step: int = STEP) -> tuple[int, int]:
    """Round a height and a width up to multiples of ``step``."""
    return tuple(-(-side // step) * step for side in size)


def fill_up(
    images: list[np.ndarray], shape: tuple[int, int], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad images with zeros to one shape and stack them.

    Args:
        images: [h, w, N] each; at most ``batch_size`` of them.
        shape: (H, W), at least as large as every image.
        batch_size: B. Images of one pixel of zeros fill up the batch.

    Returns:
        batch: [B, H, W, N], each image at the top left, of a dtype that holds the
            values of all images.
        size: [B, 2] int32, the height and width of each image.
    """
    channels, dtype = images[0].shape[2], np.result_type(*images)
    batch = np.zeros((batch_size, *shape, channels), dtype)
    size = np.ones((batch_size, 2), np.int32)
    for i, image in enumerate(images):
        size[i] = h, w = image.shape[:2]
        batch[i, :h, :w] = image
    return batch, size


def enlarge(
    batch: dict[str, np.ndarray], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Pad a training batch with "size" further, to images of ``shape``."""
    rows, cols = np.subtract(shape, batch["label"].shape[1:])
    pads = ((0, 0), (0, rows), (0, cols))
    return batch | {
        "image": np.pad(batch["image"], (*pads, (0, 0))),
        "label": np.pad(batch["label"], pads, constant_values=VOID),
    }
