"""Convolutions and pools, in the form that each platform computes fastest.

Accelerators use XLA's convolution. On a CPU it is fast only in the forward pass of
large maps with few channels, in float32. The other cases are computed there as matrix
products of patches (`fcn_jax.models.patches`): the gradient of a kernel, layers with
few positions and very many channels (`wide_conv`), and bfloat16, where the CPU has
instructions for it.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fcn_jax.models import patches
from fcn_jax.models.patches import Padding, has_bfloat16

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# With fewer input channels, XLA's convolutions are as fast.
_MIN_CHANNELS = 64


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolve with stride 1; on a CPU, bfloat16 and the gradients are fast too.

    XLA computes the gradient of a kernel as a convolution whose kernel is as large as
    the map. On a CPU this runs at a tenth of the speed of the forward pass. As a
    `jax.custom_vjp`, the function supports reverse-mode differentiation only.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D], of the dtype of ``x``.
        padding: see `Padding`.

    Returns:
        [B, H', W', D].
    """
    channels, filters = kernel.shape[2:]
    medium = patches.FEW_CHANNELS <= channels < _MIN_CHANNELS
    return _on_cpu(
        _in_bfloat16(x) and filters >= _MIN_CHANNELS and not medium,
        lambda x, kernel: patches.conv(x, kernel, padding),
        lambda x, kernel: _xla_conv(x, kernel, padding),
        x,
        kernel,
    )


def _conv_forward(x: jax.Array, kernel: jax.Array, padding: Padding) -> tuple:
    return conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding: Padding, residuals: tuple, g: jax.Array) -> tuple:
    x, kernel = residuals
    sides, (channels, filters) = kernel.shape[:2], kernel.shape[2:]
    if isinstance(padding, str):
        padding = tuple(lax.padtype_to_pads(x.shape[1:3], sides, (1, 1), padding))

    def for_x(g: jax.Array, kernel: jax.Array) -> jax.Array:
        _, pull = jax.vjp(lambda x: _xla_conv(x, kernel, padding), x)
        return pull(g)[0]

    def for_kernel(x: jax.Array, g: jax.Array) -> jax.Array:
        _, pull = jax.vjp(lambda kernel: _xla_conv(x, kernel, padding), kernel)
        return pull(g)[0]

    return _on_cpu(
        _in_bfloat16(x) and min(channels, filters) >= _MIN_CHANNELS,
        lambda g, kernel: patches.input_gradient(g, kernel, padding),
        for_x,
        g,
        kernel,
    ), _on_cpu(
        sides != (1, 1) and channels >= _MIN_CHANNELS,
        lambda x, g: patches.kernel_gradient(x, g, sides, padding),
        for_kernel,
        x,
        g,
    )


conv.defvjp(_conv_forward, _conv_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def wide_conv(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
    """Convolve with stride 1 where positions are few and channels many (fc6, fc7).

    On a CPU, XLA's convolution computes fc6 far below the speed of a matrix product, so
    there the patches are laid out as a matrix and multiplied. Supports reverse-mode
    differentiation only.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D], of the dtype of ``x``.
        padding: "SAME" or "VALID".

    Returns:
        [B, H', W', D].
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: patches.wide_conv(x, kernel, padding),
        default=lambda x, kernel: _xla_conv(x, kernel, padding),
    )


def _wide_forward(x: jax.Array, kernel: jax.Array, padding: str) -> tuple:
    return wide_conv(x, kernel, padding), (x, kernel)


def _wide_backward(padding: str, residuals: tuple, g: jax.Array) -> tuple:
    def by_xla(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple:
        _, pull = jax.vjp(lambda x, kernel: _xla_conv(x, kernel, padding), x, kernel)
        return pull(g)

    return lax.platform_dependent(
        *residuals,
        g,
        cpu=lambda x, kernel, g: patches.wide_gradients(x, kernel, g, padding),
        default=by_xla,
    )


wide_conv.defvjp(_wide_forward, _wide_backward)


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
        # Cast after the broadcast, so that the gradient is summed in float32.
        return y + jnp.broadcast_to(bias, y.shape).astype(self.dtype)


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Max-pool [B, H, W, C] by 2x2 to [B, (H + 1) // 2, (W + 1) // 2, C].

    The pool is the maximum of four slices, because its gradient is elementwise: that of
    `lax.reduce_window` took 6 to 20 times as long on a CPU. There the gradient of the
    slices is written out, which is 2 to 12 times as fast again. Equal values share the
    gradient. Supports reverse-mode differentiation only.
    """
    return _greatest(x)


def _greatest(x: jax.Array) -> jax.Array:
    (a, b), (c, d) = _quarters(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _quarters(x: jax.Array) -> list[list[jax.Array]]:
    """Return the four values under each position of the pool, -inf beyond the map."""
    h, w = (2 * ((side + 1) // 2) for side in x.shape[1:3])
    pads = ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2]), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    return [[x[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]


def _pool_forward(x: jax.Array) -> tuple:
    y = max_pool(x)
    return y, (x, y)


def _pool_backward(residuals: tuple, g: jax.Array) -> tuple:
    def of_slices(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        _, pull = jax.vjp(_greatest, x)
        return pull(g)[0]

    # On a TPU the maps that this repeats would take much memory.
    gradient = lax.platform_dependent(
        *residuals, g, cpu=_shared_gradient, default=of_slices
    )
    return (gradient,)


def _shared_gradient(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
    """Return the gradient of a pool of ``x`` to ``y``, shared by equal values."""
    b, h, w, channels = y.shape
    equal = sum((part == y).astype(g.dtype) for row in _quarters(x) for part in row)

    def over_the_map(pooled: jax.Array) -> jax.Array:
        shape = b, h, 2, w, 2, channels
        each = jnp.broadcast_to(pooled[:, :, None, :, None], shape)
        each = each.reshape(b, 2 * h, 2 * w, channels)
        return each[:, : x.shape[1], : x.shape[2]]

    return jnp.where(x == over_the_map(y), over_the_map(g / equal), 0)


max_pool.defvjp(_pool_forward, _pool_backward)


def _xla_conv(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS
    )


def _on_cpu(gains: bool, by_patches: Any, by_xla: Any, *arrays: jax.Array) -> jax.Array:
    """Compute by patches on a CPU, if that gains; else by XLA's convolution."""
    if not gains:
        return by_xla(*arrays)
    return lax.platform_dependent(*arrays, cpu=by_patches, default=by_xla)


def _in_bfloat16(x: jax.Array) -> bool:
    """Tell whether a CPU should use its instructions for bfloat16."""
    # The sides of an exported program are symbols, which cannot be cut into strips.
    known = all(isinstance(side, int) for side in x.shape)
    return x.dtype == jnp.bfloat16 and known and has_bfloat16()
