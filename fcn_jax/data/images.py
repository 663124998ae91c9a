"""Reading one image or one mask with Pillow."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.data.strips import row_strips

ORIENTATION = 0x0112  # The EXIF tag that tells how a camera was held; 1 is upright.
# Orientation: whether to reverse the rows, the columns, and then to swap both.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}

_MAX_SIDE = 2**20  # A strip of one row is not too long then.
STRIP = 2**20  # Pixels that are converted at once.
_MAX_DECODING = 2**30  # Bytes.
# Measured bytes per pixel that Pillow takes to decode RGB. A progressive JPEG is
# decoded from all of its coefficients, and a TIFF may have a single strip.
_DECODING = dict.fromkeys(("PNG", "JPEG", "MPO", "GIF", "BMP", "PPM", "TGA"), 4)
_DECODING["TIFF"] = 7
_DECODING_PROGRESSIVE = 10
_DECODING_OTHER = 20
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # Compressions of a TIFF.


def read_image(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> np.ndarray:
    """Read an image file as RGB.

    Args:
        file: path or open file of an image in any format that Pillow reads, except
            EPS, which is a program. Of an animation or of several pages, the first
            counts.
        name: name of the image in errors; "" for ``file``.
        upright: whether to turn the image as its EXIF orientation says. False gives
            the pixels as stored.

    Returns:
        [H, W, 3] uint8, RGB in [0, 255], converted as by `to_rgb`.

    Raises:
        ValueError: if the file cannot be read, would take more than 1 GiB to decode,
            or holds pixels that `to_rgb` refuses.
    """
    return read_oriented_image(file, name=name, upright=upright)[0]


def read_oriented_image(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> tuple[np.ndarray, int]:
    """Return what `read_image` does, and the EXIF orientation in the file."""
    image, orientation, left = decode(file, name)
    array = to_rgb(image, name or str(file))
    return turn(array, left) if upright else array, orientation


@dataclass(frozen=True)
class SpooledImage:
    """Give the pixels of a large image from a temporary file.

    It is used like an array [H, W, 3] uint8, of which ``image[rows, columns]`` and
    ``image[rows]`` give parts.
    """

    shape: tuple[int, int, int]
    file: BinaryIO
    dtype: ClassVar = np.dtype(np.uint8)
    ndim: ClassVar = 3

    def __getitem__(self, part: slice | tuple[slice, ...]) -> np.ndarray:
        """Return a part of the image as an array of its own."""
        # Mapped anew each time, since the pages of a mapping count as memory in use.
        pixels = np.memmap(self.file, self.dtype, "r", shape=self.shape)
        return np.array(pixels[part])


@contextlib.contextmanager
def spooled_image(file: str | Path, folder: str | Path) -> Iterator[SpooledImage]:
    """Read an image into a temporary file, so that it leaves the memory.

    Args:
        file: path of an image, as `read_image` takes it.
        folder: where the temporary file is made. It has no name there, and goes away
            with the context or the process.

    Yields:
        The image, upright.

    Raises:
        ValueError: as `read_image` does.
        OSError: if the temporary file cannot be written.
    """
    image, _, left = decode(file)
    _check_mode(image, str(file))
    width, height = image.size
    rows, columns = (width, height) if _TURNS[left][2] else (height, width)
    with _temporary_file(folder) as spool:
        try:
            for strip in row_strips(rows, columns, STRIP):
                _upright_rows(image, left, strip.start, strip.stop).tofile(spool)
        except OSError as error:
            raise OSError(
                f"{folder}: a temporary file for the pixels of {file} cannot be "
                f"written; is the disk full? ({error})"
            ) from error
        del image
        yield SpooledImage((rows, columns, 3), spool)


@contextlib.contextmanager
def _temporary_file(folder: str | Path) -> Iterator[BinaryIO]:
    """Open a file without a name and without a buffer."""
    file = tempfile.TemporaryFile(dir=folder, buffering=0)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # Nothing in it is needed any more.
            file.close()


def _upright_rows(
    image: Image.Image, orientation: int, first: int, last: int
) -> np.ndarray:
    """Return rows of an image as they are once it is upright: [h, W, 3] uint8."""
    reverse_rows, reverse_columns, swaps = _TURNS[orientation]
    width, height = image.size
    if reverse_columns if swaps else reverse_rows:
        rows = width if swaps else height
        first, last = rows - last, rows - first
    box = (first, 0, last, height) if swaps else (0, first, width, last)
    return turn(to_rgb(image.crop(box)), orientation)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels upright.

    Args:
        image: [H, W, ...].
        orientation: as EXIF numbers it, 1 to 8.

    Returns:
        [H, W, ...] or [W, H, ...].
    """
    reverse_rows, reverse_columns, swaps = _TURNS[orientation]
    image = image[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]
    return np.ascontiguousarray(image.swapaxes(0, 1) if swaps else image)


def tells_turn(orientation: int, stored: tuple[int, int]) -> bool:
    """Tell whether the size of an image changes when it is turned upright.

    Args:
        orientation: as for `turn`.
        stored: height and width as stored.
    """
    return _TURNS[orientation][2] and stored[0] != stored[1]


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
    _check_mode(image, name)
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Converted straight to RGB, transparency makes Pillow warn.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _check_mode(image: Image.Image, name: str) -> None:
    low, high = image.getextrema() if image.mode == "I" else (0, 0)
    if image.mode == "F" or low < 0 or high >= 2**16:
        raise ValueError(
            f"{name}: pixels of mode {image.mode} (32-bit) have no agreed range; save "
            "the image with 8 or 16 bits"
        )


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
        colors: whether the mask may have colours instead. Masks of JPEG, WebP, AVIF
            and JPEG 2000 always count as such, since compression changes the values.

    Returns:
        [H, W] int32, the values as stored; or, for a mask of colours, [H, W, 3] uint8
        RGB.

    Raises:
        ValueError: if the file cannot be read, has colours although ``colors`` is
            False, is partly transparent, or has values that int32 cannot hold.
    """
    return read_oriented_label(file, name=name, upright=upright, colors=colors)[0]


def read_oriented_label(
    file: str | Path | BinaryIO,
    *,
    name: str = "",
    upright: bool = True,
    colors: bool = False,
) -> tuple[np.ndarray, int]:
    """Return what `read_label` does, and the EXIF orientation in the file."""
    where = name or str(file)
    if isinstance(file, str | Path) and Path(file).suffix.lower() == ".npy":
        return _read_npy_label(Path(file), where), 1
    image, orientation, left = decode(file, name)
    label = _label_values(image, where, colors)
    return turn(label, left) if upright else label, orientation


def _label_values(label: Image.Image, where: str, colors: bool) -> np.ndarray:
    if label.format in _LOSSY or label.info.get("compression") in _LOSSY_TIFF:
        if not colors:
            raise ValueError(
                f"{where}: a mask must hold class indices, and {label.format} "
                "compression changes them; save the mask as PNG, or give the colour of "
                "each class as palette and set nearest_color=True"
            )
        label = label if label.mode == "RGBA" else label.convert("RGB")
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
        check_regular(path)
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
    """Return the file name suffixes of images that can be read, such as ".jpg".

    Args:
        arrays: whether ".npy" is one of them.
    """
    suffixes = Image.registered_extensions()
    kinds = set(Image.OPEN) - {"EPS"}
    found = {suffix for suffix, kind in suffixes.items() if kind in kinds}
    return found | {".npy"} if arrays else found


def read_size(file: str | Path) -> tuple[int, int]:
    """Return the stored height and width in the header of an image file.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with _open(file) as image:
            return image.size[::-1]
    except Exception as error:  # As in `decode`.
        raise ValueError(f"{file}: cannot be read as an image: {error}") from error


def read_upright_size(file: str | Path) -> tuple[int, int]:
    """Return the height and width of an image once it is upright, from its header.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with _open(file) as image:
            width, height = image.size
            # Pillow tells the size of a TIFF as it will turn it.
            swaps = image.format != "TIFF" and _TURNS[_orientation(image)][2]
    except Exception as error:  # As in `decode`.
        raise ValueError(f"{file}: cannot be read as an image: {error}") from error
    return (width, height) if swaps else (height, width)


class Decoded(NamedTuple):
    """Hold a decoded image, in its own mode."""

    image: Image.Image
    orientation: int  # By the EXIF tag of the file; 1 is upright.
    left: int  # The orientation that the pixels still have: Pillow turns TIFFs.


def decode(file: str | Path | BinaryIO, name: str = "") -> Decoded:
    """Decode an image file with Pillow, in its own mode.

    Args:
        file: path or open file of the image.
        name: name of the image in errors; "" for ``file``.

    Raises:
        ValueError: if the file cannot be read, or would take too much memory.
    """
    try:
        with _open(file) as image:
            _check_decoding(image)
            orientation = _orientation(image)
            image.load()
            return Decoded(image, orientation, _orientation(image))
    # Pillow's decoders raise nearly anything on a broken file.
    except Exception as error:
        raise ValueError(
            f"{name or file}: cannot be read as an image: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in _TURNS else 1


def check_regular(file: str | Path | BinaryIO) -> None:
    """Raise ValueError for a path of a pipe, a device or a folder.

    Reading a pipe or a device may never end.
    """
    if isinstance(file, str | Path) and os.path.exists(file):
        if not os.path.isfile(file):
            raise ValueError("it is a pipe, a device or a folder, not a regular file")


def _check_decoding(image: Image.Image) -> None:
    """Raise ValueError if decoding would run a program or take too much memory."""
    if image.format == "EPS":
        raise ValueError("EPS is a program for Ghostscript; save the image as PNG")
    each = _DECODING.get(image.format, _DECODING_OTHER)
    if image.info.get("progressive"):
        each = _DECODING_PROGRESSIVE
    width, height = image.size
    if max(width, height) > _MAX_SIDE:
        raise ValueError(
            f"a side of {height}x{width} pixels is above {_MAX_SIDE}; cut the image up"
        )
    if each * width * height > _MAX_DECODING:
        raise ValueError(
            f"{height}x{width} pixels take more than 1 GiB to decode from this kind of "
            f"{image.format}; save the image as PNG, or cut it up"
        )


def _open(file: str | Path | BinaryIO) -> Image.Image:
    check_regular(file)
    try:
        return Image.open(file)
    except Image.DecompressionBombWarning:
        # Pillow warns from 89 million pixels, which a large photograph has, and raises
        # at twice that, which is limit enough. The warning only arrives here where
        # warnings are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file)
