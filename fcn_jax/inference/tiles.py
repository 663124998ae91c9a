"""Compute large images in tiles, with the result of the whole image.

A network sees one tile of the image at a time, and three things make the tile's scores
those of the whole image.

A tile starts at a multiple of 32 rows and columns. Each of the five pools, laid from
the top left, then meets the same pixels.

A tile has the image's side modulo 32. The last crop of geometry "same" depends on that
remainder alone, so it is the same for the tile. The last tile of a row or column, which
must end where the image ends, then starts at a multiple of 32 like the others.

A tile overlaps its neighbours. Where it ends with the image, its layers see the zeros
that they see in the whole; where it ends inside, they see zeros in place of the pixels
beyond. The rows that these zeros reach (`margins`, from the `receptive_field`) are left
to the neighbour.

All tiles of an image have one shape, so they share a program.

A network with a fixed ``size`` sees the whole image at that size. There, the memory
goes to resizing, which is done in strips of rows.
"""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.padding import fill_up
from fcn_jax.data.strips import row_strips
from fcn_jax.inference.inputs import as_image
from fcn_jax.inference.programs import classes_of, labels_of, scores_of, surest
from fcn_jax.inference.resize import resize_columns, resize_strip
from fcn_jax.inference.shares import ClassShares
from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.geometry import CAFFE_PAD, caffe_offsets, crop_offset
from fcn_jax.models.upsampling import kernel_side, transpose_padding
from fcn_jax.models.vgg import BLOCKS, NUM_POOLS
from fcn_jax.network import Network, as_network
from fcn_jax.parallel import prediction_devices, prediction_shardings
from fcn_jax.progress import track

# Pixels of a tile by default: 2048 x 2048. The full-width network in float32 takes
# 0.5 KiB a pixel (0.6 in geometry "caffe", 0.7 for 150 classes): 2 to 3 GiB.
MAX_PIXELS = 2**22
# Rows of the image to a row of pool5: tiles that start at its multiples meet all pools.
STRIDE = 2**NUM_POOLS
_MAX_SIDE = 2**16  # Of an image that is resized.
_STRIP_VALUES = 2**24  # Floats of a strip of a resized image: 64 MiB.

# First and last row of a map.
Rows = tuple[int, int]
# Along a side of the image: what a tile sees of it, and what is kept of that.
Span = tuple[slice, slice]
# Rows and columns of the image, and the network's result there, one array or several.
Part = tuple[slice, slice, Any]


def needs_tiles(shape: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> bool:
    """Tell whether an image of [H, W, ...] has more than ``max_pixels`` pixels."""
    return shape[0] * shape[1] > max_pixels


def predict_tiled(
    net: Network,
    image: np.ndarray,
    *,
    tile: int | tuple[int, int] = MAX_PIXELS,
    out: np.ndarray | None = None,
    shares: ClassShares | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Return the class of every pixel of an image of any size, in bounded memory.

    Labels are those that `fcn_jax.predict` gives the whole image, except where two
    scores are equal to rounding.

    Args:
        net: the network.
        image: [H, W, 3] uint8 or float, RGB in [0, 255], or [H, W, N] for a network of
            N channels; may be a np.memmap.
        tile: pixels that the network may see at once, or a height and width. Tiles are
            equal, and their sides are multiples of 32. Larger tiles compute less twice:
            a quarter to a half of each side goes to `margins` in tiles of 1024 to 2048.
        out: [H, W] of an integer dtype for the labels, such as a np.memmap.
        shares: counts the pixels of each class, tile by tile, if given.
        progress: whether to show a progress bar, which goes away at the end.

    Returns:
        ``out``, or labels [H, W] uint8 (int32 for more than 256 classes).

    Raises:
        ValueError: if ``image`` is not one image, ``out`` cannot hold its labels, or
            ``tile`` is too small for its margins.

    Example::

        image = np.load("mosaic.npy", mmap_mode="r")
        labels = predict_tiled(net, image)
    """
    want = "labels" if shares is None else "classes"
    parts, count = _run(net, image, tile, want)
    classes = net.model.num_classes
    if out is None:
        out = np.empty(image.shape[:2], np.uint8 if classes <= 256 else np.int32)
    _check_out(out, image.shape[:2], classes)
    shown = progress and not (net.size and count == 1)
    parts = track(parts, "tiles", count, unit="tile", shown=shown)
    for rows, cols, found in parts:
        if shares is None:
            out[rows, cols] = found
        else:
            out[rows, cols], confidence = found
            shares.add(out[rows, cols], confidence)
    return out


def logits_tiled(
    net: Network, image: np.ndarray, *, tile: int | tuple[int, int] = MAX_PIXELS
) -> Iterator[Part]:
    """Return the scores of an image of any size, part by part.

    Takes and refuses what `predict_tiled` does.

    Returns:
        Iterator of (rows, columns, logits): slices that cover each pixel of the image
        once, and the [h, w, C] float32 of their pixels.
    """
    return _run(net, image, tile, "scores")[0]


def _run(
    net: Network, image: np.ndarray, tile: int | tuple[int, int], want: str
) -> tuple[Iterator[Part], int]:
    """Return the parts of an image, computed as they are taken, and their number."""
    net = as_network(net)
    image = as_image(image, net.model.in_channels)
    # From a batch of images to what is wanted, and from scores to it.
    programs = {
        "labels": (labels_of, _best),
        "classes": (classes_of, _surest),
        "scores": (scores_of, jnp.asarray),
    }
    program, finish = programs[want]
    if net.size:
        return _resized(net, image, tile, finish)
    shape, spans = plan_tiles(net.model, image.shape[:2], tile)
    return _tiles(program, net, image, shape, spans), len(spans)


def _tiles(
    program: Callable,
    net: Network,
    image: np.ndarray,
    shape: tuple[int, int],
    spans: list[tuple[Span, Span]],
) -> Iterator[Part]:
    # A tile for each device.
    count = min(len(prediction_devices()), len(spans))
    whole, split = prediction_shardings(count)
    net = jax.device_put(net, whole)
    for start in range(0, len(spans), count):
        group = spans[start : start + count]
        # Padded to one shape, with the true size beside it: else each remainder of a
        # side, in another image, would be a program of its own.
        seen = [image[row[0], col[0]] for row, col in group]
        batch = jax.device_put(fill_up(seen, shape, count), split)
        found = jax.tree.map(np.asarray, program(net, *batch))
        for i, (row, col) in enumerate(group):
            inside = operator.itemgetter((i, _within(*row), _within(*col)))
            yield row[1], col[1], jax.tree.map(inside, found)


def _resized(
    net: Network, image: np.ndarray, tile: int | tuple[int, int], finish: Callable
) -> tuple[Iterator[Part], int]:
    """Run a network at its own size, and resize the scores strip by strip."""
    height, width, channels = image.shape
    _check_resizable((height, width), net.size)
    widest = max(width, net.size[1]) * max(channels, net.model.num_classes)
    strips = row_strips(height, max(widest, net.size[0]), _STRIP_VALUES)

    def parts() -> Iterator[Part]:
        narrow = [resize_columns(image[rows], net.size[1]) for rows in strips]
        narrow = jnp.concatenate(narrow)
        small = resize_strip(narrow, net.size[0], net.size, 0)
        logits = _whole_logits(net, small, tile)
        for rows in strips:
            shape = (rows.stop - rows.start, width)
            found = resize_strip(logits, height, shape, rows.start)
            yield rows, slice(0, width), jax.tree.map(np.asarray, finish(found))

    return parts(), len(strips)


def _check_resizable(size: tuple[int, int], seen: tuple[int, int]) -> None:
    """Raise ValueError if the matrices of a resize are too large, or their integers."""
    products = (2 * side * other for side, other in zip(size, seen, strict=True))
    if max(size) > _MAX_SIDE or max(products) >= 2**31:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} has a side that is too long to be "
            f"resized to {seen[0]}x{seen[1]}: cut the image up"
        )


def _whole_logits(
    net: Network, image: jax.Array, tile: int | tuple[int, int]
) -> jax.Array | np.ndarray:
    if not needs_tiles(image.shape):
        return scores_of(net, image[None])[0]
    logits = np.empty((*image.shape[:2], net.model.num_classes), np.float32)
    parts = logits_tiled(net.replace(size=()), np.asarray(image), tile=tile)
    for rows, cols, part in parts:
        logits[rows, cols] = part
    return logits


@jax.jit
def _best(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


_surest = jax.jit(surest)


def receptive_field(model: FCN, row: int, *, side: int) -> Rows:
    """Return the rows of an image that a row of its logits depends on.

    Columns are alike.

    Args:
        model: the network.
        row: of the logits.
        side: height of the image, from which the last crop follows.

    Returns:
        First and last row. They may lie beyond the image, where layers see zeros.
    """
    caffe, skips = model.geometry == "caffe", SKIPS[model.variant]
    level = NUM_POOLS - len(skips)
    if caffe:
        *offsets, last = caffe_offsets(skips)
    else:  # An upsampled map is longer at its end only, by less than its stride.
        offsets = [0] * len(skips)
        last = crop_offset(side + -side % 2**level, side, model.crop)
    rows, seen = _upsampled_from((row + last, row + last), 2**level, caffe), []
    for offset in reversed(offsets):
        first, end = rows
        seen.append(_pooled_from((first + offset, end + offset), level, caffe))
        rows = _upsampled_from(rows, 2, caffe)
        level += 1
    pad = 0 if caffe else 3
    fc6 = rows[0] - pad, rows[1] - pad + 6
    seen.append(_pooled_from(fc6, NUM_POOLS, caffe))
    firsts, lasts = zip(*seen, strict=True)
    return min(firsts), max(lasts)


def margins(model: FCN, side: int) -> tuple[int, int]:
    """Return how many rows before and after its own a row of logits depends on.

    Args:
        model: the network.
        side: height of the image, from which the last crop follows.
    """
    # Rows 32 apart see fields 32 apart.
    fields = [receptive_field(model, row, side=side) for row in range(STRIDE)]
    before = max(row - first for row, (first, _) in enumerate(fields))
    after = max(last - row for row, (_, last) in enumerate(fields))
    return before, after


def _pooled_from(rows: Rows, level: int, caffe: bool) -> Rows:
    """Return the rows of the image that these rows of a pool are computed from."""
    for block in range(level, 0, -1):
        rows = 2 * rows[0], 2 * rows[1] + 1
        for i in range(BLOCKS[block - 1][0], 0, -1):
            pad = CAFFE_PAD if caffe and block == i == 1 else 1
            rows = rows[0] - pad, rows[1] - pad + 2
    return rows


def _upsampled_from(rows: Rows, factor: int, caffe: bool) -> Rows:
    """Return the rows that these rows of an upsampled map are computed from."""
    kernel = kernel_side(factor)
    # Row x adds to rows factor * x to factor * x + kernel - 1, less what is cut.
    cut = kernel - 1 - transpose_padding(factor, "VALID" if caffe else "SAME")[0]
    return (rows[0] + cut - kernel) // factor + 1, (rows[1] + cut) // factor


def plan_tiles(
    model: FCN, size: tuple[int, int], tile: int | tuple[int, int] = MAX_PIXELS
) -> tuple[tuple[int, int], list[tuple[Span, Span]]]:
    """Lay tiles over an image.

    Args:
        model: the network.
        size: height and width of the image.
        tile: as for `predict_tiled`.

    Returns:
        shape: height and width of every tile, multiples of 32.
        spans: for each tile its rows and its columns, each as (the slice that the
            network sees, the slice that is kept of that).

    Raises:
        ValueError: if ``tile`` is too small for its margins.
    """
    shape = _tile_shape(model, size, tile)
    rows, cols = (_spans(model, *sides) for sides in zip(size, shape, strict=True))
    return shape, [(row, col) for row in rows for col in cols]


def _tile_shape(
    model: FCN, size: tuple[int, int], tile: int | tuple[int, int]
) -> tuple[int, int]:
    """Return the height and width of tiles that cover an image in few pixels.

    Tiles of a number of pixels are square, unless one side of the image is shorter.
    """
    whole = [_aligned(side) for side in size]
    overlaps = [_overlap(model, side) for side in size]
    least = [min(w, o + STRIDE) for w, o in zip(whole, overlaps, strict=True)]
    if isinstance(tile, tuple):
        limits = list(tile)
    else:  # The shorter side first; what it does not use is left to the longer.
        short = int(whole[1] < whole[0])
        limits = [max(math.isqrt(max(0, tile)), least[short])] * 2
        limits[1 - short] = tile // _tile_side(
            whole[short], overlaps[short], limits[short]
        )
    if limits[0] < least[0] or limits[1] < least[1]:
        raise ValueError(
            f"tile = {tile} is too small for an image of {list(size)}: with what its "
            f"pixels depend on around them, a tile has {least[0]} x {least[1]} pixels "
            "or more; pass at least that"
        )
    sides = zip(whole, overlaps, limits, strict=True)
    return tuple(_tile_side(*side) for side in sides)


def _tile_side(whole: int, overlap: int, most: int) -> int:
    """Return the side of equal tiles, as few of at most ``most`` rows as will do."""
    if whole <= most:
        return whole
    share = (whole - overlap) // STRIDE
    count = -(-share // ((most - overlap) // STRIDE))
    return overlap + -(-share // count) * STRIDE


def _overlap(model: FCN, side: int) -> int:
    """Return the rows that neighbouring tiles share."""
    return _aligned(sum(margins(model, side)) + -side % STRIDE)


def _aligned(side: int) -> int:
    """Return the next multiple of 32."""
    return side + -side % STRIDE


def _spans(model: FCN, side: int, tile: int) -> list[Span]:
    """Return what each tile along a side sees, and what is kept of that.

    All tiles see equally many rows, at most ``tile``.
    """
    if side <= tile:
        return [(slice(0, side), slice(0, side))]
    size = tile - -side % STRIDE
    before, _ = margins(model, side)
    starts = [*range(0, side - size, tile - _overlap(model, side)), side - size]
    edges = [0, *(start + before for start in starts[1:]), side]
    return [
        (slice(start, start + size), slice(first, end))
        for start, first, end in zip(starts, edges, edges[1:], strict=False)
    ]


def _within(seen: slice, kept: slice) -> slice:
    return slice(kept.start - seen.start, kept.stop - seen.start)


def _check_out(out: np.ndarray, shape: tuple[int, ...], num_classes: int) -> None:
    if out.shape != shape or not np.issubdtype(out.dtype, np.integer):
        raise ValueError(
            f"out must be {list(shape)} of an integer dtype, got {list(out.shape)} "
            f"{out.dtype}"
        )
    if num_classes - 1 > np.iinfo(out.dtype).max:
        raise ValueError(f"out of {out.dtype} cannot hold {num_classes} classes")
