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
    accumulate: int = 1,
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
        accumulate: parts, equal in images, that the batch goes through the network in
            one by one, in the memory of one; the step is that of the whole batch but
            for its dropout masks.
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

    def loss_fn(
        params: Any, batch: dict[str, jax.Array], count: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        label = batch["label"]
        logits = model.apply(
            {"params": params},
            batch["image"],
            batch.get("size"),
            train=True,
            rngs={"dropout": key},
        )
        loss, _ = cross_entropy(
            logits, label, ignore_label=ignore_label, class_weights=class_weights
        )
        correct = (logits.argmax(-1) == label).sum()
        return loss / jnp.where(count == 0, 1, count), (loss, correct)

    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate > 1:
        gradient = _in_parts(gradient, accumulate)

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        label = batch["label"]
        key = jax.random.fold_in(key, state.step)
        if axis_name:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        # Known before the loss, so that each device, and each part, divides its share
        # by the number of all; a mean of means weighs void-rich shares too much.
        pixels = total((label != ignore_label).sum())
        count = total(label.shape[0])
        if loss_normalization == "mean":
            weights = pixel_weights(
                label, ignore_label=ignore_label, class_weights=class_weights
            )
            count = total(weights.sum())
        grads, sums = gradient(state.params, batch, count, key)
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


def _in_parts(gradient: Callable, parts: int) -> Callable:
    """The same sums as ``gradient`` of a batch gives, by parts of the batch in turn."""

    def split(x: jax.Array) -> jax.Array:
        # A part takes one image of so many neighbours: of a batch that is split over
        # devices, it has an equal share of each.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def run(params: Any, batch: dict[str, jax.Array], count: jax.Array, key: jax.Array):
        def add(sums: Any, part: tuple[jax.Array, dict[str, jax.Array]]):
            i, images = part
            found = gradient(params, images, count, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, sums, found), None

        batches = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(gradient, params, first, count, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = lax.scan(add, zeros, (jnp.arange(parts), batches))
        return sums

    return run
