"""Sheets of examples: results in rows, and augmented training examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fcn_jax.data.labels import VOID
from fcn_jax.files import replacing
from fcn_jax.visualize import Palette, colorize, legend, load_font, shortened

_TITLES = ("image", "ground truth", "prediction", "errors in orange")
_ERROR = (213, 94, 0)  # Stands out from grey for any kind of colour vision.
_MARGIN, _GAP, _NOTE_WIDTH = 20, 10, 190  # Pixels.
_LETTERS, _LINE = 16, 24  # Height of letters, and of a line of them.
_CELL = 290, 205  # Width and height of a picture in results_figure at most.
_PAIR_CELL, _PAIRS = (210, 240), 3  # Likewise in augmented_rows; pairs in a row.
_MOST_CLASSES = 25  # More are in a legend only if they occur.


class Row(NamedTuple):
    """An example in `results_figure`.

    The image is [H, W, 3] uint8, RGB; label and prediction are [H, W] as `colorize`
    takes them. The note stands below the name; it may have several lines.
    """

    name: str
    note: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def results_figure(
    path: str | Path,
    rows: Sequence[Row],
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw rows of image | ground truth | prediction | errors, and a legend, as PNG.

    The errors are the pixels whose predicted class is wrong, over the image in grey.

    Args:
        path: of the file, replaced as a whole.
        rows: one or more; their sizes may differ.
        class_names: of classes 0, 1, ...; the legend shows the number of any other.
        palette: as for `colorize`.
    """
    lines = []
    for row in rows:
        colors = [colorize(label, palette) for label in (row.label, row.prediction)]
        images = row.image, *colors, error_map(row.image, row.label, row.prediction)
        # Mixed colours mean nothing.
        lines.append([_fitted(x, _CELL, smooth=x is row.image) for x in images])
    width = max(line[0].width for line in lines) + _GAP
    heights = [max(line[0].height, 4 * _LETTERS) + _GAP for line in lines]
    left, top = _MARGIN + _NOTE_WIDTH, _MARGIN + 2 * _LETTERS
    sheet = _Sheet(left + len(_TITLES) * width, top + sum(heights))
    for i, title in enumerate(_TITLES):
        sheet.write((left + i * width, _MARGIN), title, bold=True)
    for row, line, height in zip(rows, lines, heights, strict=True):
        name = _cut(row.name, _NOTE_WIDTH - _GAP)
        sheet.write((_MARGIN, top), f"{name}\n{row.note}")
        for i, picture in enumerate(line):
            sheet.picture.paste(picture, (left + i * width, top))
        top += height
    maps = [label for row in rows for label in (row.label, row.prediction)]
    sheet.save(path, *_legend_entries(maps, class_names, palette))


def error_map(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
    """Return an image in pale grey, its wrong pixels orange and its void as in masks.

    Args:
        image: [H, W, 3] uint8, RGB.
        label: [H, W] integers, 255 for void.
        prediction: [H, W] integers.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    grey = 110 + 0.45 * image.mean(axis=-1)
    errors = np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
    errors[prediction != label] = _ERROR
    errors[label == VOID] = colorize(np.array(VOID))
    return errors


def augmented_rows(
    path: str | Path,
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw training examples, each image beside its label, and a legend, as PNG.

    Args:
        path: of the file, replaced as a whole.
        pairs: one or more of (name, image [H, W, N], label [H, W]); the first three
            channels are RGB in [0, 255], labels as `colorize` takes them.
        class_names: of classes 0, 1, ...; the legend shows the number of any other.
        palette: as for `colorize`.
    """
    drawn = []
    for name, image, label in pairs:
        picture = np.clip(image[..., :3], 0, 255).astype(np.uint8)
        left = _fitted(picture, _PAIR_CELL, smooth=True)
        right = _fitted(colorize(label, palette), _PAIR_CELL, smooth=False)
        drawn.append((name, left, right))
    width = max(2 * left.width for _, left, _ in drawn) + 3 * _GAP
    height = max(left.height for _, left, _ in drawn) + _LINE + _GAP
    columns = min(_PAIRS, len(drawn))
    lines = -(-len(drawn) // columns)
    sheet = _Sheet(_MARGIN + columns * width, _MARGIN + lines * height)
    for i, (name, left, right) in enumerate(drawn):
        x, y = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        sheet.write((x, y), _cut(name, width - 2 * _GAP))
        sheet.picture.paste(left, (x, y + _LINE))
        sheet.picture.paste(right, (x + left.width + _GAP, y + _LINE))
    maps = [label for _, _, label in pairs]
    sheet.save(path, *_legend_entries(maps, class_names, palette))


class _Sheet:
    """A white picture to be filled and saved with a legend."""

    def __init__(self, width: int, height: int):
        self.picture = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self.picture)

    def write(self, at: tuple[int, int], text: str, *, bold: bool = False) -> None:
        stroke = {"stroke_width": 0.4} if bold else {}
        self._draw.text(at, text, fill="black", font=load_font(_LETTERS), **stroke)

    def save(self, path: str | Path, names: Sequence[str], palette: Palette) -> None:
        """Save with the legend on the right, or below if it is too high."""
        width, height = self.picture.size
        top = _MARGIN + 2 * _LETTERS
        entries = Image.fromarray(legend(names, palette, size=_LETTERS))
        if top + entries.height <= height:
            size, at = (width + entries.width + _MARGIN, height), (width, top)
        else:
            inner = width - 2 * _MARGIN
            entries = Image.fromarray(legend(names, palette, width=inner))
            size, at = (width, height + entries.height + _MARGIN), (_MARGIN, height)
        whole = Image.new("RGB", size, "white")
        whole.paste(self.picture)
        whole.paste(entries, at)
        with replacing(path) as unfinished:
            whole.save(unfinished, format="PNG")


def _fitted(pixels: np.ndarray, cell: tuple[int, int], *, smooth: bool) -> Image.Image:
    """Return a picture as large as fits into a cell."""
    height, width = pixels.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    kinds = Image.Resampling
    return Image.fromarray(pixels).resize(
        size, kinds.LANCZOS if smooth else kinds.NEAREST
    )


def _cut(name: str, width: int) -> str:
    """Return the end of a name that fits into a width."""
    name, font = shortened(name, 500), load_font(_LETTERS)
    if font.getlength(name) <= width:
        return name
    while name and font.getlength("…" + name) > width:
        name = name[1:]
    return "…" + name


def _legend_entries(
    maps: Sequence[np.ndarray], class_names: Sequence[str], palette: Palette
) -> tuple[list[str], np.ndarray]:
    """Return names and colours of all classes if few, else of those that occur."""
    seen = {int(i) for labels in maps for i in np.unique(labels)}
    if len(class_names) <= _MOST_CLASSES:
        seen |= set(range(len(class_names)))
    classes = sorted(seen)
    names = dict(enumerate(class_names)) | {VOID: "void"}
    return [names.get(i, str(i)) for i in classes], colorize(np.array(classes), palette)
