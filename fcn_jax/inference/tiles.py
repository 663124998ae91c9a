"""Images too large for the memory: run in tiles, stitched to what the whole gives.

A network sees one tile of the image at a time, and three things make the tile's scores
those of the whole image.

It starts at a multiple of 32 rows and columns, so that each of the five pools, laid
from the top left on, meets the same pixels.

It has the image's side modulo 32. The last crop of geometry "same" follows from that
remainder alone, so it is the same for the tile; and the last tile of a row or column,
which must end where the image ends, starts at a multiple of 32 like the others.

It overlaps its neighbours. Where a tile ends with the image, its layers see the zeros
that they see in the whole; where it ends inside, they see zeros in place of the pixels
beyond. The rows that these reach (`margins`, from the `receptive_field`) are left to
the neighbour.

All tiles of an image are of one shape, so they share a program.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fcn_jax.data.padding import fill_up
from fcn_jax.inference.image import as_batch
from fcn_jax.inference.programs import labels_of, scores_of
from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.geometry import CAFFE_PAD, caffe_offsets, crop_offset
from fcn_jax.models.upsampling import kernel_side, transpose_padding
from fcn_jax.models.vgg import BLOCKS, NUM_POOLS

# Of a tile by default: 2048 x 2048. The full-width network in float32 takes 0.5 KiB a
# pixel (0.6 in geometry "caffe", 0.7 for 150 classes): 2 to 3 GiB, parameters aside.
MAX_PIXELS = 2**22
# Rows of the image to a row of pool5: tiles that start at its multiples meet all pools.
STRIDE = 2**NUM_POOLS

# First and last row of a map.
Rows = tuple[int, int]
# What a tile sees of the rows and of the columns of an image, and what is kept of that.
Part = tuple[tuple[slice, slice], tuple[slice, slice]]


def needs_tiles(shape: tuple[int, ...], max_pixels: int = MAX_PIXELS) -> bool:
    """Whether an image of [H, W, ...] has more than ``max_pixels`` pixels."""
    return shape[0] * shape[1] > max_pixels


def predict_tiled(
    model: FCN,
    params: dict[str, Any],
    image: np.ndarray,
    *,
    tile: int | tuple[int, int] = MAX_PIXELS,
    out: np.ndarray | None = None,
    progress: bool = False,
) -> np.ndarray:
    """The class of every pixel of an image of any size, in the memory of a tile.

    Labels are those that `fcn_jax.predict` gives the whole image, but where two scores
    are equal to rounding.

    Args:
        model: the network.
        params: of the model.
        image: [H, W, 3] uint8 or float, RGB in [0, 255]; may be a np.memmap.
        tile: pixels that the network may see at once, or a height and width. Tiles are
            made equal, their sides multiples of 32, and no larger than they need be.
            The larger, the less is computed twice: a quarter to a half of each side
            goes to `margins` in tiles of 1024 to 2048.
        out: [H, W] of an integer dtype for the labels, such as a np.memmap.
        progress: whether to show a progress bar, which goes away at the end.
    Returns:
        ``out``, or labels [H, W] uint8 (int32 for more than 256 classes).
    Raises:
        ValueError: if ``image`` is not one image, ``out`` cannot hold its labels, or
            ``tile`` is too small for its margins.

    Example::

        image = np.load("mosaic.npy", mmap_mode="r")
        labels = predict_tiled(model, params, image)
    """
    shape, parts = _plan(model, image, tile)
    if out is None:
        small = model.num_classes <= 256
        out = np.empty(image.shape[:2], np.uint8 if small else np.int32)
    _check_out(out, image.shape[:2], model.num_classes)
    bar = tqdm(parts, desc="tiles", unit="tile", leave=False, disable=not progress)
    for rows, cols, labels in _run(labels_of, model, params, image, shape, bar):
        out[rows, cols] = labels
    return out


def logits_tiled(
    model: FCN,
    params: dict[str, Any],
    image: np.ndarray,
    *,
    tile: int | tuple[int, int] = MAX_PIXELS,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The scores of an image of any size, part by part.

    Args:
        model, params, image, tile: as for `predict_tiled`.
    Returns:
        Iterator of (rows, columns, logits): slices that cover each pixel of the image
        once, and the [h, w, C] float32 of their pixels.
    Raises:
        ValueError: at once, as `predict_tiled` does.
    """
    return _run(scores_of, model, params, image, *_plan(model, image, tile))


def receptive_field(model: FCN, row: int, *, side: int) -> Rows:
    """The rows of an image that a row of its logits depends on; columns are alike.

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
    """Rows that the logits depend on before and after their own, at most.

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
    """The rows of the image that the body makes these rows of a pool of."""
    for block in range(level, 0, -1):
        rows = 2 * rows[0], 2 * rows[1] + 1
        for i in range(BLOCKS[block - 1][0], 0, -1):
            pad = CAFFE_PAD if caffe and block == i == 1 else 1
            rows = rows[0] - pad, rows[1] - pad + 2
    return rows


def _upsampled_from(rows: Rows, factor: int, caffe: bool) -> Rows:
    """The rows that an upsampling makes these of."""
    kernel = kernel_side(factor)
    # Row x adds to rows factor * x to factor * x + kernel - 1, less what is cut.
    cut = kernel - 1 - transpose_padding(factor, "VALID" if caffe else "SAME")[0]
    return (rows[0] + cut - kernel) // factor + 1, (rows[1] + cut) // factor


def _plan(
    model: FCN, image: np.ndarray, tile: int | tuple[int, int]
) -> tuple[tuple[int, int], list[Part]]:
    """The height and width of the tiles of an image, and the part that each sees."""
    if not as_batch(image)[1]:
        raise ValueError(
            f"image must be one image [H, W, 3], got a batch {list(image.shape)}: "
            "pass its images one by one"
        )
    size = image.shape[:2]
    shape = _shape(model, size, tile)
    rows, cols = (_spans(model, *sides) for sides in zip(size, shape, strict=True))
    return shape, [(row, col) for row in rows for col in cols]


def _shape(
    model: FCN, size: tuple[int, int], tile: int | tuple[int, int]
) -> tuple[int, int]:
    """Height and width of tiles that cover an image with the fewest pixels."""
    sides = [(_aligned(side), _lost(model, side)) for side in size]
    least = tuple(min(whole, lost + STRIDE) for whole, lost in sides)
    if isinstance(tile, tuple):
        limits = [tile]
    else:
        heights = range(least[0], tile // least[1] + 1, STRIDE)
        limits = [(height, tile // height) for height in heights]
    layouts = [
        (_even(*sides[0], height), _even(*sides[1], width))
        for height, width in limits
        if height >= least[0] and width >= least[1]
    ]
    if not layouts:
        raise ValueError(
            f"tile = {tile} is too small for an image of {list(size)}: with what its "
            f"pixels depend on around them, a tile has {least[0]} x {least[1]} pixels "
            "or more; pass at least that"
        )
    (_, height), (_, width) = min(
        layouts, key=lambda layout: math.prod(layout[0] + layout[1])
    )
    return height, width


def _even(whole: int, lost: int, most: int) -> tuple[int, int]:
    """How few tiles of side ``most`` cover a side, and the least side that does too."""
    if whole <= most:
        return 1, whole
    share = (whole - lost) // STRIDE
    count = -(-share // ((most - lost) // STRIDE))
    return count, lost + -(-share // count) * STRIDE


def _lost(model: FCN, side: int) -> int:
    """Rows by which tiles overlap: a tile more covers so many less than its own."""
    return _aligned(sum(margins(model, side)) + -side % STRIDE)


def _aligned(side: int) -> int:
    """The side, up to the next multiple of 32."""
    return side + -side % STRIDE


def _spans(model: FCN, side: int, tile: int) -> list[tuple[slice, slice]]:
    """Along a side of the image, what each tile sees of it and what is kept of that.

    All see equally much, at most ``tile``.
    """
    if side <= tile:
        return [(slice(0, side), slice(0, side))]
    size = tile - -side % STRIDE
    before, _ = margins(model, side)
    starts = [*range(0, side - size, tile - _lost(model, side)), side - size]
    edges = [0, *(start + before for start in starts[1:]), side]
    return [
        (slice(start, start + size), slice(first, end))
        for start, first, end in zip(starts, edges, edges[1:], strict=False)
    ]


def _run(
    run: Callable,
    model: FCN,
    params: dict[str, Any],
    image: np.ndarray,
    shape: tuple[int, int],
    parts: Iterable[Part],
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """What ``run`` gives for each part of an image, as `logits_tiled` describes it."""
    params = jax.device_put(params)
    for row, col in parts:
        # Of one shape always, with the true size beside it: else each remainder of a
        # side, in another image, would be a program of its own.
        batch, size = fill_up([image[row[0], col[0]]], shape, 1)
        found = np.asarray(run(model, params, batch, size))[0]
        yield row[1], col[1], found[_within(*row), _within(*col)]


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
