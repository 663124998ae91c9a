"""Images as people pass them, checked and turned into arrays."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fcn_jax.data.channels import read_channels
from fcn_jax.data.images import ORIENTATION, SpooledImage, to_rgb
from fcn_jax.models.vgg import is_number

Array = np.ndarray | jax.Array
AnyImage = Array | Image.Image | str | Path


def as_batch(image: AnyImage, channels: int = 3) -> tuple[Array, bool]:
    """Return a batch of images from an image or a batch in any common form.

    Args:
        image: [H, W, 3] or [B, H, W, 3], integer or float, RGB in [0, 255]; a PIL
            image; or the path of an image file, which is turned upright. For more
            channels, [H, W, N] or [B, H, W, N] uint8, uint16 or float, of any finite
            values; or the path of a file that has N channels.
        channels: N, those of the network.

    Returns:
        batch: [B, H, W, N], the same values.
        single: whether ``image`` had no batch axis.

    Raises:
        ValueError: if ``image`` is anything else, or its values do not look like RGB
            in [0, 255]. The error tells what to pass instead.
    """
    if isinstance(image, str | Path):
        return read_channels([Path(image)], channels=channels)[None], True
    if isinstance(image, Image.Image) and channels == 3:
        return _from_pil(image)[None], True
    if not isinstance(image, np.ndarray | jax.Array):
        pil = ", a PIL image" if channels == 3 else ""
        raise ValueError(
            f"image is a {type(image).__name__}: pass an array [H, W, {channels}]{pil}"
            ", the path of an image file, or a list of these"
        )
    if image.ndim not in (3, 4) or image.shape[-1] != channels or 0 in image.shape:
        rgb = "RGB " if channels == 3 else ""
        raise ValueError(
            f"image must be {rgb}[H, W, {channels}] or [B, H, W, {channels}] with no "
            f"empty side, got {list(image.shape)}{_shape_hint(image.shape, channels)}"
        )
    _check_values(image, channels)
    single = image.ndim == 3
    return (image[None] if single else image), single


def as_image(image: AnyImage | SpooledImage, channels: int = 3) -> Array | SpooledImage:
    """Return [H, W, N] from one image in any form that `as_batch` takes.

    A `SpooledImage` is returned as it is, for those who take parts of it alone.
    """
    if isinstance(image, SpooledImage) and channels == 3:
        return image
    batch, single = as_batch(image, channels)
    if not single:
        raise ValueError(
            f"image must be one image [H, W, {channels}], got a batch "
            f"{list(batch.shape)}: pass its images one by one"
        )
    return batch[0]


def is_traced(*values: Any) -> bool:
    """Tell whether any array in these is being traced by a JAX transformation."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def _from_pil(image: Image.Image) -> np.ndarray:
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation != 1:
        raise ValueError(
            f"image is stored turned (EXIF orientation {orientation}): pass its path, "
            "fcn_jax.read_image(path), or PIL.ImageOps.exif_transpose(image), and "
            "compare the labels with that"
        )
    return to_rgb(image)


def _shape_hint(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) in (3, 4) and shape[-3] == channels:
        return ": for channels first pass np.moveaxis(image, -3, -1)"
    if channels != 3:
        return f": the network takes {channels} channels, with RGB first"
    if len(shape) == 2:
        return ": for a grey image pass np.stack([image] * 3, axis=-1)"
    if len(shape) not in (3, 4) or 0 in shape:
        return ""
    if shape[-1] == 1:
        return ": for a grey image pass np.repeat(image, 3, axis=-1)"
    if shape[-1] == 4:
        return ": for an RGBA image pass image[..., :3]"
    return ""


def _check_values(image: Array, channels: int) -> None:
    """Raise ValueError for a dtype or values that the network does not take."""
    is_float = jnp.issubdtype(image.dtype, jnp.floating)
    if channels == 3:
        if not (is_float or jnp.issubdtype(image.dtype, jnp.integer)):
            raise ValueError(
                f"image must be uint8 or float, RGB in [0, 255], got {image.dtype}"
            )
        if image.dtype != np.uint8:
            _check_range(image, is_float)
    elif is_float:
        if not all(map(is_number, _range(image))):
            raise ValueError("image holds NaN or infinity: replace them by numbers")
    elif image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"image must be uint8, uint16 or float, got {image.dtype}")


def _range(image: Array) -> tuple[float, float]:
    """Return the lowest and the highest value, (0, 0) while they are unknown."""
    if is_traced(image):
        return 0.0, 0.0
    with jax.ensure_compile_time_eval():  # A jax.jit around may close over the image.
        return float(image.min()), float(image.max())


def _check_range(image: Array, is_float: bool) -> None:
    low, high = _range(image)
    if 0 <= low and high <= 255 and not (is_float and 0 < high <= 1):
        return
    if is_float and 0 <= low and high <= 1:
        way_out = "pass 255 * image, or the image as it was read"
    elif low >= 0 and not is_float:
        way_out = "for 16 bits pass (image // 256).astype(np.uint8)"
    else:
        way_out = "pass the image as it was read, without a mean or a scale"
    raise ValueError(
        f"image has values in [{low:.3g}, {high:.3g}], but the network takes RGB in "
        f"[0, 255] and subtracts the mean itself: {way_out}"
    )
