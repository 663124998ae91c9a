"""Convolutions with stride 1 as matrix products of patches, for a CPU.

On a CPU, XLA computes in float32 whatever has the dtype bfloat16, and converts before
and after each operation. Only products of matrices that lie in memory row by row, with
sums in float32, use the CPU's own instructions for bfloat16. So bfloat16 is copied here
as integers of 16 bits. Patches of a strip of rows stay in a core's cache.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# "SAME", "VALID", or rows and columns of zeros: ((top, bottom), (left, right)).
Padding = str | tuple[tuple[int, int], tuple[int, int]]

# Positions of a strip.
_POSITIONS = 2048
# With fewer channels, one product takes the patches under the whole kernel.
FEW_CHANNELS = 16


@functools.cache
def has_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 by instructions of its own.

    Only Linux tells. Elsewhere the answer is False.
    """
    info = Path("/proc/cpuinfo")
    text = info.read_text("utf-8") if info.exists() else ""
    return re.search(r"^flags\b.*\b(avx512_bf16|amx_bf16)\b", text, re.M) is not None


def conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolve strip by strip, with sums in float32.

    Args:
        x: [B, H, W, C] bfloat16 or float32.
        kernel: [kh, kw, C, D], of the dtype of ``x``.
        padding: see `Padding`.

    Returns:
        [B, H', W', D], of the dtype of ``x``.
    """
    (kh, kw, channels, filters), dtype = kernel.shape, x.dtype
    x = _padded(_bits(x), (kh, kw), padding)
    b, h, w = x.shape[0], x.shape[1] - kh + 1, x.shape[2] - kw + 1
    together = channels < FEW_CHANNELS
    strips = _Strips.of(b, h, w, 4 * _POSITIONS if together else _POSITIONS)
    x = strips.filled(x, h)
    kernel = kernel.reshape(1 if together else kh, -1, filters)

    def convolve(i: jax.Array) -> jax.Array:
        patches = _shifts(strips.cut(x, i, kh - 1), kw, 2, 3)
        if together:
            patches = _shifts(patches, kh, 1, 3)
        y = sum(
            _product(_values(part, dtype), row)
            for part, row in zip(_moved_down(patches, len(kernel)), kernel, strict=True)
        )
        return _bits(y.astype(dtype)).reshape(strips.images, strips.rows, w, filters)

    y = lax.map(convolve, jnp.arange(strips.count(b)))
    y = y.reshape(-1, strips.parts, *y.shape[1:]).swapaxes(1, 2)  # One of the two is 1.
    return _values(y.reshape(b, -1, w, filters)[:, :h], dtype)


def input_gradient(
    g: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """Return the gradient of the input of `conv`, [B, H, W, C].

    Args:
        g: [B, H', W', D], the gradient of the output.
        kernel: [kh, kw, C, D].
        padding: rows and columns of zeros.
    """
    turned = _values(_bits(kernel)[::-1, ::-1].swapaxes(2, 3), kernel.dtype)
    pads = [
        tuple(side - 1 - n for n in pad)
        for side, pad in zip(kernel.shape, padding, strict=False)
    ]
    return conv(g, turned, tuple(pads))


def kernel_gradient(
    x: jax.Array, g: jax.Array, sides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Sum the gradient of a kernel, [kh, kw, C, D], over strips, in float32.

    Args:
        x: [B, H, W, C].
        g: [B, H', W', D], the gradient of the output.
        sides: kh and kw.
        padding: see `Padding`.
    """
    (kh, kw), (b, h, w, filters), dtype = sides, g.shape, x.dtype
    strips = _Strips.of(b, h, w)
    x = strips.filled(_padded(_bits(x), sides, padding), h)
    g = strips.filled(_bits(g), h)
    columns = kw * x.shape[-1]
    transposed = dtype == jnp.bfloat16  # So that each product finds rows in memory.
    if transposed:
        g = g.transpose(3, 0, 1, 2)

    def add(sums: tuple[jax.Array, ...], i: jax.Array) -> tuple:
        patches = _shifts(strips.cut(x, i, kh - 1), kw, 2, 3)
        if transposed:
            part = strips.cut(g, i, axis=1).reshape(filters, -1)
        else:
            part = strips.cut(g, i).reshape(-1, filters).T
        products = [
            _product(_values(part, dtype), _values(moved, dtype))
            for moved in _moved_down(patches, kh)
        ]
        return tuple(map(jnp.add, sums, products)), None

    zeros = (jnp.zeros((filters, columns), jnp.float32),) * kh
    sums, _ = lax.scan(add, zeros, jnp.arange(strips.count(b)))
    gradient = jnp.stack([s.T.reshape(kw, -1, filters) for s in sums])
    return gradient.astype(dtype)


def wide_conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolve by one matrix product, where positions are few. See `conv`."""
    kh, kw, _, filters = kernel.shape
    patches = _all_patches(_bits(x), (kh, kw), padding)
    y = _product(
        _values(patches.reshape(-1, patches.shape[-1]), x.dtype),
        kernel.reshape(-1, filters),
    )
    return y.astype(x.dtype).reshape(*patches.shape[:3], filters)


def wide_gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of the input and the kernel of `wide_conv`.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D].
        g: [B, H', W', D], the gradient of the output.
        padding: see `Padding`.
    """
    (kh, kw, _, filters), dtype = kernel.shape, x.dtype
    g = g.reshape(-1, filters)
    channels_first = _padded(_bits(x), (kh, kw), padding).transpose(3, 0, 1, 2)
    columns = _shifts(_shifts(channels_first, kw, 3, 0), kh, 2, 0)
    columns = columns.reshape(-1, g.shape[0])  # [kh * kw * C, B * H' * W']
    for_kernel = _product(_values(columns, dtype), g)
    for_patches = lax.dot_general(
        g,
        kernel.reshape(-1, filters),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    patches, pull = jax.vjp(
        lambda x: _all_patches(x, (kh, kw), padding), x.astype(jnp.float32)
    )
    (for_x,) = pull(for_patches.reshape(patches.shape))
    return for_x.astype(dtype), for_kernel.astype(dtype).reshape(kernel.shape)


class _Strips(NamedTuple):
    """Strips of ``rows`` rows of ``images`` images each, ``parts`` in an image."""

    images: int
    rows: int
    parts: int

    @classmethod
    def of(cls, b: int, h: int, w: int, positions: int = _POSITIONS) -> "_Strips":
        """Choose the strips of a map [b, h, w, ...]."""
        if h * w < positions:
            most = positions // (h * w)
            images = max(n for n in range(1, min(most, b) + 1) if b % n == 0)
            return cls(images, h, 1)
        parts = -(-h // max(1, positions // w))
        return cls(1, -(-h // parts), parts)

    def count(self, b: int) -> int:
        return b // self.images * self.parts

    def filled(self, x: jax.Array, h: int) -> jax.Array:
        """Add rows of zeros below, which the last strip lacks."""
        surplus = self.parts * self.rows - h
        return jnp.pad(x, ((0, 0), (0, surplus), (0, 0), (0, 0)))

    def cut(
        self, x: jax.Array, i: jax.Array, more: int = 0, axis: int = 0
    ) -> jax.Array:
        """Cut strip ``i`` and ``more`` rows below; ``axis`` is that of the images."""
        x = lax.dynamic_slice_in_dim(
            x, i // self.parts * self.images, self.images, axis
        )
        row = i % self.parts * self.rows
        return lax.dynamic_slice_in_dim(x, row, self.rows + more, axis + 1)


def _bits(x: jax.Array) -> jax.Array:
    """View bfloat16 as integers, which XLA copies as they are."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _values(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """View the integers of `_bits` as what they were."""
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    if a.dtype != jnp.bfloat16 or not has_bfloat16():
        return a.astype(jnp.float32) @ b.astype(jnp.float32)
    # XLA must not merge a transposition before or behind into the product.
    product = jnp.matmul(
        *lax.optimization_barrier((a, b)), preferred_element_type=jnp.float32
    )
    return lax.optimization_barrier(product)


def _padded(x: jax.Array, sides: tuple[int, int], padding: Padding) -> jax.Array:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sides, (1, 1), padding)
    # Gradients may need less than no padding, for a padding beyond the kernel.
    edges = [(*edge, 0) for edge in ((0, 0), *padding, (0, 0))]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _shifts(x: jax.Array, count: int, along: int, onto: int) -> jax.Array:
    """Shift a map step by step along one axis, and join the shifts along another."""
    size = x.shape[along] - count + 1
    shifts = [lax.slice_in_dim(x, i, i + size, axis=along) for i in range(count)]
    return jnp.concatenate(shifts, axis=onto)


def _moved_down(patches: jax.Array, kh: int) -> list[jax.Array]:
    """Return for each row of a kernel the patches under it, as a matrix."""
    h, columns = patches.shape[1] - kh + 1, patches.shape[-1]
    return [patches[:, i : i + h].reshape(-1, columns) for i in range(kh)]


def _all_patches(x: jax.Array, sides: tuple[int, int], padding: Padding) -> jax.Array:
    """Return the values under the whole kernel, [B, H', W', kh * kw * C].

    Rows are joined after columns, because XLA compiles one step of kh * kw shifts
    slowly.
    """
    kh, kw = sides
    return _shifts(_shifts(_padded(x, sides, padding), kw, 2, 3), kh, 1, 3)
