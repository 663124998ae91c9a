"""The losses of a pixel-wise classifier, from sums over all pixels of a batch.

A loss is computed in two steps. `loss_sums` sums over pixels, and these sums may be
added over micro-batches and devices. `loss_value` divides the sums of the whole batch.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from fcn_jax.data.labels import VOID

LOSSES = ("cross_entropy", "focal", "dice", "cross_entropy+dice")
LOSS_NORMALIZATIONS = ("mean", "sum")


def check_loss(loss: str, loss_normalization: str) -> None:
    """Raise ValueError if a loss is unknown or its terms cannot be added.

    Args:
        loss: one of `LOSSES`.
        loss_normalization: one of `LOSS_NORMALIZATIONS`.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss = {loss!r} is not one of {', '.join(LOSSES)}")
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(
            f"loss_normalization = {loss_normalization!r} is not one of "
            + ", ".join(LOSS_NORMALIZATIONS)
        )
    if loss == "cross_entropy+dice" and loss_normalization == "sum":
        raise ValueError(
            'loss_normalization = "sum" does not suit loss = "cross_entropy+dice": a '
            "cross-entropy summed over the pixels of an image is some thousand times "
            'the Dice loss, which is at most 1. Use "mean"'
        )


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
            nor the gradient, even if their logits are not finite.
        class_weights: as in `pixel_weights`.

    Returns:
        The weighted sum of the losses in nats and the sum of the weights, both [] in
        float32.

    Reference: Long et al., arXiv:1411.4038, section 3.4.
    """
    weights = pixel_weights(label, class_weights=class_weights)
    return (_nats(logits, label) * weights).sum(), weights.sum()


def focal(
    logits: jax.Array,
    label: jax.Array,
    *,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """Sum the focal loss and the weights of the labelled pixels.

    The loss of a pixel is ``-w (1 - p)^2 log(p)`` with the softmax probability p and
    the weight w of its class: gamma is 2, and the class weights are the paper's alpha.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or `VOID`; void pixels change neither the value
            nor the gradient, even if their logits are not finite.
        class_weights: as in `pixel_weights`.

    Returns:
        The sum of the losses in nats and the sum of the weights, both [] in float32.

    Reference: Lin et al., arXiv:1708.02002, equation 5.
    """
    weights, nats = (
        pixel_weights(label, class_weights=class_weights),
        _nats(logits, label),
    )
    # 1 - p without cancellation where p is nearly 1.
    loss = nats * jnp.expm1(-nats) ** 2
    return (loss * weights).sum(), weights.sum()


def dice_sums(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Sum what the soft Dice coefficients of a batch are made from.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or `VOID`; void pixels change neither the value
            nor the gradient, even if their logits are not finite.

    Returns:
        [3, C] float32, for each class the sums over the labelled pixels of: the softmax
        probability where the label is this class; the softmax probability; 1 where the
        label is this class.
    """
    labelled = (label != VOID)[..., None]
    is_class = label[..., None] == jnp.arange(logits.shape[-1])
    probability = jax.nn.softmax(_without_void(logits, label))
    pixels = tuple(range(label.ndim))
    return jnp.stack(
        [
            jnp.where(is_class, probability, 0).sum(pixels),
            jnp.where(labelled, probability, 0).sum(pixels),
            is_class.astype(jnp.float32).sum(pixels),
        ]
    )


def dice(sums: jax.Array, *, class_weights: Sequence[float] = ()) -> jax.Array:
    """Return the soft Dice loss, the mean of 1 - D over the classes that occur.

    D is ``2 sum(p g) / (sum(p) + sum(g))`` over the pixels of the whole batch, with the
    softmax probability p of the class, and g = 1 where the label is the class, else 0.
    There is no smoothing term: sum(g) is at least 1 for a class that occurs.

    Args:
        sums: [3, C], what `dice_sums` returns, summed over the whole batch.
        class_weights: the weight of each of the C classes in the mean; () for 1 each.

    Returns:
        [] float32 in [0, 1]; 0 if no class with a weight above 0 occurs.

    Reference: Milletari et al., arXiv:1606.04797, section 3, with squares in the
        denominator; Sudre et al., arXiv:1707.03237, section 2.1, without, as here.
    """
    both, predicted, true = sums
    occurs = true > 0
    coefficient = 2 * both / jnp.where(occurs, predicted + true, 1)
    weights = jnp.asarray(class_weights or (1,) * len(true), jnp.float32)
    weights = jnp.where(occurs, weights, 0)
    total = weights.sum()
    return (weights * (1 - coefficient)).sum() / jnp.where(total == 0, 1, total)


def loss_sums(
    logits: jax.Array,
    label: jax.Array,
    *,
    loss: str,
    class_weights: Sequence[float] = (),
) -> dict[str, jax.Array]:
    """Sum over pixels all that a loss is computed from.

    Args:
        logits: [..., C] float32.
        label: [...] int32 in [0, C), or `VOID`.
        loss: one of `LOSSES`.
        class_weights: as in `pixel_weights`.

    Returns:
        "pixels": [], the sum of the cross-entropy or the focal loss; "dice": [3, C], as
        in `dice_sums`. Each is left out if the loss does not need it.
    """
    sums = {}
    if loss in ("cross_entropy", "cross_entropy+dice"):
        sums["pixels"], _ = cross_entropy(logits, label, class_weights=class_weights)
    if loss == "focal":
        sums["pixels"], _ = focal(logits, label, class_weights=class_weights)
    if loss in ("dice", "cross_entropy+dice"):
        sums["dice"] = dice_sums(logits, label)
    return sums


def loss_value(
    sums: dict[str, jax.Array],
    count: jax.Array,
    *,
    class_weights: Sequence[float] = (),
) -> jax.Array:
    """Return the loss to minimise.

    Args:
        sums: what `loss_sums` returns.
        count: [], the divisor of "pixels", for the whole batch.
        class_weights: the weights of the classes in "dice", as in `dice`.
    """
    terms = []
    if "pixels" in sums:
        terms.append(sums["pixels"] / jnp.where(count == 0, 1, count))
    if "dice" in sums:
        terms.append(dice(sums["dice"], class_weights=class_weights))
    return functools.reduce(operator.add, terms)


def _nats(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the cross-entropy of each pixel; void pixels count as class 0."""
    return optax.softmax_cross_entropy_with_integer_labels(
        _without_void(logits, label), jnp.where(label == VOID, 0, label)
    )


def _without_void(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Return the logits, 0 in void pixels, whose NaNs would survive in the gradient."""
    return jnp.where((label != VOID)[..., None], logits, 0)
