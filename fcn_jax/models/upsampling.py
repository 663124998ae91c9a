"""Upsampling by transposed convolution, with fixed bilinear or learned kernels."""

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

    The kernel is an outer product, so rows and columns go one after the other; and it
    treats all channels alike, so they are folded into the batch. That is the same
    numbers as one dense [k, k, C, C] kernel for a fraction of the work.

    Args:
        x: [B, H, W, C].
        factor: how many times larger, at least 1.
        padding: "SAME", or "VALID" for the uncut output.
    Returns:
        [B, factor * H, factor * W, C] of the dtype of ``x``; "VALID": sides
        (n - 1) * factor + k with k = `kernel_side`.
    """
    b, h, w, c = x.shape
    weights = jnp.asarray(bilinear_weights(factor), x.dtype)
    pad = transpose_padding(factor, padding)
    x = x.transpose(0, 3, 1, 2).reshape(b * c, h, w, 1)
    x = lax.conv_transpose(
        x, weights.reshape(-1, 1, 1, 1), (factor, 1), [pad, (0, 0)]
    )  # [B*C, H', W, 1]
    x = lax.conv_transpose(
        x, weights.reshape(1, -1, 1, 1), (1, factor), [(0, 0), pad]
    )  # [B*C, H', W', 1]
    return x.reshape(b, c, *x.shape[1:3]).transpose(0, 2, 3, 1)


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
