"""The loss of a pixel-wise classifier."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from fcn_jax.data.labels import VOID


def pixel_weights(
    label: jax.Array, *, class_weights: Sequence[float] = ()
) -> jax.Array:
    """Return the weight of each pixel in the loss.

    Args:
        label: [...] int32 in [0, C), or `VOID`.
        class_weights: the weight of each of the C classes; () for 1 each.

    Returns:
        [...] float32, 0 where the label is `VOID`.
    """
    labelled = label != VOID
    if not class_weights:
        return labelled.astype(jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    return jnp.where(labelled, weights[jnp.where(labelled, label, 0)], 0)


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """Sum the softmax cross-entropy and the weights of the labelled pixels.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or `VOID`; void pixels change neither the value
            nor the gradient.
        class_weights: as in `pixel_weights`.

    Returns:
        The weighted sum of the losses in nats and the sum of the weights, both [] in
        float32.

    Reference: Long et al., arXiv:1411.4038, section 3.4.
    """
    labelled = label != VOID
    weights = pixel_weights(label, class_weights=class_weights)
    # Mask before the loss as well as after: a NaN would survive in the gradient.
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(labelled, label, 0)
    )
    return jnp.where(labelled, loss * weights, 0).sum(), weights.sum()
