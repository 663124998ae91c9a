"""Bilinear resizing of images and scores, antialiased where they shrink.

Every use of a network with a fixed input size goes through these functions: prediction,
tiles and the exported program, whose sides are unknown while it is made. A resized map
is two matrix products, and the matrices come from integers, so all uses agree.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

_product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def resize_weights(
    old: int | jax.Array,
    new: int | jax.Array,
    shape: tuple[int, int],
    first: int | jax.Array = 0,
) -> jax.Array:
    """Return the matrix that resizes a side from ``old`` to ``new`` pixels.

    Sides are sampled at pixel centres with a triangle as wide as two pixels of the
    coarser side, which is Pillow's BILINEAR.

    Args:
        old: pixels to resize from, at most ``shape[1]``.
        new: pixels to resize to.
        shape: of the matrix. Rows beyond ``new`` have no meaning, columns beyond
            ``old`` are zero.
        first: the new pixel of the matrix's first row.

    Returns:
        [shape[0], shape[1]] float32, rows that sum to 1.
    """
    i, j = first + jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    distance = jnp.abs((2 * i + 1) * old - (2 * j + 1) * new)
    weights = jnp.maximum(0, 1 - distance / (2 * jnp.maximum(old, new)))
    weights = jnp.where(j < old, weights, 0)
    return weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize maps to a height and a width.

    Args:
        x: [B, H, W, C], integer or float.
        size: (height, width) wanted.

    Returns:
        [B, height, width, C] float32.
    """
    return resize_inside(x, x.shape[1:3], size, size)


def resize_inside(
    x: jax.Array,
    old: tuple[int, int] | jax.Array,
    new: tuple[int, int] | jax.Array,
    shape: tuple[int, int],
) -> jax.Array:
    """Resize what lies in the top left corner of maps, as in a padded batch.

    Args:
        x: [B, H, W, C], integer or float.
        old: height and width of what is resized, at most H and W.
        new: height and width that it gets.
        shape: height and width of the result, at least ``new``.

    Returns:
        [B, *shape, C] float32, without meaning beyond ``new``.
    """
    rows = resize_weights(old[0], new[0], (shape[0], x.shape[1]))
    cols = resize_weights(old[1], new[1], (shape[1], x.shape[2]))
    x = _product("uh,bhwc->buwc", rows, x.astype(jnp.float32))
    return _product("vw,buwc->buvc", cols, x)


@partial(jax.jit, static_argnames="width")
def resize_columns(x: jax.Array, width: int) -> jax.Array:
    """Resize [H, W, C] to [H, width, C] float32."""
    cols = resize_weights(x.shape[1], width, (width, x.shape[1]))
    return _product("vw,hwc->hvc", cols, x.astype(jnp.float32))


@partial(jax.jit, static_argnames=("height", "shape"))
def resize_strip(
    x: jax.Array, height: int, shape: tuple[int, int], first: jax.Array
) -> jax.Array:
    """Return a strip of rows of a resized map, in the memory of that strip.

    Args:
        x: [h, w, C].
        height: of the whole resized map.
        shape: rows of the strip, and width of the resized map.
        first: the strip's first row.

    Returns:
        [*shape, C] float32.
    """
    rows = resize_weights(x.shape[0], height, (shape[0], x.shape[0]), first)
    strip = _product("uh,hwc->uwc", rows, x.astype(jnp.float32))
    return resize_columns(strip, shape[1])
