"""The compiled programs of prediction: from a batch of images to scores or labels."""

import jax
import jax.numpy as jnp

from fcn_jax.inference.resize import resize
from fcn_jax.network import Network


@jax.jit
def scores_of(
    net: Network, batch: jax.Array, size: jax.Array | None = None
) -> jax.Array:
    """Return logits of images as they are, whatever ``net.size`` is.

    Args:
        net: the network.
        batch: [B, H, W, N].
        size: [B, 2] int32, the true height and width of each image, as `FCN` takes it.

    Returns:
        [B, H, W, C] float32.
    """
    return net.model.apply({"params": net.params}, batch, size)


# In one program with the network, so that only labels leave the device.
@jax.jit
def labels_of(
    net: Network, batch: jax.Array, size: jax.Array | None = None
) -> jax.Array:
    """Return labels [B, H, W] int32, the best class of `scores_of`."""
    return jnp.argmax(scores_of(net, batch, size), axis=-1).astype(jnp.int32)


@jax.jit
def classes_of(
    net: Network, batch: jax.Array, size: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the labels of `labels_of` and their confidence, as `surest` does."""
    return surest(scores_of(net, batch, size))


def surest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the best class at each pixel and its probability.

    Args:
        logits: [..., C].

    Returns:
        labels: [...] int32.
        confidence: [...] float32, the softmax of the best score.
    """
    best = jnp.max(logits, axis=-1, keepdims=True)
    confidence = 1 / jnp.exp(logits - best).sum(axis=-1)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), confidence


def resized_scores(net: Network, batch: jax.Array) -> jax.Array:
    """Return logits of whole images, resized to ``net.size`` and back where it is set.

    Args:
        net: the network.
        batch: [B, H, W, N].

    Returns:
        [B, H, W, C] float32.
    """
    if not net.size:
        return scores_of(net, batch)
    # Three programs: a new image size must not compile the network again.
    logits = scores_of(net, _resize(batch, net.size))
    return _resize(logits, batch.shape[1:3])


_resize = jax.jit(resize, static_argnums=1)
