"""Optimisers and learning-rate schedules."""

from typing import Any

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant")


def make_schedule(
    name: str, *, learning_rate: float, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Return the function from a step to its learning rate.

    Args:
        name: "poly" decays to 0 as (1 - t/T)^0.9, "cosine" as (1 + cos(pi t/T)) / 2;
            "constant" does not decay.
        learning_rate: the highest rate.
        steps: steps of the whole run, warm-up included.
        warmup_steps: first steps, over which the rate rises linearly from 0.

    Raises:
        ValueError: if ``name`` is unknown or the warm-up takes the whole run.
    """
    if warmup_steps and warmup_steps >= steps:
        raise ValueError(
            f"warmup_steps = {warmup_steps} must be less than the {steps} steps of the "
            "run"
        )
    decay_steps = steps - warmup_steps
    if name == "poly":
        decay = optax.polynomial_schedule(learning_rate, 0.0, 0.9, decay_steps)
    elif name == "cosine":
        decay = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif name == "constant":
        decay = optax.constant_schedule(learning_rate)
    else:
        schedules = ", ".join(SCHEDULES)
        raise ValueError(f"name = {name!r} is not one of the schedules {schedules}")
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    bias_rate: float = 1.0,
) -> optax.GradientTransformation:
    """Make SGD with momentum or AdamW, with weight decay of the kernels only.

    Args:
        name: "sgd", as in Caffe, adds the decay to the gradient before the momentum;
            "adamw" adds it to the adaptive step.
        schedule: ``step -> learning rate``.
        momentum: momentum of SGD.
        weight_decay: factor of the kernels in the decay.
        bias_rate: learning rate of the biases as a multiple of that of the kernels.

    Raises:
        ValueError: if ``name`` is unknown.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_is("kernel"))
    if name == "sgd":
        direction = [decay, optax.trace(momentum)]
    elif name == "adamw":
        direction = [optax.scale_by_adam(), decay]
    else:
        optimizers = ", ".join(OPTIMIZERS)
        raise ValueError(f"name = {name!r} is not one of the optimizers {optimizers}")
    return optax.chain(
        *direction,
        optax.masked(optax.scale(bias_rate), _is("bias")),
        optax.scale_by_learning_rate(schedule),
    )


def _is(leaf: str) -> Any:
    """Return a mask for optax that is true for the parameters of this name."""
    return lambda params: jax.tree.map_with_path(
        lambda path, _: path[-1].key == leaf, params
    )
