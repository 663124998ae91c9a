"""How a run begins: from weights, from nothing, or where it was left off."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fcn_jax.data.balance import BALANCES
from fcn_jax.data.survey import check_source
from fcn_jax.models.fcn import FCN
from fcn_jax.processes import is_main
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    load_config,
    make_model,
    refuse_hopeless,
    save_config,
)
from fcn_jax.training.steps import TrainState, init_state
from fcn_jax.weights.load import read
from fcn_jax.weights.transplant import transplant

_log = logging.getLogger("fcn_jax")


def start_or_resume(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    tx: optax.GradientTransformation,
    source: Any,
) -> tuple[Config, TrainState, bool]:
    """The state that a run begins with.

    Args:
        config: of the run.
        workdir: of the run; receives the config.
        checkpoints: in it.
        tx: the optimiser.
        source: the training images, for `Config.class_balance`.
    Returns:
        config: with what the weights and the data tell: mean and class weights.
        state: the first, or that of the latest checkpoint.
        trained: whether the run begins with a network that was trained already.
    Raises:
        ValueError: if the weights do not suit the network, or the directory holds
            another run.
    """
    if checkpoints.latest_step() is not None:
        config = _as_before(config, workdir / CONFIG_FILE)
        fresh = functools.partial(_init_params, make_model(config), frozenset())
        params = jax.eval_shape(fresh, key_of(config, "params"))
        state = checkpoints.restore(
            jax.eval_shape(functools.partial(init_state, tx=tx), params)
        )
        _log.info("resuming %s at step %d", workdir, state.step)
        return config, state, False
    config, given = _balanced(config, source), {}
    if config.init_from:
        config, given = _weights(config)
    model = make_model(config)
    known = frozenset((part, layer) for part in given for layer in given[part])
    params = _init_params(model, known, key_of(config, "params"))
    for part, layers in given.items():
        params[part] |= jax.tree.map(jnp.asarray, layers)
    if is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(workdir / CONFIG_FILE, config)
    return config, init_state(params, tx), bool(given.get("head"))


def _balanced(config: Config, source: Any) -> Config:
    """The config with the class weights that its training labels ask for.

    Raises:
        ValueError: for the first example that cannot be read.
    """
    if not config.class_balance or config.class_weights:
        return config
    data = config.data
    survey = check_source(
        source, num_classes=data.num_classes, ignore_label=data.ignore_label
    )
    if survey.problems:
        raise ValueError(survey.problems[0])
    weights = BALANCES[config.class_balance](survey)
    _log.info("class weights: %s", " ".join(f"{weight:.3g}" for weight in weights))
    return dataclasses.replace(config, class_weights=tuple(weights.tolist()))


def _weights(config: Config) -> tuple[Config, dict[str, Any]]:
    """The parameters that the weights of a config give, and the config with its mean.

    Raises:
        ValueError: if they do not suit the network, or no training could come of it.
    """
    weights = read(config.init_from)
    config = _with_mean(config, weights.mean_rgb)
    refuse_hopeless(config, weights.model is None)
    try:
        given, notes = transplant(weights, make_model(config))
    except ValueError as error:
        raise ValueError(f"config.init_from = {config.init_from}: {error}") from error
    for note in (f"({weights.source})", *notes):
        _log.info("starting from %s: %s", config.init_from, note)
    return config, given


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(
    model: FCN, known: frozenset[tuple[str, str]], key: jax.Array
) -> dict[str, Any]:
    """Random parameters, without the layers that are known."""
    params = model.init(key, jnp.zeros([1, 1, 1, 3]))["params"]
    return {
        part: {name: p for name, p in layers.items() if (part, name) not in known}
        for part, layers in params.items()
    }


def _with_mean(config: Config, mean_rgb: tuple[float, ...]) -> Config:
    mean_rgb = tuple(mean_rgb)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, mean_rgb=mean_rgb)
    )


def _as_before(config: Config, path: Path) -> Config:
    """The config, if it can go on with the run that ``path`` tells of."""
    before = load_config(path)
    config = _with_mean(config, before.model.mean_rgb)
    if not config.class_weights:
        config = dataclasses.replace(config, class_weights=before.class_weights)
    for name in ("model", "data", "optim"):
        old, new = getattr(before, name), getattr(config, name)
        for field in dataclasses.fields(old):
            was, now = getattr(old, field.name), getattr(new, field.name)
            if was == now:
                continue
            change = f"config.{name}.{field.name} was {was!r} and is {now!r}"
            # What the shapes and the meaning of the saved state depend on.
            if name == "model" or field.name in ("num_classes", "ignore_label", "name"):
                raise ValueError(
                    f"{path.parent} holds another run: {change}. Give the new one a "
                    "--workdir of its own"
                )
            _log.warning("resuming with another setting: %s", change)
    return config


def key_of(config: Config, purpose: str) -> jax.Array:
    """The key of the initial "params", or that of all "steps"."""
    number = {"params": 0, "steps": 1}[purpose]
    return jax.random.fold_in(jax.random.key(config.seed), number)
