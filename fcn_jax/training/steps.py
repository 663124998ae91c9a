"""The train step: one pure function for one device or many."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fcn_jax.models.fcn import FCN
from fcn_jax.training.losses import cross_entropy, pixel_weights

LOSS_NORMALIZATIONS = ("mean", "sum")


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        step: int32, steps taken.
        params: of the model.
        opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


TrainStep = Callable[
    [TrainState, dict[str, jax.Array], jax.Array],
    tuple[TrainState, dict[str, jax.Array]],
]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step."""
    return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params))


def make_train_step(
    model: FCN,
    tx: optax.GradientTransformation,
    *,
    ignore_label: int = 255,
    loss_normalization: str = "mean",
    class_weights: Sequence[float] = (),
    axis_name: str | None = None,
) -> TrainStep:
    """A pure step to be wrapped by `jax.jit`, or by `jax.pmap` with ``axis_name``.

    Args:
        model: the network.
        tx: the optimiser.
        ignore_label: label of void pixels.
        loss_normalization: "mean" divides the summed loss by the number of labelled
            pixels of the whole batch, or the sum of their weights; "sum" by its number
            of images, as the original recipe does.
        class_weights: what a pixel of each class counts; () for 1 each.
        axis_name: the pmap axis that the batch is split over, if any.
    Returns:
        ``(state, batch, key) -> (state, metrics)``. ``batch``: "image" [B, H, W, 3]
        uint8 or float, RGB in [0, 255], "label" [B, H, W] int32, and "size" [B, 2]
        int32 where images are smaller and void is around them. ``key``: the same
        for every step, which folds its number in. ``metrics``: sums over the whole
        batch, "loss" over labelled pixels in nats, "correct" pixels, "pixels"
        labelled, and "grad_norm" of the gradient the optimiser saw.
    Raises:
        ValueError: if ``loss_normalization`` is not known.
    """
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(
            f"loss_normalization = {loss_normalization!r} is not one of "
            + ", ".join(LOSS_NORMALIZATIONS)
        )

    def total(x: Any) -> Any:
        return lax.psum(x, axis_name) if axis_name else x

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        image, label = batch["image"], batch["label"]
        key = jax.random.fold_in(key, state.step)
        if axis_name:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        # Known before the loss, so that each device divides its share by the number
        # of all devices; a mean of their means weighs void-rich shares too much.
        pixels = total((label != ignore_label).sum())
        images = total(image.shape[0])
        count = images
        if loss_normalization == "mean":
            weights = pixel_weights(
                label, ignore_label=ignore_label, class_weights=class_weights
            )
            count = total(weights.sum())

        def loss_fn(params: Any):
            logits = model.apply(
                {"params": params},
                image,
                batch.get("size"),
                train=True,
                rngs={"dropout": key},
            )
            loss, _ = cross_entropy(
                logits,
                label,
                ignore_label=ignore_label,
                class_weights=class_weights,
            )
            correct = (logits.argmax(-1) == label).sum()
            return loss / jnp.where(count == 0, 1, count), (loss, correct)

        (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grads, (loss, correct) = total((grads, sums))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "correct": correct,
            "pixels": pixels,
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
