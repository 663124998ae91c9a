"""The loss of a pixel-wise classifier."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def pixel_weights(
    label: jax.Array, *, ignore_label: int = 255, class_weights: Sequence[float] = ()
) -> jax.Array:
    """What each pixel counts in the loss.

    Args:
        label: [...] int32 in [0, C), or ``ignore_label`` for void pixels.
        ignore_label: the void value.
        class_weights: one for each of C classes; () for 1 each.
    Returns:
        [...] float32, 0 where void.
    """
    labelled = label != ignore_label
    if not class_weights:
        return labelled.astype(jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    return jnp.where(labelled, weights[jnp.where(labelled, label, 0)], 0)


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    ignore_label: int = 255,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of the labelled pixels, as a sum and what they count.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or ``ignore_label`` for void pixels, which change
            neither value nor gradient.
        ignore_label: the void value.
        class_weights: as `pixel_weights` has them.
    Returns:
        The loss in nats summed over labelled pixels, each times its weight, and the sum
        of their weights, float32 both.
    Reference: Long et al., arXiv:1411.4038, section 3.4.
    """
    labelled = label != ignore_label
    weights = pixel_weights(
        label, ignore_label=ignore_label, class_weights=class_weights
    )
    # Masked before the loss as well as after: its NaN would survive in the gradient.
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(labelled, label, 0)
    )
    return jnp.where(labelled, loss * weights, 0).sum(), weights.sum()
