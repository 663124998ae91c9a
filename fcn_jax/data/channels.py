"""Reading images of more than three channels, from one file or from several."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.images import (
    check_regular,
    decode,
    read_oriented_image,
    read_size,
    tells_turn,
    to_rgb,
    turn,
)

_TIFF_SUFFIXES = (".tif", ".tiff")
_HEADED = (".npy", *_TIFF_SUFFIXES)  # Files that are opened without decoding them.
_MAX_PIXELS = 178_956_970  # As many as Pillow decodes.
_MAX_PAGES = 4096
_MAX_INTEGER = 2**24  # float32 holds every integer up to here.
_GREY, _RGB = 1, 2  # Photometric interpretations of a TIFF whose bands are values.


def read_channels(
    files: Sequence[Path], *, channels: int, upright: bool = True
) -> np.ndarray:
    """Read the image of one example and stack the bands of its files.

    Each file gives one or more bands:

    - ``.npy``: an array [H, W] or [H, W, k] of integers or floats.
    - ``.tif`` or ``.tiff``, also GeoTIFF: its bands in the order of the file, in any
      layout. The pages of a TIFF are stacked, page by page; reduced copies (overviews)
      and transparency masks are left out. Positions on the map are not read, so files
      of one example must cover the same pixels. Palette, CMYK and YCbCr pages are read
      as by Pillow.
    - Any other image that Pillow reads: grey gives 1 band, grey with alpha 2, RGB 3,
      RGBA 4, and every other kind 3, converted to RGB. 16-bit grey keeps its values,
      16-bit colour its high bytes.

    One file of three channels that is not ``.npy`` is read by
    `fcn_jax.data.images.read_image`.

    Args:
        files: the files, in the order of the channels.
        channels: N, the number of channels wanted.
        upright: whether to turn the images as their EXIF orientation says.

    Returns:
        [H, W, N], uint8 if every band has 8 bits, otherwise float32 with the values as
        stored.

    Raises:
        ValueError: if a file cannot be read, is too large, or holds NaN, infinity or
            integers that float32 cannot hold; if the bands are not N, or the sizes
            differ; or if N is 3 and a band has more than 8 bits.
    """
    return read_oriented_channels(files, channels=channels, upright=upright)[0]


def read_oriented_channels(
    files: Sequence[Path], *, channels: int, upright: bool = True
) -> tuple[np.ndarray, int]:
    """Return what `read_channels` does, and the EXIF orientation in the first file."""
    files = [Path(file) for file in files]
    if is_picture(files, channels):
        return read_oriented_image(files[0], upright=upright)
    with contextlib.ExitStack() as stack:
        stored = [_open(path, upright, stack) for path in files]
        _check(stored, channels)
        parts = [part for one in stored for part in one.read()]
    orientation = stored[0].orientation
    if all(part.dtype == np.uint8 for part in parts):
        return np.concatenate(parts, axis=-1), orientation
    if channels == 3:
        raise ValueError(
            f"{_listed(stored)}: three channels are red, green and blue of 8 bits; "
            "save them as 8-bit images"
        )
    return np.concatenate(parts, axis=-1, dtype=np.float32), orientation


def count_pixels(files: Sequence[Path], *, channels: int) -> int:
    """Return the pixels of an image that `read_channels` takes, from its headers.

    Raises:
        ValueError: if the first file cannot be read.
    """
    first = files[0]
    if is_picture(files, channels) or first.suffix.lower() not in _HEADED:
        return math.prod(read_size(first))
    with contextlib.ExitStack() as stack:
        return math.prod(_open(first, False, stack).size)


def is_picture(files: Sequence[Path], channels: int) -> bool:
    """Tell whether `fcn_jax.data.images.read_image` reads an image of these files."""
    return channels == 3 and len(files) == 1 and files[0].suffix.lower() != ".npy"


@dataclass
class _Stored:
    """Describe the bands of an open file; ``read`` gives arrays [H, W, k]."""

    path: Path
    size: tuple[int, int]
    bands: int
    kind: str
    read: Callable[[], list[np.ndarray]]
    orientation: int = 1  # By the EXIF tag of the file.


def _open(path: Path, upright: bool, stack: contextlib.ExitStack) -> _Stored:
    if path.suffix.lower() == ".npy":
        return _open_array(path)
    if path.suffix.lower() in _TIFF_SUFFIXES:
        stored = _open_tiff(path, upright, stack)
        if stored:
            return stored
    return _open_picture(path, upright)


def _check(stored: list[_Stored], channels: int) -> None:
    if sum(one.bands for one in stored) != channels:
        raise ValueError(
            f"the bands of the files do not make up the {channels} channels of an "
            f"image: {_listed(stored) or 'there are no files'}"
        )
    for one in stored[1:]:
        if one.size != stored[0].size:
            raise ValueError(
                "{} is {}x{}, but {} is {}x{} (height x width): the files of one image "
                "must have one size".format(
                    stored[0].path, *stored[0].size, one.path, *one.size
                )
            )
        _check_turned(stored[0], one)


def _check_turned(a: _Stored, b: _Stored) -> None:
    """Raise ValueError if one file is stored turned, and sizes cannot tell the other.

    Both have one size when they are upright.
    """
    turned = max(a, b, key=lambda one: one.orientation)
    if a.orientation != b.orientation and not tells_turn(
        turned.orientation, turned.size
    ):
        raise ValueError(
            f"{turned.path} is stored turned (EXIF orientation {turned.orientation}), "
            "but not all files of the image are, and their sizes do not tell whether "
            "they fit: save all of them upright"
        )


def _listed(stored: list[_Stored]) -> str:
    return ", ".join(f"{one.path} has {one.bands} ({one.kind})" for one in stored)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn any error into a ValueError that names the file."""
    try:
        yield
    # The decoders raise nearly anything on a broken file.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if "imagecodecs" in reason:
            reason += (
                ". Install imagecodecs, or save the file uncompressed or with deflate"
            )
        raise ValueError(f"{path}: cannot be read as an image: {reason}") from error


def _open_array(path: Path) -> _Stored:
    with _named(path):
        check_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
            shape = getattr(array, "shape", "no array")
            raise ValueError(f"its shape is {shape}, want [H, W] or [H, W, k]")
        array = array if array.ndim == 3 else array[..., None]
        _check_size(array.shape[:2])

    def read() -> list[np.ndarray]:
        with _named(path):
            return [_numbers(array)]

    kind = f"array {list(array.shape)} {array.dtype}"
    return _Stored(path, array.shape[:2], array.shape[2], kind, read)


def _open_tiff(
    path: Path, upright: bool, stack: contextlib.ExitStack
) -> _Stored | None:
    """Open a TIFF; return None if its values are not bands and Pillow must convert."""
    import tifffile

    with _named(path):
        check_regular(path)
        file = stack.enter_context(tifffile.TiffFile(path))
        pages = list(itertools.islice(file.pages, _MAX_PAGES + 1))
        if len(pages) > _MAX_PAGES:
            raise ValueError(f"it has more than {_MAX_PAGES} pages")
        # Pages marked as reduced or as masks belong to others.
        pages = [page for page in pages if not page.subfiletype & 0b101]
        if len(pages) == 1 and pages[0].photometric > _RGB:
            return None
        for page in pages:
            _check_page(page, upright)
        sizes = sorted({page.shaped[2:4] for page in pages})
        if len(sizes) != 1:
            raise ValueError(f"its pages have the sizes {sizes}, want pages of one")
        bands = sum(page.samplesperpixel for page in pages)

    def read() -> list[np.ndarray]:
        with _named(path):
            return [_read_page(page) for page in pages]

    types = ", ".join(sorted({str(page.dtype) for page in pages}))
    kind = f"TIFF of {len(pages)} page{'s' * (len(pages) > 1)}, {types}"
    return _Stored(path, sizes[0], bands, kind, read)


def _check_page(page: Any, upright: bool) -> None:
    """Raise ValueError before anything is decoded that is too large or misread."""
    if page.photometric not in (_GREY, _RGB):
        raise ValueError(
            f"its photometric interpretation is {page.photometric!r}; save it as grey "
            "where 0 is black, or as RGB"
        )
    if page.bitspersample not in (8, 16, 32, 64):
        raise ValueError(f"it has {page.bitspersample} bits per value, want 8 or 16")
    if page.shaped[1] != 1:
        raise ValueError(f"it is a volume of depth {page.shaped[1]}, want an image")
    orientation = page.tags.valueof("Orientation", default=1)
    if upright and orientation != 1:
        raise ValueError(
            f"it is stored with orientation {orientation}; turn it upright"
        )
    height, width = page.shaped[2:4]
    _check_size((height, width))
    if page.is_contiguous:
        return
    # Strips or tiles that are missing would leave memory as it was. One that is longer
    # than its pixels, although it is compressed, may expand without bounds.
    if len(page.dataoffsets) != math.prod(page.chunked):
        raise ValueError("strips or tiles of it are missing")
    rows, columns = page.chunks[:2]
    rows = rows if page.is_tiled else min(rows, height)
    _check_size((rows, columns))
    plain = rows * columns * page.samplesperpixel * page.dtype.itemsize
    if max(page.databytecounts) > plain + plain // 8 + 1024:
        raise ValueError("a strip or tile is longer than its pixels")


def _read_page(page: Any) -> np.ndarray:
    """Return the bands of a page, [H, W, k]."""
    array = page.asarray(squeeze=False, maxworkers=1)  # [planes, 1, H, W, samples]
    if array.shape != page.shaped:
        raise ValueError(f"decoded to {array.shape}, want {page.shaped}")
    array = np.moveaxis(array[:, 0], 0, -1)  # [H, W, samples, planes], one of them 1
    return _numbers(array.reshape(*array.shape[:2], -1))


def _open_picture(path: Path, upright: bool) -> _Stored:
    image, orientation, left = decode(path)
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        array = np.array(image)
    elif image.mode.startswith("I") or image.mode == "F":
        with _named(path):
            array = _numbers(np.array(image))
    elif image.mode == "1":
        array = np.array(image.convert("L"))
    else:
        array = to_rgb(image, str(path))
    array = array if array.ndim == 3 else array[..., None]
    array = turn(array, left) if upright else array
    kind, (*size, bands) = f"image of mode {image.mode}", array.shape
    return _Stored(path, tuple(size), bands, kind, lambda: [array], orientation)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(f"it is empty: {size[0]}x{size[1]}")
    if math.prod(size) > _MAX_PIXELS:
        raise ValueError(
            f"it is {size[0]}x{size[1]} pixels, more than {_MAX_PIXELS:,}; cut it into "
            "several images"
        )


def _numbers(array: np.ndarray) -> np.ndarray:
    """Return uint8 as it is and other numbers as finite float32."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"its values are {array.dtype}, want integers or floats")
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        if max(-low, high) > _MAX_INTEGER:
            raise ValueError(
                f"its integers reach from {low} to {high}, and float32 holds integers "
                f"up to {_MAX_INTEGER}; scale them first"
            )
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ValueError(
            "it holds NaN, infinity or a number beyond float32; replace them by "
            "numbers, such as the mean of the band"
        )
    return numbers
