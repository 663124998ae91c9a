"""VGG-16 with its dense layers as convolutions: the body of every FCN."""

import math
import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models.convolution import Conv, Padding, max_pool
from fcn_jax.models.extent import Extents, zero_outside

# Number of convolutions of each block, and their filters at width 1.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
FC_FILTERS = 4096
NUM_POOLS = len(BLOCKS)
_MAX_WIDTH = 1000  # Far above any real network, and array sizes stay below 2**63.
_MAX_FLOAT32 = float(jnp.finfo(jnp.float32).max)

# Mean RGB of the training images of Oxford's VGG-16, to subtract from its input.
VGG_MEAN_RGB = (123.68, 116.779, 103.939)

# Root mean square of pixels less their mean, in photographs.
PIXEL_SIZE = 64.0

# Root mean square of the inputs of these layers; that of fc6 is pool5 of the Caffe
# VGG-16 on photographs. Their random kernels are divided by it, so that the features
# have size 1. With He's plain scale, a random fc6 and fc7 pass the size of pool5 on to
# the score layer, whose first gradients then make plain SGD diverge.
_INPUT_SIZES = {"conv1_1": PIXEL_SIZE, "fc6": 8.0}


def _kernel_init(layer: str) -> nn.initializers.Initializer:
    """Return He's initialiser for the size of the layer's input."""
    scale = 2.0 / _INPUT_SIZES.get(layer, 1.0) ** 2
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


def scaled(filters: int, width: float) -> int:
    """Return the number of filters of a layer at a width.

    Raises:
        ValueError: if ``width`` is above `_MAX_WIDTH` or does not give every layer a
            whole number of filters.
    """
    if (
        not is_number(width)
        or not 0 < width <= _MAX_WIDTH
        or not math.isclose(64 * width, round(64 * width))
    ):
        raise ValueError(
            f"width = {width!r} must be a multiple of 1/64, such as 0.25, and at most "
            f"{_MAX_WIDTH:,}"
        )
    return round(64 * width) * filters // 64


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number, finite in float32."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and abs(value) <= _MAX_FLOAT32


class VGG16(nn.Module):
    """Compute the features of VGG-16, with convolutions throughout.

    Attributes:
        num_classes: 0 to end at fc7; 1000 to add the ImageNet classifier fc8.
        width: multiplier of the number of filters, below 1 for thin networks.
        dropout: rate after fc6 and fc7.
        dtype: dtype of the computation.
        pad: zero padding of the image in conv1_1.
        fc6_padding: "SAME" keeps the size of pool5; "VALID" removes 6 rows and columns.
        remat: "blocks" keeps only the pools for the gradient and recomputes the maps
            between them, for less memory and more time; "none" keeps all maps.

    Reference: Simonyan and Zisserman, arXiv:1409.1556, configuration D; Long et al.,
        arXiv:1411.4038, section 4.1.
    """

    num_classes: int = 0
    width: float = 1.0
    dropout: float = 0.5
    dtype: Any = jnp.float32
    pad: int = 1
    fc6_padding: str = "SAME"
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, extents: Extents | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Compute the features of a batch.

        Args:
            x: [B, H, W, I] float, the image with the mean subtracted; I = 3 for RGB.
            extents: if images are padded, from `fcn_jax.models.geometry.body_extents`;
                maps are set to zero outside them.
            train: whether to apply dropout, which needs the "dropout" key.

        Returns:
            "pool1" .. "pool5" [B, H/2^i, W/2^i, C], sides rounded up; "fc7" and, with
            ``num_classes``, "fc8" with the sides of pool5. A ``pad`` above 1 enlarges
            all maps; "VALID" takes 6 rows and columns off the last two.
        """
        maps, extents = {}, extents or {}
        x = x.astype(self.dtype)
        run = VGG16._block
        if self.remat == "blocks":
            run = nn.remat(run, static_argnums=1)
        for block in range(1, NUM_POOLS + 1):
            extent = extents.get("conv1" if block == 1 else f"pool{block - 1}")
            x = maps[f"pool{block}"] = run(self, block, x, extent)
        filters = scaled(FC_FILTERS, self.width)
        for name, side in (("fc6", 7), ("fc7", 1)):
            conv = self._layer(name, filters, side, self.fc6_padding, wide=True)
            x = zero_outside(nn.relu(conv(x)), extents.get("fc7"))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        maps["fc7"] = x
        if self.num_classes:
            maps["fc8"] = self._layer("fc8", self.num_classes, 1, "SAME", wide=True)(x)
        return maps

    def _block(self, block: int, x: jax.Array, extent: jax.Array | None) -> jax.Array:
        """Apply the convolutions of a block and its pool; return [B, H/2, W/2, C]."""
        convolutions, filters = BLOCKS[block - 1]
        filters = scaled(filters, self.width)
        for i in range(1, convolutions + 1):
            name = f"conv{block}_{i}"
            pad = self.pad if name == "conv1_1" else 1
            x = nn.relu(self._layer(name, filters, 3, ((pad, pad), (pad, pad)))(x))
            x = zero_outside(x, extent)
        return max_pool(x)

    def _layer(
        self, name: str, filters: int, side: int, padding: Padding, wide: bool = False
    ) -> Conv:
        return Conv(
            filters,
            side,
            padding,
            wide=wide,
            dtype=self.dtype,
            kernel_init=_kernel_init(name),
            name=name,
        )
