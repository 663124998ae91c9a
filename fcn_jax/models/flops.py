"""The work of a network, counted from the shapes of its maps."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.models.convolution import Conv
from fcn_jax.models.fcn import FCN


def flop_per_image(model: FCN, size: tuple[int, int]) -> int:
    """Count the floating-point operations of the convolutions for one image.

    Each weight takes a product and a sum at each position of its map. The rest of a
    forward pass is small beside that in a network of full width.

    Args:
        model: the network.
        size: height and width of the image.
    """
    total = 0

    def count(call: Any, args: tuple, options: dict, context: Any) -> Any:
        nonlocal total
        result = call(*args, **options)
        if isinstance(context.module, Conv):
            (x,), (_, height, width, filters) = args, result.shape
            weights = context.module.side**2 * x.shape[-1] * filters
            total += 2 * height * width * weights
        return result

    image = jax.ShapeDtypeStruct((1, *size, model.in_channels), jnp.float32)
    with nn.intercept_methods(count):
        jax.eval_shape(model.clone(remat="none").init, jax.random.key(0), image)
    return total
