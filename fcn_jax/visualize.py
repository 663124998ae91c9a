"""Label maps in colour, rows of results, learning curves."""

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.data.labels import VOID
from fcn_jax.data.strips import row_strips
from fcn_jax.files import replacing

Palette = Sequence[tuple[int, int, int]]

STRIP = 2**18  # Pixels of an overlay that are computed at once.
_CELL = 2.8  # Width of a picture in results_figure, inches.
_PAIR_CELL, _PAIRS = 2.1, 3  # Width of a picture in augmented_rows; pairs in a row.
_TITLES = ("image", "ground truth", "prediction")
_LETTERS = 14  # Of font size 8, about so many to the inch.
_DPI = 100
_MAX_PIXELS = 20_000  # Height of results_figure; many rows shrink to fit.
_MOST_BARS = 50  # One above the other in class_chart.
_LONGEST_NAME = 24  # Letters of a class's name in class_chart.
_SCORES = {"mean_iu": "mean IU", "pixel_accuracy": "pixel accuracy"}


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
    image: np.ndarray, labels: np.ndarray, *, palette: Palette = (), alpha: float = 0.5
) -> np.ndarray:
    """Return the image tinted with the colours of its labels.

    Args:
        image: [..., H, W, 3] uint8 or float, RGB in [0, 255].
        labels: [..., H, W] integers in [0, 255]; void pixels (255) keep their colour.
        palette: as for `colorize`.
        alpha: share of the labels' colours, in [0, 1].

    Returns:
        [..., H, W, 3] uint8, RGB.

    Raises:
        ValueError: if the shapes differ or the labels are out of range.
    """
    image, labels = np.asarray(image), np.asarray(labels)
    if image.shape != (*labels.shape, 3):
        raise ValueError(
            f"image {image.shape} and labels {labels.shape} do not belong together: "
            "expected [H, W, 3] and [H, W]"
        )
    if labels.ndim > 2:
        maps = zip(image, labels, strict=True)
        return np.stack([overlay(*pair, palette=palette, alpha=alpha) for pair in maps])
    mixed = np.empty(image.shape, np.uint8)
    for rows in row_strips(
        *labels.shape, STRIP
    ):  # The floats of a whole image are too many.
        share = np.where(labels[rows] == VOID, 0, alpha)[..., None]
        colors = colorize(labels[rows], palette)
        strip = (1 - share) * image[rows] + share * colors
        mixed[rows] = np.clip(np.rint(strip), 0, 255)
    return mixed


def legend(class_names: Sequence[str], palette: Palette = ()) -> np.ndarray:
    """Draw the colour and the name of each class, one below the other.

    Args:
        class_names: of classes 0, 1, ...
        palette: as for `colorize`.

    Returns:
        [H, W, 3] uint8, RGB on white.
    """
    font = ImageFont.load_default(16)
    width = 44 + max(
        (math.ceil(font.getlength(name)) for name in class_names), default=0
    )
    picture = Image.new("RGB", (width, 24 * len(class_names) + 8), "white")
    draw = ImageDraw.Draw(picture)
    for i, name in enumerate(class_names):
        top, color = 24 * i + 4, tuple(_table(palette)[i].tolist())
        draw.rectangle((8, top + 3, 28, top + 20), fill=color, outline="grey")
        draw.text((36, top + 12), name, fill="black", font=font, anchor="lm")
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


def results_figure(
    path: str | Path,
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw rows of image | ground truth | prediction above a legend, as PNG.

    Args:
        path: of the file, replaced as a whole.
        rows: one or more of (name, image [H, W, 3] uint8 RGB, label [H, W], prediction
            [H, W]), labels as `colorize` takes them; sizes may differ.
        class_names: of classes 0, 1, ...; the legend shows the number of any other.
        palette: as for `colorize`.
    """
    from matplotlib.figure import Figure

    shapes = np.array([label.shape for _, _, label, _ in rows])
    heights = _CELL * np.clip(shapes[:, 0] / shapes[:, 1], 0.3, 1.5)
    figure = Figure((3 * _CELL, heights.sum() + 1), layout="compressed")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for cells, height, (name, image, *labels) in zip(grid, heights, rows, strict=True):
        cells[0].imshow(image)
        for cell, label in zip(cells[1:], labels, strict=True):
            colors = colorize(label, palette)
            cell.imshow(colors, interpolation="nearest")  # Mixed colours mean nothing.
        for cell in cells:
            cell.set(xticks=[], yticks=[])
            cell.spines[:].set_visible(False)
        name = _tail(name, int(_LETTERS * height))
        cells[0].set_ylabel(name, fontsize=8, parse_math=False)
    for cell, title in zip(grid[0], _TITLES, strict=True):
        cell.set_title(title, fontsize=11)
    _add_legend(figure, _legend_entries(rows, class_names, palette))
    dpi = min(_DPI, _MAX_PIXELS / figure.get_figheight())
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=dpi, bbox_inches="tight")


def augmented_rows(
    path: str | Path,
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    *,
    palette: Palette = (),
) -> None:
    """Draw training examples, each image beside its label, above a legend, as PNG.

    Args:
        path: of the file, replaced as a whole.
        pairs: one or more of (name, image [H, W, N], label [H, W]); the first three
            channels are RGB in [0, 255], labels as `colorize` takes them.
        class_names: of classes 0, 1, ...; the legend shows the number of any other.
        palette: as for `colorize`.
    """
    from matplotlib.figure import Figure

    ratios = [np.clip(np.divide(*label.shape), 0.3, 1.5) for _, _, label in pairs]
    starts = range(0, len(pairs), _PAIRS)
    heights = [_PAIR_CELL * max(ratios[i : i + _PAIRS]) + 0.2 for i in starts]
    columns = 2 * min(_PAIRS, len(pairs))
    figure = Figure((columns * _PAIR_CELL, sum(heights) + 1), layout="compressed")
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for cell in grid.flat:
        cell.set_axis_off()
    cells = grid.reshape(-1, 2)[: len(pairs)]
    for (left, right), (name, image, label) in zip(cells, pairs, strict=True):
        left.imshow(np.clip(image[..., :3], 0, 255).astype(np.uint8))
        right.imshow(colorize(label, palette), interpolation="nearest")
        name = _tail(name, int(_LETTERS * 2 * _PAIR_CELL))
        left.set_title(name, fontsize=8, loc="left", parse_math=False)
    _add_legend(figure, _legend_entries(pairs, class_names, palette))
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=_DPI, bbox_inches="tight")


def learning_curves(path: str | Path, records: Sequence[dict[str, Any]]) -> None:
    """Draw the training loss and the validation scores over the steps, as PNG.

    Args:
        path: of the file, replaced as a whole.
        records: entries of a run's log: with "step" and "loss" of training, with
            "step", "mean_iu" and "pixel_accuracy" of validation; others are ignored.
            Of a step that a resumed run logged again, the last entry counts.
    """
    from matplotlib.figure import Figure

    figure = Figure((10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    _draw_loss(left, *_curve(records, "loss"))
    _draw_scores(right, {key: _curve(records, key) for key in _SCORES})
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=_DPI)


def _draw_loss(panel: Any, steps: np.ndarray, loss: np.ndarray) -> None:
    panel.set_title("training loss")
    if not len(steps):
        return
    window = np.ones(min(max(1, len(loss) // 20), 100))
    # The window is cut at the ends of the curve.
    weight = np.convolve(np.ones(len(loss)), window, "same")
    smooth = np.convolve(loss, window, "same") / weight
    panel.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=1)
    panel.plot(steps, smooth, color="tab:blue", linewidth=2)
    if loss.min() > 0 and loss.max() > 20 * loss.min():
        panel.set_yscale("log")


def _draw_scores(panel: Any, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    panel.set_title("validation")
    panel.set_ylim(0, 1)
    for key, (steps, values) in curves.items():
        style = {"marker": "o", "markersize": 4, "clip_on": False}
        panel.plot(steps, values, label=_SCORES[key], **style)
    panel.legend()  # Where it covers least.


def _curve(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = {record["step"]: record[key] for record in records if key in record}
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps], float)


def _legend_entries(
    rows: Sequence[tuple], class_names: Sequence[str], palette: Palette
) -> list[tuple[str, np.ndarray]]:
    """Return names and colours of all classes if few, else of those that occur."""
    seen = {
        int(i) for _, _, *maps in rows for labels in maps for i in np.unique(labels)
    }
    if len(class_names) <= 21:
        seen |= set(range(len(class_names)))
    names, colors = dict(enumerate(class_names)), _table(palette)
    entries = [(names.get(i, str(i)), colors[i]) for i in sorted(seen - {VOID})]
    return entries + [("void", colors[VOID])] * (VOID in seen)


def _add_legend(figure: Any, entries: list[tuple[str, np.ndarray]]) -> None:
    from matplotlib.patches import Patch

    names, colors = zip(*entries, strict=True)
    # A patch and its margins take the room of eight letters.
    columns = int(_LETTERS * figure.get_figwidth() / (8 + max(map(len, names))))
    legend = figure.legend(
        [Patch(facecolor=color / 255, edgecolor="grey") for color in colors],
        ["-" for _ in names],
        loc="outside lower center",
        ncols=max(1, min(columns, len(names))),
        fontsize=8,
        frameon=False,
    )
    # Names go in late: matplotlib drops labels like "_background_" from a legend.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


def _tail(name: str, length: int) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _as_bytes(labels: np.ndarray) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ValueError(
            f"labels must be in [0, 255], got [{labels.min()}, {labels.max()}]"
        )
    return labels.astype(np.uint8)


def class_chart(
    path: str | Path, shares: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> None:
    """Draw each class's share of the labelled pixels, largest first, as PNG.

    Bars of one split have the classes' colours, those of several the splits'. The
    axis is logarithmic where shares differ more than a hundredfold.

    Args:
        path: of the file, replaced as a whole.
        shares: of one or more splits, [C] each; those of the first give the order.
        class_names: C names.
    """
    from matplotlib.figure import Figure

    splits, shares = list(shares), np.array(list(shares.values()))  # [S, C]
    order = np.argsort(-shares[0], kind="stable")
    parts = np.array_split(order, -(-len(order) // _MOST_BARS))
    rows = len(parts[0])
    height = 1 + rows * (0.1 + 0.11 * len(shares))
    figure = Figure((1 + 4.5 * len(parts), height), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for panel, part in zip(panels, parts, strict=True):
        panel.set(**_share_axis(shares), ylim=(rows - 0.4, -0.6))
        panel.xaxis.set_major_formatter(_percent)
        _draw_shares(panel, shares[:, part], colormap()[part % 256] / 255)
        names = [_head(class_names[i], _LONGEST_NAME) for i in part]
        panel.set_yticks(range(len(part)), names, fontsize=8, parse_math=False)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("share of each class in the pixels that are not void", fontsize=11)
    if len(splits) > 1:
        colors = _split_colors(len(splits))
        _add_legend(figure, list(zip(splits, colors, strict=True)))
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=_DPI)


def _share_axis(shares: np.ndarray) -> dict[str, Any]:
    """Return scale and limits of an axis for the shares, with room for a number."""
    occurring = shares[shares > 0]
    low, high = (occurring.min(), occurring.max()) if occurring.size else (1, 1)
    if high <= 100 * low:
        return {"xscale": "linear", "xlim": (0, 1.15 * high)}
    left = 10 ** np.floor(np.log10(low / 1.5))
    return {"xscale": "log", "xlim": (left, high * (high / left) ** 0.15)}


def _split_colors(n: int) -> np.ndarray:
    """Return [n, 3] uint8, the default colours of matplotlib."""
    from matplotlib.colors import to_rgba_array

    return (255 * to_rgba_array([f"C{i}" for i in range(n)])[:, :3]).astype(np.uint8)


def _draw_shares(panel: Any, shares: np.ndarray, colors: np.ndarray) -> None:
    """Draw bars of [S, C] shares, in the classes' [C, 3] colours if S is 1."""
    left, _ = panel.get_xlim()
    thickness = 0.8 / len(shares)
    split_colors = _split_colors(len(shares)) / 255
    for i, row in enumerate(shares):
        y = np.arange(len(row)) + thickness * (i - (len(shares) - 1) / 2)
        color = split_colors[i] if len(shares) > 1 else colors
        panel.barh(y, row, thickness, color=color, edgecolor="grey", linewidth=0.5)
        for share, at in zip(row, y, strict=True):
            panel.annotate(
                _percent(share) if share else "never",
                (max(share, left), at),
                xytext=(2, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=6,
                color="black" if share else "crimson",
            )


def _percent(share: float, _: Any = None) -> str:
    return f"{100 * share:.3g}%"


def _head(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
