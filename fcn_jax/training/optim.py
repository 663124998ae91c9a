"""Optimisers and learning-rate schedules."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from fcn_jax.models.vgg import is_number

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
    rates: Sequence[float] = (1.0, 1.0),
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Make SGD with momentum or AdamW, with weight decay of the kernels only.

    Args:
        name: "sgd", as in Caffe, adds the decay to the gradient before the momentum;
            "adamw" adds it to the adaptive step.
        schedule: ``step -> learning rate``.
        momentum: momentum of SGD.
        weight_decay: factor of the kernels in the decay.
        bias_rate: learning rate of the biases as a multiple of that of the kernels.
        rates: learning rates of the body and of the head as multiples of the schedule.
            Each scales the whole update of its part, with the weight decay in it.
        clip_norm: gradients whose norm over all parameters is larger are scaled down to
            it, before anything else; 0 for no limit.

    Returns:
        The optimiser. Its state does not depend on ``rates`` or ``clip_norm``. Other
        rates than 1 are for parameters ``{"body": layers, "head": layers}``.

    Raises:
        ValueError: if ``name`` is unknown, or ``rates`` or ``clip_norm`` is out of
            range.
    """
    _check_rates_and_clip_norm(rates, clip_norm)
    decay = optax.add_decayed_weights(weight_decay, mask=_is("kernel"))
    if name == "sgd":
        direction = [decay, optax.trace(momentum)]
    elif name == "adamw":
        direction = [optax.scale_by_adam(), decay]
    else:
        optimizers = ", ".join(OPTIMIZERS)
        raise ValueError(f"name = {name!r} is not one of the optimizers {optimizers}")
    tx = optax.chain(
        *direction,
        optax.masked(optax.scale(bias_rate), _is("bias")),
        optax.scale_by_learning_rate(schedule),
    )
    return _clipped_and_scaled(tx, tuple(rates), clip_norm)


def _check_rates_and_clip_norm(rates: Sequence[float], clip_norm: float) -> None:
    """Raise ValueError as `make_optimizer` does."""
    valid = isinstance(rates, Sequence) and len(rates) == 2
    if not valid or not all(is_number(rate) and rate > 0 for rate in rates):
        raise ValueError(
            f"rates = {rates!r} must be two finite numbers above 0, for the body and "
            "the head. To leave layers untrained, name them in freeze"
        )
    if not is_number(clip_norm) or clip_norm < 0:
        raise ValueError(
            f"clip_norm = {clip_norm!r} must be a finite number above 0, or 0 for no "
            "limit"
        )


def _clipped_and_scaled(
    tx: optax.GradientTransformation, rates: tuple[float, ...], clip_norm: float
) -> optax.GradientTransformation:
    """Return an optimiser that clips before ``tx`` and scales its updates afterwards.

    Its state is that of ``tx``, so a run can be resumed with other values.
    """
    if not clip_norm and rates == (1.0, 1.0):
        return tx
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    of_part = dict(zip(("body", "head"), rates, strict=True))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads, _ = clip.update(grads, optax.EmptyState())
        updates, state = tx.update(grads, state, params)
        if rates != (1.0, 1.0):
            updates = {
                part: optax.tree.scale(of_part[part], layers)
                for part, layers in updates.items()
            }
        return updates, state

    return optax.GradientTransformation(tx.init, update)


def _is(leaf: str) -> Any:
    """Return a mask for optax that is true for the parameters of this name."""
    return lambda params: jax.tree.map_with_path(
        lambda path, _: path[-1].key == leaf, params
    )
