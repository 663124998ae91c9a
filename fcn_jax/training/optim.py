"""Optimisers and learning-rate schedules."""

from typing import Any

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant")


def make_schedule(
    name: str, *, learning_rate: float, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate at each step.

    Args:
        name: "poly" falls to 0 as (1 - t/T)^0.9, "cosine" as (1 + cos(pi t/T)) / 2,
            "constant" stays.
        learning_rate: the highest.
        steps: of the whole run, warm-up included.
        warmup_steps: first steps, over which the rate rises linearly from 0.
    Returns:
        ``step -> rate``.
    Raises:
        ValueError: if the name is not known, or the warm-up outlasts the run.
    """
    if warmup_steps and warmup_steps >= steps:
        raise ValueError(
            f"optim.warmup_steps = {warmup_steps} must be less than the {steps} steps "
            "of the run"
        )
    decay_steps = steps - warmup_steps
    if name == "poly":
        decay = optax.polynomial_schedule(learning_rate, 0.0, 0.9, decay_steps)
    elif name == "cosine":
        decay = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif name == "constant":
        decay = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(
            f"optim.schedule = {name!r} is not one of {', '.join(SCHEDULES)}"
        )
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    bias_rate: float = 1.0,
) -> optax.GradientTransformation:
    """SGD with momentum, or AdamW; kernels alone are decayed.

    Args:
        name: "sgd": Caffe's, the decay joins the gradient before the momentum. "adamw":
            the decay is apart from the adaptive step.
        schedule: ``step -> rate``.
        momentum: of SGD.
        weight_decay: factor of a kernel that is added to its gradient ("sgd") or to its
            step ("adamw").
        bias_rate: the rate of biases, in multiples of that of kernels.
    Returns:
        The optax transformation.
    Raises:
        ValueError: if the name is not known.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_is("kernel"))
    if name == "sgd":
        direction = [decay, optax.trace(momentum)]
    elif name == "adamw":
        direction = [optax.scale_by_adam(), decay]
    else:
        raise ValueError(f"optim.name = {name!r} is not one of {', '.join(OPTIMIZERS)}")
    return optax.chain(
        *direction,
        optax.masked(optax.scale(bias_rate), _is("bias")),
        optax.scale_by_learning_rate(schedule),
    )


def _is(leaf: str) -> Any:
    """A mask that is true on the parameters of this name."""
    return lambda params: jax.tree.map_with_path(
        lambda path, _: path[-1].key == leaf, params
    )
