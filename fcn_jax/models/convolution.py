"""Convolutions and pools, in the form that each platform computes fastest.

Accelerators use XLA's convolution. On a CPU it is fast only in the forward pass of
large maps with few channels. Two other cases are computed there as matrix products: the
gradient of a kernel (`conv`), and layers with few positions and very many channels
(`wide_conv`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# "SAME", "VALID", or rows and columns of zeros: ((top, bottom), (left, right)).
Padding = str | tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# With fewer input channels, XLA's gradient of a kernel is as fast.
_MIN_CHANNELS = 64
# Positions per matrix product: few enough for their rows to stay in a core's cache.
_POSITIONS = 2048
# Minimum rows per matrix product: each product also copies kh - 1 neighbouring rows.
_LEAST_ROWS = 2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolve with stride 1; the gradient of the kernel is fast on a CPU too.

    XLA computes that gradient as a convolution whose kernel is as large as the map. On
    a CPU this runs at a tenth of the speed of the forward pass. As a `jax.custom_vjp`,
    the function supports reverse-mode differentiation only.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D], of the dtype of ``x``.
        padding: see `Padding`.

    Returns:
        [B, H', W', D].
    """
    return _xla_conv(x, kernel, padding)


def _conv_forward(x: jax.Array, kernel: jax.Array, padding: Padding) -> tuple:
    return _xla_conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding: Padding, residuals: tuple, g: jax.Array) -> tuple:
    x, kernel = residuals
    _, pull_x = jax.vjp(lambda x: _xla_conv(x, kernel, padding), x)

    def as_convolution(x: jax.Array, g: jax.Array) -> jax.Array:
        _, pull = jax.vjp(lambda kernel: _xla_conv(x, kernel, padding), kernel)
        return pull(g)[0]

    sides, channels = kernel.shape[:2], kernel.shape[2]
    if sides == (1, 1) or channels < _MIN_CHANNELS:
        return *pull_x(g), as_convolution(x, g)
    gradient = lax.platform_dependent(
        x,
        g,
        cpu=lambda x, g: _kernel_gradient(x, g, sides, padding),
        default=as_convolution,
    )
    return *pull_x(g), gradient


conv.defvjp(_conv_forward, _conv_backward)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, sides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Sum the gradient of a kernel, [kh, kw, C, D], over products of some rows each.

    Args:
        x: [B, H, W, C].
        g: [B, H', W', D], the gradient of the output.
        sides: kh and kw.
        padding: see `Padding`.
    """
    (kh, kw), (b, h, w, filters) = sides, g.shape
    parts = -(-h // max(_LEAST_ROWS, _POSITIONS // (b * w)))
    rows = -(-h // parts)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sides, (1, 1), padding)
    (top, bottom), (left, right) = padding
    surplus = parts * rows - h
    x = jnp.pad(x, ((0, 0), (top, bottom + surplus), (left, right), (0, 0)))
    g = jnp.pad(g, ((0, 0), (0, surplus), (0, 0), (0, 0)))
    columns = kw * x.shape[-1]

    def add(sums: tuple[jax.Array, ...], i: jax.Array) -> tuple:
        part = lax.dynamic_slice_in_dim(x, i * rows, rows + kh - 1, axis=1)
        shifted = [part[:, :, j : j + w] for j in range(kw)]
        patches = jnp.concatenate(shifted, axis=-1)
        part = lax.dynamic_slice_in_dim(g, i * rows, rows, axis=1)
        products = [
            jnp.matmul(
                part.reshape(-1, filters).T,
                patches[:, i : i + rows].reshape(-1, columns),
                preferred_element_type=jnp.float32,
            )
            for i in range(kh)
        ]
        return tuple(map(jnp.add, sums, products)), None

    zeros = (jnp.zeros((filters, columns), jnp.float32),) * kh
    sums, _ = lax.scan(add, zeros, jnp.arange(parts))
    gradient = jnp.stack([s.T.reshape(kw, -1, filters) for s in sums])
    return gradient.astype(x.dtype)


def wide_conv(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
    """Convolve with stride 1 where positions are few and channels many (fc6, fc7).

    On a CPU, XLA's convolution computes fc6 far below the speed of a matrix product, so
    there the patches are laid out as a matrix and multiplied.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D].
        padding: "SAME" or "VALID".

    Returns:
        [B, H', W', D].
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _conv_by_patches(x, kernel, padding),
        default=lambda x, kernel: _xla_conv(x, kernel, padding),
    )


class Conv(nn.Module):
    """Convolve with stride 1 and add a bias.

    Attributes:
        filters: output channels.
        side: height and width of the kernel.
        padding: see `Padding`; "SAME" or "VALID" if ``wide``.
        wide: whether `wide_conv` computes it.
        dtype: dtype of the computation; the parameters are float32.
        kernel_init: initialiser of the kernel; the bias starts at zero.
    """

    filters: int
    side: int = 3
    padding: Padding = "SAME"
    wide: bool = False
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve [B, H, W, C] to [B, H', W', filters]."""
        shape = (self.side, self.side, x.shape[-1], self.filters)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), jnp.float32)
        form = wide_conv if self.wide else conv
        y = form(x.astype(self.dtype), kernel.astype(self.dtype), self.padding)
        return y + bias.astype(self.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pool [B, H, W, C] by 2x2 to [B, (H + 1) // 2, (W + 1) // 2, C].

    The pool is the maximum of four slices, because its gradient is elementwise: that of
    `lax.reduce_window` took 6 to 20 times as long on a CPU. Equal values share the
    gradient. After a ReLU this concerns zeros only, which pass no gradient on.
    """
    h, w = (2 * ((side + 1) // 2) for side in x.shape[1:3])
    pads = ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2]), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    top = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom = jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)


def _xla_conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS
    )


def _conv_by_patches(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """Convolve by one matrix product of patches and kernel."""
    kh, kw, _, filters = kernel.shape
    if padding == "SAME":
        rows, cols = ((k - 1) // 2 for k in (kh, kw))
        pads = ((0, 0), (rows, kh - 1 - rows), (cols, kw - 1 - cols), (0, 0))
        x = jnp.pad(x, pads)
    b, h, w = x.shape[0], x.shape[1] - kh + 1, x.shape[2] - kw + 1
    shifted = [x[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)]
    patches = jnp.concatenate(shifted, axis=-1)  # [B, H, W, kh*kw*C]
    y = patches.reshape(b * h * w, -1) @ kernel.reshape(-1, filters)
    return y.reshape(b, h, w, filters)
