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
    file: str | Path | BinaryIO,
    *,
    name: str = "",
    upright: bool = True,
    colors: bool = False,
) -> np.ndarray:
    """Read a mask of class indices, or one of colours.

    Args:
        file: path or open file of a palette image (its indices are returned, not its
            colours), a grey image of 8 or 16 bits, or a 1-bit image (0 and 1); or path
            of an ``.npy`` file of [H, W] integers or booleans. Of a GIF the grey levels
            or colours count, since programs change the indices when they save it.
        name: name of the mask in errors; "" for ``file``.
        upright: whether to turn the mask as its EXIF orientation says.
        colors: whether the mask may have colours instead. JPEG masks always count as
            such, since its compression changes the values.

    Returns:
        [H, W] int32, the values as stored; or, for a mask of colours, [H, W, 3] uint8
        RGB.

    Raises:
        ValueError: if the file cannot be read, has colours although ``colors`` is
            False, is partly transparent, or has values that int32 cannot hold.
    """
    where = name or str(file)
    if isinstance(file, str | Path) and Path(file).suffix.lower() == ".npy":
        return _read_npy_label(Path(file), where)
    label = decode(file, name, upright)
    if label.format in ("JPEG", "MPO"):
        if not colors:
            raise ValueError(
                f"{where}: a mask must hold class indices, and JPEG compression "
                "changes them; save the mask as PNG, or give the colour of each class "
                "as palette and set nearest_color=True"
            )
        return to_rgb(label, where)
    if label.format == "GIF" and label.mode == "P":
        # Programs that write GIF number the palette anew, so its colours count.
        label = label.convert("RGB")
        red, green, blue = label.split()
        label = red if red == green == blue else label
    if label.mode in ("1", "L", "P") or label.mode.startswith("I"):
        return np.array(label, np.int32)
    if not colors or label.mode not in ("RGB", "RGBA"):
        raise ValueError(
            f"{where}: a mask must hold class indices (a palette PNG, or grey of 8 or "
            f"16 bits), but this is an image of mode {label.mode}; set palette to the "
            "RGB colour of each class, or map each colour to the index of its class "
            "and save that"
        )
    if label.mode == "RGBA" and label.getextrema()[3] != (255, 255):
        raise ValueError(
            f"{where}: a mask of colours must be opaque, but this has transparent "
            "pixels; save it as RGB, with one colour for void pixels"
        )
    return to_rgb(label, where)


def _read_npy_label(path: Path, where: str) -> np.ndarray:
    try:
        # The file is only mapped: its header says what it holds before any is read.
        label = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises many kinds on a broken file.
        raise ValueError(f"{where}: cannot be read as .npy: {error}") from error
    if label.ndim != 2 or label.dtype.kind not in "biu" or not label.size:
        raise ValueError(
            f"{where}: holds {list(label.shape)} {label.dtype}; a mask is [H, W] of "
            "integers"
        )
    if Image.MAX_IMAGE_PIXELS and label.size > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{where}: {label.size} pixels are more than the "
            f"{2 * Image.MAX_IMAGE_PIXELS} that an image may have; cut it up"
        )
    low, high, limits = int(label.min()), int(label.max()), np.iinfo(np.int32)
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"{where}: values from {low} to {high} do not fit 32 bits; save the class "
            "indices, which are below 255"
        )
    return np.array(label, np.int32)


def image_suffixes(*, arrays: bool = False) -> set[str]:
    """Return the file name suffixes that Pillow reads, such as ".jpg".

    Args:
        arrays: whether ".npy" is one of them.
    """
    suffixes = Image.registered_extensions()
    found = {suffix for suffix, kind in suffixes.items() if kind in Image.OPEN}
    return found | {".npy"} if arrays else found


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
