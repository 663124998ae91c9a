"""Images of several sizes in one batch, with the results of each image alone.

Smaller images are padded with zeros to one shape. Convolutions pad with zeros too.
Hence, while each map is zero outside the true extent of its image (`zero_outside`), its
part inside the extent equals the map of the unpadded image.
"""

import jax
import jax.numpy as jnp
from jax import lax

# For each map, by name: [B, 2] int32, the height and width that belong to each image.
Extents = dict[str, jax.Array]


def zero_outside(x: jax.Array, extent: jax.Array | None) -> jax.Array:
    """Set each map of a batch to zero outside its own height and width.

    Args:
        x: [B, H, W, C].
        extent: [B, 2] int32, the height and width of each map; None keeps all.

    Returns:
        [B, H, W, C].
    """
    if extent is None:
        return x
    rows = jnp.arange(x.shape[1]) < extent[:, :1]  # [B, H]
    cols = jnp.arange(x.shape[2]) < extent[:, 1:]  # [B, W]
    inside = rows[:, :, None, None] & cols[:, None, :, None]
    return jnp.where(inside, x, 0)


def windows(
    x: jax.Array, offset: jax.Array, size: tuple[int, int], most: int
) -> jax.Array:
    """Crop each map of a batch to one size, each at its own offset.

    Args:
        x: [B, H, W, C].
        offset: [B, 2] int32, the first row and column to keep of each map.
        size: height and width to keep.
        most: the largest offset that occurs.

    Returns:
        [B, *size, C], zero where a window runs over the end of its map.
    """
    surplus = [
        max(0, side + most - n) for side, n in zip(size, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((0, n) for n in surplus), (0, 0)))

    def crop(x: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(x, (*offset, 0), (*size, x.shape[-1]))

    return jax.vmap(crop)(x, offset)
