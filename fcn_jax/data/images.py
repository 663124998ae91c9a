"""Reading one image or one mask with Pillow."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps


def read_image(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> np.ndarray:
    """Read an image file as RGB.

    Args:
        file: path or open file of an image in any format that Pillow reads.
        name: name of the image in errors; "" for ``file``.
        upright: whether to turn the image as its EXIF orientation says. False gives
            the pixels as stored.

    Returns:
        [H, W, 3] uint8, RGB in [0, 255], converted as by `to_rgb`.

    Raises:
        ValueError: if the file cannot be read, or `to_rgb` refuses its pixels.
    """
    return to_rgb(decode(file, name, upright), name or str(file))


def to_rgb(image: Image.Image, name: str = "image") -> np.ndarray:
    """Convert a Pillow image of any mode to RGB.

    An alpha channel is dropped, as TensorFlow, OpenCV and ``Image.convert("RGB")`` do,
    so transparent pixels show the colour stored under them. 16-bit grey keeps its high
    byte, as Pillow does with 16-bit RGB.

    Args:
        image: the image.
        name: name of the image in errors.

    Returns:
        [H, W, 3] uint8, RGB in [0, 255].

    Raises:
        ValueError: if the pixels are floating point or wider than 16 bits, for which
            no range is agreed.
    """
    if image.mode == "F" or image.mode == "I" and (np.asarray(image) >> 16).any():
        raise ValueError(
            f"{name}: pixels of mode {image.mode} (32-bit) have no agreed range; save "
            "the image with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Converted straight to RGB, transparency makes Pillow warn.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_label(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> np.ndarray:
    """Read a mask of class indices.

    Args:
        file: path or open file of a palette image (its indices are returned, not its
            colours), a grey image of 8 or 16 bits, or a 1-bit image (0 and 1).
        name: name of the mask in errors; "" for ``file``.
        upright: whether to turn the mask as its EXIF orientation says.

    Returns:
        [H, W] int32, the values as stored.

    Raises:
        ValueError: if the file cannot be read or holds colours.
    """
    label = decode(file, name, upright)
    if label.mode not in ("1", "L", "P") and not label.mode.startswith("I"):
        raise ValueError(
            f"{name or file}: a mask must hold class indices (a palette PNG, or grey "
            f"of 8 or 16 bits), but this is an image of mode {label.mode}; map each of "
            "its colours to the index of its class and save that"
        )
    return np.array(label, np.int32)


def image_suffixes() -> set[str]:
    """Return the file name suffixes that Pillow reads, such as ".jpg"."""
    suffixes = Image.registered_extensions()
    return {suffix for suffix, kind in suffixes.items() if kind in Image.OPEN}


def decode(file: str | Path | BinaryIO, name: str, upright: bool) -> Image.Image:
    """Decode an image file with Pillow, in its own mode.

    Args:
        file: path or open file of the image.
        name: name of the image in errors; "" for ``file``.
        upright: whether to turn the image as its EXIF orientation says.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with _open(file) as image:
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    # Pillow's decoders raise nearly anything on a broken file.
    except Exception as error:
        raise ValueError(
            f"{name or file}: cannot be read as an image: {error}"
        ) from error


def _open(file: str | Path | BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombWarning:
        # Pillow warns from 89 million pixels, which a large photograph has, and raises
        # at twice that, which is limit enough. The warning only arrives here where
        # warnings are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file)
