"""The loss of a pixel-wise classifier."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, label: jax.Array, *, ignore_label: int = 255
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of the labelled pixels, as a sum and their number.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or ``ignore_label`` for void pixels, which change
            neither value nor gradient.
        ignore_label: the void value.
    Returns:
        The loss in nats summed over labelled pixels, float32, and how many there are,
        int32.
    Reference: Long et al., arXiv:1411.4038, section 3.4.
    """
    labelled = label != ignore_label
    # Masked before the loss as well as after: its NaN would survive in the gradient.
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(labelled, label, 0)
    )
    return jnp.where(labelled, loss, 0).sum(), labelled.sum()
