"""Upsampling by transposed convolutions, with fixed bilinear or learned kernels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def kernel_side(factor: int) -> int:
    """Return the side of the bilinear kernel for ``factor`` f: 2f - f % 2."""
    return 2 * factor - factor % 2


def bilinear_weights(factor: int) -> np.ndarray:
    """Return the weights that interpolate linearly when upsampling by ``factor``.

    Args:
        factor: the stride of the transposed convolution, at least 1.

    Returns:
        [k] float32 with k = `kernel_side`; its outer product with itself is the
        bilinear kernel.

    Reference: Long et al., arXiv:1411.4038, section 3.3.
    """
    center = factor - 1 if factor % 2 else factor - 0.5
    distance = np.abs(np.arange(kernel_side(factor)) - center)
    return (1 - distance / factor).astype(np.float32)


def bilinear_kernel(factor: int, num_classes: int) -> jax.Array:
    """Return the kernel that learned upsampling starts from: bilinear for each class.

    Args:
        factor: the stride of the transposed convolution.
        num_classes: C, input and output channels.

    Returns:
        [k, k, C, C] float32, the bilinear kernel from each class to itself, zero
        between different classes.
    """
    weights = bilinear_weights(factor)
    # jnp, so that jax.eval_shape finds the shape without allocating the kernel.
    identity = jnp.eye(num_classes, dtype=jnp.float32)
    return np.outer(weights, weights)[..., None, None] * identity


def transpose_padding(factor: int, padding: str) -> tuple[int, int]:
    """Return the padding of the dilated input for `lax.conv_transpose`.

    "VALID" keeps the whole footprint of every pixel: padding k - 1, side
    (n - 1) * f + k. "SAME" crops k - f rows of that, half on each side: side n * f, and
    each pixel lies at the centre of the f pixels that it becomes.
    """
    k = kernel_side(factor)
    pad = k - 1 - ((k - factor) // 2 if padding == "SAME" else 0)
    return pad, pad


def upsample_bilinear(x: jax.Array, factor: int, padding: str = "SAME") -> jax.Array:
    """Upsample each channel bilinearly; outside its border a map counts as zero.

    The kernel is an outer product and the same for all channels, so one matrix
    multiplies the rows and another the columns. The result is that of a transposed
    convolution with a dense [k, k, C, C] kernel, for a fraction of the work.

    Args:
        x: [B, H, W, C].
        factor: how many times larger, at least 1.
        padding: "SAME", or "VALID" for the uncropped output.

    Returns:
        [B, factor * H, factor * W, C] of the dtype of ``x``; with "VALID" a side n
        becomes (n - 1) * factor + k with k = `kernel_side`.
    """
    rows, cols = (_interpolation(n, factor, padding, x.dtype) for n in x.shape[1:3])
    # Full precision for the scores, also where products are TF32 by default.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    x = product("uh,bhwc->buwc", rows, x)  # [B, H', W, C]
    return product("vw,buwc->buvc", cols, x)


def _interpolation(side: int, factor: int, padding: str, dtype: Any) -> jax.Array:
    """Return the weight of each pixel in each upsampled one, [upsampled side, side].

    It is computed in jnp, because an exported program knows the side only when it runs.
    """
    k = kernel_side(factor)
    cut = (k - factor) // 2 if padding == "SAME" else 0
    places = jnp.arange((side - 1) * factor + k - 2 * cut)[:, None] + cut
    distance = jnp.abs(places - factor * jnp.arange(side) - (k - 1) / 2)
    return jnp.maximum(0, 1 - distance / factor).astype(dtype)


def upsample_learned(
    x: jax.Array, kernel: jax.Array, factor: int, padding: str = "SAME"
) -> jax.Array:
    """Upsample by a transposed convolution with a dense kernel.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, D]; ``kernel[a, b, c, d]`` is the weight with which class c of
            a pixel adds to class d at row a, column b of its footprint, as in Caffe.
        factor: the stride, with k = `kernel_side`.
        padding: as for `upsample_bilinear`.

    Returns:
        [B, factor * H, factor * W, D] of the dtype of ``x``; with "VALID" the sides of
        `upsample_bilinear`.
    """
    # lax.conv_transpose correlates, so the footprint must be flipped.
    kernel = kernel[::-1, ::-1].astype(x.dtype)
    pad = transpose_padding(factor, padding)
    return lax.conv_transpose(x, kernel, (factor, factor), [pad, pad])
