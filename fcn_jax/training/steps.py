"""The train step, a pure function for one device or many."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fcn_jax.data.labels import VOID
from fcn_jax.models.fcn import FCN
from fcn_jax.training.freezing import merge_params, split_params
from fcn_jax.training.losses import (
    check_loss,
    loss_sums,
    loss_value,
    pixel_weights,
)


class TrainState(NamedTuple):
    """Hold everything that a step changes.

    Attributes:
        step: [] int32, number of steps taken.
        params: parameters of the model.
        opt_state: state of the optimiser, for the trainable parameters.
    """

    step: jax.Array
    params: Any
    opt_state: Any


TrainStep = Callable[
    [TrainState, dict[str, jax.Array], jax.Array],
    tuple[TrainState, dict[str, jax.Array]],
]


def init_state(
    params: Any, tx: optax.GradientTransformation, *, freeze: Sequence[str] = ()
) -> TrainState:
    """Return the state before the first step.

    Args:
        params: all parameters of the model.
        tx: the optimiser.
        freeze: as in `make_train_step`.

    Raises:
        ValueError: if ``freeze`` does not suit the parameters (`split_params`).
    """
    trainable, _ = split_params(params, freeze)
    return TrainState(jnp.zeros([], jnp.int32), params, tx.init(trainable))


def make_train_step(
    model: FCN,
    tx: optax.GradientTransformation,
    *,
    loss: str = "cross_entropy",
    loss_normalization: str = "mean",
    class_weights: Sequence[float] = (),
    freeze: Sequence[str] = (),
    accumulate: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Make a pure step to wrap with `jax.jit`, or with `jax.pmap` and ``axis_name``.

    Args:
        model: the network.
        tx: the optimiser.
        loss: "cross_entropy", "focal", "dice", or "cross_entropy+dice", their sum; see
            `fcn_jax.training.losses`.
        loss_normalization: the divisor of the cross-entropy and the focal loss. "mean"
            divides the summed loss by the weights of all labelled pixels of the batch
            (their number, if all weigh 1); "sum" divides it by the number of images, as
            the original recipe does. Dice does not depend on it.
        class_weights: the weight of each class in the loss; () for 1 each.
        freeze: prefixes of the names of layers that stay as they are, as in
            `split_params`. Their gradients are not computed. `init_state` needs the
            same.
        accumulate: micro-batches per step (gradient accumulation). The step equals that
            of the whole batch except for the dropout masks.
        axis_name: the pmap axis that the batch is split over, if any.

    Returns:
        ``(state, batch, key) -> (state, metrics)``. ``batch``: "image" [B, H, W, 3]
        uint8 or float, RGB in [0, 255]; "label" [B, H, W] int32; and "size" [B, 2]
        int32 if images are padded, with void around them. ``key``: the same in every
        step, because the step folds its number in. ``metrics``: "loss" and
        "loss_count", whose sums over steps are divided for the mean loss: with
        "cross_entropy" and "focal" the summed loss of the labelled pixels in nats and
        the number of these pixels, otherwise the loss that is minimised and 1;
        "pixels", the number of labelled pixels; "correct", how many of them are right;
        "grad_norm", the norm of the gradient that the optimiser gets, before it clips.

    Raises:
        ValueError: if ``loss`` or ``loss_normalization`` is unknown, or they do not
            suit each other. The step raises it if ``freeze`` does not suit the
            parameters.
    """
    check_loss(loss, loss_normalization)
    weighted = {"class_weights": class_weights}

    def sum_over_devices(x: Any) -> Any:
        return lax.psum(x, axis_name) if axis_name else x

    def sums_of(params: Any, batch: dict[str, jax.Array], key: jax.Array):
        inputs, dropout = (batch["image"], batch.get("size")), {"dropout": key}
        logits = model.apply({"params": params}, *inputs, train=True, rngs=dropout)
        sums = loss_sums(logits, batch["label"], loss=loss, **weighted)
        return sums, (logits.argmax(-1) == batch["label"]).sum()

    def loss_fn(
        trainable: Any,
        frozen: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        count: jax.Array,
        dice_of_batch: jax.Array | None,
    ):
        sums, correct = sums_of(merge_params(trainable, frozen), batch, key)
        sums_for_value = sums
        if "dice" in sums:
            # Dice is not linear in its sums: its value and derivative are taken at the
            # sums of the whole batch. The gradients of all shares then add up exactly.
            constant = lax.stop_gradient(sums["dice"])
            if dice_of_batch is None:
                dice_of_batch = sum_over_devices(constant)
            share = sums["dice"] - constant  # Zero, with the gradient of this share.
            sums_for_value = sums | {"dice": dice_of_batch + share}
        return loss_value(sums_for_value, count, **weighted), (sums, correct)

    gradient = jax.grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        trainable, frozen = split_params(state.params, freeze)
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
        add_up = functools.partial(
            _sum_over_micro_batches, batch=batch, key=key, accumulate=accumulate
        )
        dice_of_batch = None
        if "dice" in loss and accumulate > 1:
            # Each micro-batch needs the sums of all: a forward pass finds them first.
            found = add_up(lambda *share: sums_of(state.params, *share)[0]["dice"])
            dice_of_batch = sum_over_devices(found)
        rest = count, dice_of_batch
        found = add_up(lambda *share: gradient(trainable, frozen, *share, *rest))
        grads, (sums, correct) = sum_over_devices(found)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params = merge_params(trainable, frozen)
        metrics = {
            **_logged_loss(sums, pixels, count, class_weights),
            "correct": correct,
            "pixels": pixels,
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _logged_loss(
    sums: dict[str, jax.Array],
    pixels: jax.Array,
    count: jax.Array,
    class_weights: Sequence[float],
) -> dict[str, Any]:
    """Return "loss" and "loss_count" from the sums over a whole batch."""
    if "dice" not in sums:
        return {"loss": sums["pixels"], "loss_count": pixels}
    value = loss_value(sums, count, class_weights=class_weights)
    return {"loss": value, "loss_count": jnp.ones([], jnp.int32)}


def _sum_over_micro_batches(
    function: Callable, batch: dict[str, jax.Array], key: jax.Array, accumulate: int
) -> Any:
    """Sum ``function(micro_batch, key)`` over the micro-batches of a batch."""
    if accumulate == 1:
        return function(batch, key)

    def split(x: jax.Array) -> jax.Array:
        # A micro-batch takes every accumulate-th image, and so an equal share of each
        # device that the batch is split over.
        return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

    def add(sums: Any, item: tuple[jax.Array, dict[str, jax.Array]]):
        i, micro_batch = item
        found = function(micro_batch, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, sums, found), None

    micro_batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(function, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches))
    return sums
