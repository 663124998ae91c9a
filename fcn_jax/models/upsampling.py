"""Upsampling by transposed convolution, with fixed bilinear or learned kernels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def kernel_side(factor: int) -> int:
    """Side of the bilinear kernel that upsamples by ``factor``: 2f - f % 2."""
    return 2 * factor - factor % 2


def bilinear_weights(factor: int) -> np.ndarray:
    """The triangle that interpolates linearly when it upsamples by ``factor``.

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


def bilinear_kernel(factor: int, num_classes: int) -> np.ndarray:
    """A dense kernel that upsamples each class by itself: the start of a learned one.

    Args:
        factor: the stride of the transposed convolution.
        num_classes: C, channels in and out.
    Returns:
        [k, k, C, C] float32, the bilinear kernel where in and out are the same class.
    """
    weights = bilinear_weights(factor)
    identity = np.eye(num_classes, dtype=np.float32)
    return np.einsum("i,j,cd->ijcd", weights, weights, identity)


def transpose_padding(factor: int, padding: str) -> tuple[int, int]:
    """What `lax.conv_transpose` is to pad its dilated input with.

    Padding by k - 1 gives every pixel its whole footprint, side (n - 1) * f + k, as
    "VALID" asks. "SAME" cuts k - f of that, half on each side: side n * f, each pixel
    at the centre of the f pixels made of it.
    """
    k = kernel_side(factor)
    pad = k - 1 - ((k - factor) // 2 if padding == "SAME" else 0)
    return pad, pad


def upsample_bilinear(x: jax.Array, factor: int, padding: str = "SAME") -> jax.Array:
    """Upsamples each channel bilinearly, the map fading to zero outside its border.

    The kernel is an outer product and treats all channels alike, so rows and columns
    are each multiplied by a matrix. That is the same numbers as a transposed
    convolution with a dense [k, k, C, C] kernel for a fraction of the work.

    Args:
        x: [B, H, W, C].
        factor: how many times larger, at least 1.
        padding: "SAME", or "VALID" for the uncut output.
    Returns:
        [B, factor * H, factor * W, C] of the dtype of ``x``; "VALID": sides
        (n - 1) * factor + k with k = `kernel_side`.
    """
    rows, cols = (_interpolation(n, factor, padding, x.dtype) for n in x.shape[1:3])
    # Scores deserve all their digits, also where products are TF32 by default.
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    x = product("uh,bhwc->buwc", rows, x)  # [B, H', W, C]
    return product("vw,buwc->buvc", cols, x)


def _interpolation(side: int, factor: int, padding: str, dtype: Any) -> jax.Array:
    """[upsampled side, side]: what each pixel adds to each upsampled one.

    Computed where it is used, for a side that may not be known before (export).
    """
    k = kernel_side(factor)
    cut = (k - factor) // 2 if padding == "SAME" else 0
    places = jnp.arange((side - 1) * factor + k - 2 * cut)[:, None] + cut
    distance = jnp.abs(places - factor * jnp.arange(side) - (k - 1) / 2)
    return jnp.maximum(0, 1 - distance / factor).astype(dtype)


def upsample_learned(
    x: jax.Array, kernel: jax.Array, factor: int, padding: str = "SAME"
) -> jax.Array:
    """Upsamples by a transposed convolution with a dense kernel.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, D]; ``kernel[a, b, c, d]`` is what class c of one pixel adds
            to class d at row a, column b of its footprint, as Caffe defines it.
        factor: the stride, with k = `kernel_side`.
        padding: as for `upsample_bilinear`.
    Returns:
        [B, factor * H, factor * W, D] of the dtype of ``x``, or the uncut sides.
    """
    # lax.conv_transpose correlates, so the footprint must be turned around.
    kernel = kernel[::-1, ::-1].astype(x.dtype)
    pad = transpose_padding(factor, padding)
    return lax.conv_transpose(x, kernel, (factor, factor), [pad, pad])
