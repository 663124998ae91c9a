"""The train step, a pure function for one device or many."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fcn_jax.data.labels import VOID
from fcn_jax.models.fcn import FCN
from fcn_jax.training.losses import cross_entropy, pixel_weights

LOSS_NORMALIZATIONS = ("mean", "sum")


class TrainState(NamedTuple):
    """Hold everything that a step changes.

    Attributes:
        step: [] int32, number of steps taken.
        params: parameters of the model.
        opt_state: state of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


TrainStep = Callable[
    [TrainState, dict[str, jax.Array], jax.Array],
    tuple[TrainState, dict[str, jax.Array]],
]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params))


def make_train_step(
    model: FCN,
    tx: optax.GradientTransformation,
    *,
    loss_normalization: str = "mean",
    class_weights: Sequence[float] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Make a pure step to wrap with `jax.jit`, or with `jax.pmap` and ``axis_name``.

    Args:
        model: the network.
        tx: the optimiser.
        loss_normalization: "mean" divides the summed loss by the weights of all
            labelled pixels of the batch (their number, if all weigh 1); "sum" divides
            it by the number of images, as the original recipe does.
        class_weights: the weight of each class in the loss; () for 1 each.
        accumulate: micro-batches per step (gradient accumulation). The step equals that
            of the whole batch except for the dropout masks.
        axis_name: the pmap axis that the batch is split over, if any.

    Returns:
        ``(state, batch, key) -> (state, metrics)``. ``batch``: "image" [B, H, W, 3]
        uint8 or float, RGB in [0, 255]; "label" [B, H, W] int32; and "size" [B, 2]
        int32 if images are padded, with void around them. ``key``: the same in every
        step, because the step folds its number in. ``metrics``: "loss", the summed loss
        of the labelled pixels in nats; "pixels", their number; "correct", how many of
        them are right; "grad_norm", the norm of the gradient that the optimiser gets.

    Raises:
        ValueError: if ``loss_normalization`` is unknown.
    """
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(
            f"loss_normalization = {loss_normalization!r} is not one of "
            + ", ".join(LOSS_NORMALIZATIONS)
        )

    def sum_over_devices(x: Any) -> Any:
        return lax.psum(x, axis_name) if axis_name else x

    def loss_fn(
        params: Any, batch: dict[str, jax.Array], count: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        label, inputs = batch["label"], (batch["image"], batch.get("size"))
        dropout = {"dropout": key}
        logits = model.apply({"params": params}, *inputs, train=True, rngs=dropout)
        loss, _ = cross_entropy(logits, label, class_weights=class_weights)
        correct = (logits.argmax(-1) == label).sum()
        return loss / jnp.where(count == 0, 1, count), (loss, correct)

    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate > 1:
        gradient = _accumulated(gradient, accumulate)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        label = batch["label"]
        key = jax.random.fold_in(key, state.step)
        if axis_name:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        # Each device and each micro-batch divides by the global count, hence it comes
        # first. A mean of means would weigh a share with many void pixels too much.
        pixels = sum_over_devices((label != VOID).sum())
        count = sum_over_devices(label.shape[0])
        if loss_normalization == "mean":
            weights = pixel_weights(label, class_weights=class_weights)
            count = sum_over_devices(weights.sum())
        found = gradient(state.params, batch, count, key)
        grads, (loss, correct) = sum_over_devices(found)
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


def _accumulated(gradient: Callable, accumulate: int) -> Callable:
    """Return a function that sums ``gradient`` over the micro-batches of a batch."""

    def split(x: jax.Array) -> jax.Array:
        # A micro-batch takes every accumulate-th image, and so an equal share of each
        # device that the batch is split over.
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def run(params: Any, batch: dict[str, jax.Array], count: jax.Array, key: jax.Array):
        def add(sums: Any, item: tuple[jax.Array, dict[str, jax.Array]]):
            i, micro_batch = item
            found = gradient(params, micro_batch, count, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, sums, found), None

        micro_batches = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], micro_batches)
        shapes = jax.eval_shape(gradient, params, first, count, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches))
        return sums

    return run
