"""The compiled programs of prediction: from a batch of images to scores or labels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.models.fcn import FCN


@functools.partial(jax.jit, static_argnums=0)
def scores_of(
    model: FCN,
    params: dict[str, Any],
    batch: jax.Array,
    size: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, H, W, C] float32; ``size`` as `fcn_jax.FCN` takes it."""
    return model.apply({"params": params}, batch, size)


# In one program with the network, so that only labels leave the device.
@functools.partial(jax.jit, static_argnums=0)
def labels_of(
    model: FCN,
    params: dict[str, Any],
    batch: jax.Array,
    size: jax.Array | None = None,
) -> jax.Array:
    """Labels [B, H, W] int32."""
    logits = model.apply({"params": params}, batch, size)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
