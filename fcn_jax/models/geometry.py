"""Sides and crops: how large each map is and how one is laid over another.

In geometry "same" every layer keeps its map's size, and an upsampled map is cropped to
the smaller one that it meets.

In geometry "caffe", that of the authors' release, fc6 is not padded and takes 6 rows
off its input. conv1_1 pads by 100 to make up for it: then even an image of one pixel
leaves in pool5 the 7 rows that fc6 needs. What the padding adds is cut off again:
`Coordinates` follow each map's place over the image through pads, strides and kernels,
and the difference of two places is the offset of a crop, such as the 19 of FCN-32s.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import jax

from fcn_jax.models.extent import Extents
from fcn_jax.models.upsampling import kernel_side
from fcn_jax.models.vgg import NUM_POOLS

Crop = Literal["center", "corner"]


def crop_offset(big: int, small: int, crop: Crop) -> int:
    """First row (or column) of a ``big`` map that is kept beside a ``small`` one.

    Args:
        big: side of the map to be cropped.
        small: side of the map it must fit, at most ``big``.
        crop: "center" keeps the middle, ``(big - small) // 2``; "corner" keeps the top
            left, where SAME pools of stride 2 are anchored.
    Returns:
        The offset in pixels of the big map.
    """
    return (big - small) // 2 if crop == "center" else 0


def crop_to(x: jax.Array, size: tuple[int, int], crop: Crop) -> jax.Array:
    """Crops a map to a smaller height and width.

    Args:
        x: [B, H, W, C], at least as large as ``size``.
        size: the height and width wanted.
        crop: "center" or "corner", see `crop_offset`.
    Returns:
        [B, *size, C].
    """
    top = crop_offset(x.shape[1], size[0], crop)
    left = crop_offset(x.shape[2], size[1], crop)
    return window(x, top, left, size)


def window(x: jax.Array, top: int, left: int, size: tuple[int, int]) -> jax.Array:
    """Crops a map to ``size`` rows and columns from row ``top``, column ``left`` on."""
    return x[:, top : top + size[0], left : left + size[1]]


class Coordinates(NamedTuple):
    """Where a map lies over the image: row x of it falls on row scale * x + shift.

    Columns are alike. Rows are counted at pixel centres from 0, in exact fractions.

    Attributes:
        scale: rows of the map per row of the image.
        shift: row of the map that the image's first row falls on.
    """

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def convolved(self, kernel: int, *, stride: int = 1, pad: int = 0) -> "Coordinates":
        """Of the map that a convolution or a pool makes of this one."""
        center = Fraction(kernel - 1, 2)
        return Coordinates(self.scale / stride, (self.shift + pad - center) / stride)

    def upsampled(self, factor: int) -> "Coordinates":
        """Of the map that an uncut transposed convolution makes of this one."""
        center = Fraction(kernel_side(factor) - 1, 2)
        return Coordinates(self.scale * factor, self.shift * factor + center)

    def offset(self, other: "Coordinates") -> int:
        """First row of this map to keep, for it to lie over another of its scale.

        Raises:
            ValueError: if no crop by whole rows lays it there.
        """
        offset = self.shift - other.shift
        if self.scale != other.scale or offset.denominator != 1:
            raise ValueError(f"no crop lays {self} over {other}")
        return int(offset)


IMAGE = Coordinates()
CAFFE_PAD = 100


def caffe_coordinates() -> dict[str, Coordinates]:
    """Of the maps of VGG-16 that heads are built on, in geometry "caffe".

    Reference: the authors' net definitions (voc-fcn32s) and their coord_map.py.
    """
    at = IMAGE.convolved(3, pad=CAFFE_PAD)
    maps = {}
    for block in range(1, NUM_POOLS + 1):
        # The other 3x3 convolutions, padded by 1, leave a map in its place.
        at = maps[f"pool{block}"] = at.convolved(2, stride=2)
    maps["fc7"] = at.convolved(7)
    return maps


def caffe_offsets(skips: Sequence[str]) -> list[int]:
    """First rows (and columns) that the crops of geometry "caffe" keep.

    Args:
        skips: the pools that a head fuses with, coarse to fine.
    Returns:
        The offset in the scores of each pool, then that in the last upsampled map.
    """
    coordinates, offsets = caffe_coordinates(), []
    at = coordinates["fc7"]
    for pool in skips:
        at = at.upsampled(2)
        offsets.append(coordinates[pool].offset(at))
    last = at.upsampled(2 ** (NUM_POOLS - len(skips)))
    return [*offsets, last.offset(IMAGE)]


def body_extents(size: jax.Array, *, caffe: bool) -> Extents:
    """What belongs to each image in the maps of VGG-16.

    Args:
        size: [B, 2] int32, the images' heights and widths.
        caffe: whether in geometry "caffe".
    Returns:
        Of "conv1" (the convolutions before pool1), "pool1" .. "pool5" and "fc7".
    """
    extent = size + 2 * (CAFFE_PAD - 1) if caffe else size
    extents = {"conv1": extent}
    for block in range(1, NUM_POOLS + 1):
        extent = extents[f"pool{block}"] = (extent + 1) // 2
    extents["fc7"] = extent - 6 if caffe else extent
    return extents
