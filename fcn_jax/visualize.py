"""Label maps in colour, alone and over their images."""

import functools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import VOID
from fcn_jax.data.shorten import printable
from fcn_jax.data.strips import row_strips
from fcn_jax.files import replacing

Palette = Sequence[tuple[int, int, int]]

_STRIP = 2**18  # Pixels of an overlay that are computed at once.
_SMALL = 512  # Longest side of a label map in which places for names are sought.
_LONGEST_NAME = 40  # Letters of a name in a legend.


def colormap(n: int = 256) -> np.ndarray:
    """Return the colours of PASCAL VOC.

    Bits 0, 3, 6 of an index make its red, bits 1, 4, 7 its green, bits 2, 5 its blue.

    Args:
        n: number of colours.

    Returns:
        [n, 3] uint8, RGB; 0 is black and 255, VOC's void, (224, 224, 192).

    Reference: VOClabelcolormap.m of the VOC development kit.
    """
    index, channel = np.arange(n)[:, None], np.arange(3)
    bits = [(index >> (3 * i + channel) & 1) << (7 - i) for i in range(8)]
    return sum(bits).astype(np.uint8)  # [n, 3]


def colorize(labels: np.ndarray, palette: Palette = ()) -> np.ndarray:
    """Return labels in colour.

    Args:
        labels: [...] integers in [0, 255]; 255 is void.
        palette: one RGB colour for each class, or () for the colours of PASCAL VOC.

    Returns:
        [..., 3] uint8, RGB. Void gets VOC's void colour.

    Raises:
        ValueError: if ``labels`` are not integers or out of range.
    """
    return _table(palette)[_as_bytes(np.asarray(labels))]


def as_picture(
    image: np.ndarray,
    mean: Sequence[float],
    scale: Sequence[float] = (),
    shown: Sequence[int] = (0, 1, 2),
) -> np.ndarray:
    """Return three channels of an image as red, green and blue.

    RGB and 8-bit channels are shown as they are where their scale is 1. Another channel
    is shown as ``127.5 + (image - mean) * scale``: with the scale that a run computes,
    the range holds two standard deviations on each side of the mean.

    Args:
        image: [H, W, N] integers or floats. RGB alone is never rescaled.
        mean: N numbers, as `fcn_jax.FCN` has them.
        scale: likewise; () for 1.
        shown: three channels, from 0.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    image = np.asarray(image)
    planes = []
    for i in shown:
        plane, factor = image[..., i], scale[i] if len(scale) else 1
        is_color = factor == 1 and (image.dtype == np.uint8 or i < 3)
        if image.shape[-1] > 3 and not is_color:
            plane = 127.5 + (plane.astype(np.float32) - mean[i]) * factor
        planes.append(np.clip(np.rint(plane), 0, 255).astype(np.uint8))
    return np.stack(planes, axis=-1)


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    palette: Palette = (),
    alpha: float = 0.5,
    background: int | None = 0,
    outline: bool = True,
    names: Sequence[str] = (),
    legend: Sequence[str] = (),
) -> np.ndarray:
    """Return the image tinted with the colours of its labels.

    Args:
        image: [..., H, W, 3] uint8 or float, RGB in [0, 255].
        labels: [..., H, W] integers in [0, 255]; void pixels (255) keep their colour.
        palette: as for `colorize`.
        alpha: share of the labels' colours, in [0, 1].
        background: the class whose pixels keep their colour, or None to tint every
            class.
        outline: whether the pixels at the edge of a region get the full colour of its
            class.
        names: of classes 0, 1, ..., to be written on the largest region of each class,
            or ().
        legend: of classes 0, 1, ..., for a legend below the image of those that it has,
            or (). The picture is then higher than the image, and wider if a name is.

    Returns:
        [..., H, W, 3] uint8, RGB.

    Raises:
        ValueError: if the shapes differ, the labels are out of range or have no name,
            or several images are to have a legend.
    """
    image, labels = np.asarray(image), np.asarray(labels)
    if image.shape != (*labels.shape, 3):
        raise ValueError(
            f"image {image.shape} and labels {labels.shape} do not belong together: "
            "expected [H, W, 3] and [H, W]"
        )
    tints = {"palette": palette, "background": background}
    tints |= {"alpha": alpha, "outline": outline}
    if labels.ndim > 2:
        if len(legend):
            raise ValueError(
                "legend: legends differ in size, so pass images one by one"
            )
        maps = zip(image, labels, strict=True)
        return np.stack([overlay(*pair, **tints, names=names) for pair in maps])
    mixed = np.empty(image.shape, np.uint8)
    strips = overlay_strips(lambda rows: image[rows], labels, **tints)
    for rows, strip in zip(_strips(labels), strips, strict=True):
        mixed[rows] = strip
    if len(names):
        mixed = _with_names(mixed, labels, names, background)
    if len(legend):
        below = legend_below(labels, legend, palette=palette, background=background)
        mixed = np.concatenate([widened(mixed, below.shape[1]), below])
    return mixed


def overlay_strips(
    image_rows: Callable[[slice], np.ndarray],
    labels: np.ndarray,
    *,
    palette: Palette = (),
    alpha: float = 0.5,
    background: int | None = 0,
    outline: bool = True,
) -> Iterator[np.ndarray]:
    """Yield an `overlay` from the top in strips, so that it never lies whole in memory.

    Args:
        image_rows: returns rows of the image, [h, W, 3] uint8 or float.
        labels: [H, W], as for `overlay`.
        palette: as for `overlay`.
        alpha: as for `overlay`.
        background: as for `overlay`.
        outline: as for `overlay`.
    """
    for rows in _strips(labels):
        part = labels[rows]
        share = np.full(part.shape, alpha, np.float32)
        if outline:
            share[_edges(labels, rows)] = 1
        share[(part == VOID) | (part == background)] = 0
        share = share[..., None]
        mixed = (1 - share) * image_rows(rows) + share * colorize(part, palette)
        yield np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _strips(labels: np.ndarray) -> list[slice]:
    # The floats of a whole image are too many.
    return row_strips(*labels.shape, _STRIP)


def _edges(labels: np.ndarray, rows: slice) -> np.ndarray:
    """Return which pixels of some rows lie at the edge of a region, [h, W] bool."""
    width = max(1, round(min(labels.shape) / 400))  # Of the line, on each side.
    first = max(0, rows.start - width)
    part = _as_bytes(labels[first : rows.stop + width])
    highest, lowest = (_around(f, part, width) for f in (np.maximum, np.minimum))
    return (highest != lowest)[rows.start - first :][: rows.stop - rows.start]


def _around(choose: np.ufunc, labels: np.ndarray, width: int) -> np.ndarray:
    """Return the maximum or the minimum up to ``width`` pixels around each, [h, W].

    scipy.ndimage has this, but importing that takes longer than most overlays.
    """
    for axis in (0, 1):
        pads = np.zeros((2, 2), int)
        pads[axis] = width
        padded = np.pad(labels, pads, mode="edge")
        windows = sliding_window_view(padded, 2 * width + 1, axis)
        labels = choose.reduce(windows, axis=-1)
    return labels


def legend_below(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    palette: Palette = (),
    background: int | None = 0,
) -> np.ndarray:
    """Draw the legend of an `overlay`, to be put below it.

    Args:
        labels: [H, W], as for `overlay`.
        class_names: of classes 0, 1, ...
        palette: as for `overlay`.
        background: as for `overlay`; it is left out.

    Returns:
        [h, w, 3] uint8, RGB on white; w is W, or more if a name is longer, and h is 0
        if no class is tinted.

    Raises:
        ValueError: if a class has no name.
    """
    seen = _classes_in(labels, class_names, background)
    return legend(
        [class_names[i] for i in seen],
        _table(palette)[seen],
        width=labels.shape[1],
        size=_font_size(labels.shape),
    )


def widened(picture: np.ndarray, width: int) -> np.ndarray:
    """Return a picture [H, W, 3] with white on its right up to a width."""
    missing = max(0, width - picture.shape[1])
    return np.pad(picture, ((0, 0), (0, missing), (0, 0)), constant_values=255)


def _classes_in(
    labels: np.ndarray, class_names: Sequence[str], background: int | None
) -> list[int]:
    """Return the classes of a label map that an `overlay` tints, from the lowest."""
    counts = sum(
        np.bincount(_as_bytes(labels[rows]).ravel(), minlength=VOID + 1)
        for rows in _strips(labels)
    )
    seen = [int(i) for i in np.flatnonzero(counts) if i not in (VOID, background)]
    if seen and seen[-1] >= len(class_names):
        raise ValueError(
            f"labels have class {seen[-1]}, and there are {len(class_names)} names: "
            "give one for each class"
        )
    return seen


def _with_names(
    picture: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    background: int | None,
) -> np.ndarray:
    """Write the name of each class where its largest region is widest."""
    drawn = Image.fromarray(picture)
    draw, size = ImageDraw.Draw(drawn), _font_size(labels.shape)
    step = -(-max(labels.shape) // _SMALL)
    small = np.asarray(labels[::step, ::step])
    for i in _classes_in(small, names, background):
        y, x = (step * at for at in _widest_place(small == i))
        _write(draw, (x, y), names[i], size, drawn.size)
    return np.asarray(drawn)


def _widest_place(mask: np.ndarray) -> tuple[int, int]:
    """Return the row and column of a mask that are farthest from the mask's edge."""
    from scipy import ndimage  # Only legends and names need it.

    regions, _ = ndimage.label(mask)
    largest = 1 + np.bincount(regions.ravel())[1:].argmax()
    inside = np.pad(regions == largest, 1)  # The edge of the image counts.
    depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    name: str,
    size: int,
    limits: tuple[int, int],
) -> None:
    """Write a name about a point, within the picture, in white with a dark edge."""
    font, name = load_font(size), shortened(name)
    room = font.getlength(name) / 2 + 2, 0.6 * size + 2
    x, y = (
        min(max(where, half), max(side - half, half))
        for where, half, side in zip(at, room, limits, strict=True)
    )
    edge = {"stroke_width": max(1, size // 8), "stroke_fill": (30, 30, 30)}
    draw.text((x, y), name, fill="white", font=font, anchor="mm", **edge)


def _font_size(shape: tuple[int, ...]) -> int:
    """Return the size of letters for an image of a height and a width."""
    return max(12, round(min(shape) / 25))


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font, DejaVu Sans, which has the letters of many scripts."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)


def shortened(name: str, length: int = _LONGEST_NAME) -> str:
    """Return a name on one line, of at most ``length`` letters."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def legend(
    class_names: Sequence[str],
    palette: Palette = (),
    *,
    width: int = 0,
    size: int = 16,
) -> np.ndarray:
    """Draw the colour and the name of each class.

    Args:
        class_names: of classes 0, 1, ...
        palette: as for `colorize`.
        width: of the picture in pixels, to put several classes in a row; or 0 for one
            below the other. A picture is as wide as its longest name at least.
        size: of the letters, in pixels.

    Returns:
        [H, W, 3] uint8, RGB on white.
    """
    if not len(class_names):
        return np.empty((0, width, 3), np.uint8)
    font, names = load_font(size), list(map(shortened, class_names))
    line, gap = round(1.5 * size), size // 2
    lengths = [line + gap + round(font.getlength(name)) + gap for name in names]
    places, x, y = [], gap, size // 4
    for length in lengths:
        if places and x + length > width:
            x, y = gap, y + line
        places.append((x, y))
        x += length + gap
    width = max([width, *(gap + length for length in lengths)])
    picture = Image.new("RGB", (width, y + line + size // 4), "white")
    draw, colors = ImageDraw.Draw(picture), _table(palette).tolist()
    for i, ((x, y), name) in enumerate(zip(places, names, strict=True)):
        box = x, y + line // 8, x + line, y + line - line // 8
        draw.rectangle(box, fill=tuple(colors[i]), outline="grey")
        at = x + line + gap, y + line // 2
        draw.text(at, name, fill="black", font=font, anchor="lm")
    return np.asarray(picture)


def save_image(
    path: str | Path, size: tuple[int, int], parts: Iterable[np.ndarray]
) -> None:
    """Write strips of an image as a PNG, so that it never lies whole in memory.

    Args:
        path: of the file, replaced as a whole.
        size: height and width of the image.
        parts: its strips, from the top: [h, W, 3] uint8, RGB, of ``size[0]`` rows
            together.

    Raises:
        ValueError: if a strip is something else.
    """
    height, width = size
    packer = zlib.compressobj()
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        # 8 bits, RGB, deflate, filters, not interlaced.
        _write_chunk(file, b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
        for part in parts:
            if part.shape[1:] != (width, 3) or part.dtype != np.uint8:
                raise ValueError(
                    f"a strip is {list(part.shape)} {part.dtype}, want [h, {width}, 3] "
                    "uint8"
                )
            _write_chunk(file, b"IDAT", packer.compress(_filtered(part)))
        _write_chunk(file, b"IDAT", packer.flush())
        _write_chunk(file, b"IEND", b"")


def _filtered(part: np.ndarray) -> bytes:
    """Return the rows of a PNG: its filter 1, and differences to the pixel before."""
    rows = np.empty((len(part), 1 + part[0].size), np.uint8)
    rows[:, 0] = 1
    values = part.reshape(len(part), -1)
    rows[:, 1:4] = values[:, :3]
    np.subtract(values[:, 3:], values[:, :-3], out=rows[:, 4:])  # Modulo 256.
    return rows.tobytes()


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    check = zlib.crc32(kind + content)
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", check))


def save_labels(path: str | Path, labels: np.ndarray, palette: Palette = ()) -> None:
    """Write labels as PASCAL VOC does: a PNG of class indices with a palette.

    Args:
        path: of the file, replaced as a whole.
        labels: [H, W] integers in [0, 255].
        palette: as for `colorize`; a viewer shows these colours.

    Raises:
        ValueError: if ``labels`` are not integers or out of range.
    """
    picture = Image.fromarray(_as_bytes(np.asarray(labels)))
    picture.putpalette(_table(palette).tobytes())
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def _table(palette: Palette) -> np.ndarray:
    """Return the colours of all values of a label, [256, 3] uint8."""
    table = colormap()
    if len(palette):
        table[: len(palette)] = palette
    return table


def _as_bytes(labels: np.ndarray) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ValueError(
            f"labels must be in [0, 255], got [{labels.min()}, {labels.max()}]"
        )
    return labels.astype(np.uint8)
