"""Images of several sizes in one batch, each as if it were alone.

Zeros fill the smaller images up to one shape. Convolutions pad with zeros as well, so
as long as each map is zero outside the true extent of its image (`zero_outside`), an
image's own part of every map is what the image alone would give.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Of each map, by its name: [B, 2] int32, the height and width that belong to an image.
Extents = dict[str, jax.Array]


def zero_outside(x: jax.Array, extent: jax.Array | None) -> jax.Array:
    """Zeroes each map of a batch outside its own height and width.

    Args:
        x: [B, H, W, C].
        extent: [B, 2] int32, the heights and widths; None changes nothing.
    Returns:
        [B, H, W, C].
    """
    if extent is None:
        return x
    rows = jnp.arange(x.shape[1]) < extent[:, :1]  # [B, H]
    cols = jnp.arange(x.shape[2]) < extent[:, 1:]  # [B, W]
    inside = rows[:, :, None, None] & cols[:, None, :, None]
    return jnp.where(inside, x, 0)


def windows(x: jax.Array, offset: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops each map of a batch to ``size`` from an offset of its own on.

    Args:
        x: [B, H, W, C].
        offset: [B, 2] int32, the first row and column; where a window runs over the
            end of the map, it shows zeros.
        size: height and width.
    Returns:
        [B, *size, C].
    """
    x = jnp.pad(x, ((0, 0), (0, size[0]), (0, size[1]), (0, 0)))

    def crop(x: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(x, (*offset, 0), (*size, x.shape[-1]))

    return jax.vmap(crop)(x, offset)
