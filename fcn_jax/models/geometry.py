"""Geometry: how large each map is and where it lies over the image.

In geometry "same" every convolution keeps the size of its map, and an upsampled map is
cropped to the smaller map that it is added to.

Geometry "caffe" is that of the authors' release. There fc6 is not padded, so its output
has 6 rows and columns less than pool5. conv1_1 pads the image by 100 to make up for it:
even an image of one pixel gives the 7 rows of pool5 that fc6 needs. Crops remove the
surplus. Their offsets, such as the 19 of FCN-32s, follow from `Coordinates`, which
track where a map lies over the image through pads, strides and kernels.
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
    """Return the first row (or column) to keep when cropping a map.

    Args:
        big: side of the map to crop.
        small: side to crop it to, at most ``big``.
        crop: "center" keeps the middle, from ``(big - small) // 2`` on; "corner" keeps
            the top left, where SAME pools of stride 2 are anchored.
    """
    return (big - small) // 2 if crop == "center" else 0


def crop_to(x: jax.Array, size: tuple[int, int], crop: Crop) -> jax.Array:
    """Crop a map to a smaller height and width.

    Args:
        x: [B, H, W, C], at least as large as ``size``.
        size: height and width to keep.
        crop: "center" or "corner", see `crop_offset`.

    Returns:
        [B, *size, C].
    """
    top = crop_offset(x.shape[1], size[0], crop)
    left = crop_offset(x.shape[2], size[1], crop)
    return window(x, top, left, size)


def window(x: jax.Array, top: int, left: int, size: tuple[int, int]) -> jax.Array:
    """Crop a map to ``size``, from row ``top`` and column ``left`` on."""
    return x[:, top : top + size[0], left : left + size[1]]


class Coordinates(NamedTuple):
    """Map rows of the image to rows of a map: x falls on scale * x + shift.

    The same holds for columns. Row 0 is the centre of the first row of pixels.

    Attributes:
        scale: rows of the map per row of the image.
        shift: row of the map that the first row of the image falls on.
    """

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def convolved(self, kernel: int, *, stride: int = 1, pad: int = 0) -> "Coordinates":
        """Return the coordinates after a convolution or a pool."""
        center = Fraction(kernel - 1, 2)
        return Coordinates(self.scale / stride, (self.shift + pad - center) / stride)

    def upsampled(self, factor: int) -> "Coordinates":
        """Return the coordinates after an uncropped transposed convolution."""
        center = Fraction(kernel_side(factor) - 1, 2)
        return Coordinates(self.scale * factor, self.shift * factor + center)

    def offset(self, other: "Coordinates") -> int:
        """Return the first row of this map to keep so that it lies over another.

        Raises:
            ValueError: if the scales differ or the offset is not a whole number.
        """
        offset = self.shift - other.shift
        if self.scale != other.scale or offset.denominator != 1:
            raise ValueError(f"no crop by whole rows aligns {self} with {other}")
        return int(offset)


IMAGE = Coordinates()
CAFFE_PAD = 100


def caffe_coordinates() -> dict[str, Coordinates]:
    """Return the coordinates of "pool1" .. "pool5" and "fc7" in geometry "caffe".

    Reference: the authors' net definitions (voc-fcn32s) and their coord_map.py.
    """
    at = IMAGE.convolved(3, pad=CAFFE_PAD)
    maps = {}
    for block in range(1, NUM_POOLS + 1):
        # The other 3x3 convolutions are padded by 1 and do not move a map.
        at = maps[f"pool{block}"] = at.convolved(2, stride=2)
    maps["fc7"] = at.convolved(7)
    return maps


def caffe_offsets(skips: Sequence[str]) -> list[int]:
    """Return the first row (and column) that each crop of geometry "caffe" keeps.

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
    """Compute which part of each map of VGG-16 belongs to each image of a batch.

    Args:
        size: [B, 2] int32, the height and width of each image.
        caffe: whether the geometry is "caffe".

    Returns:
        The extents of "conv1" (the maps before pool1), "pool1" .. "pool5" and "fc7".
    """
    extent = size + 2 * (CAFFE_PAD - 1) if caffe else size
    extents = {"conv1": extent}
    for block in range(1, NUM_POOLS + 1):
        extent = extents[f"pool{block}"] = (extent + 1) // 2
    extents["fc7"] = extent - 6 if caffe else extent
    return extents
