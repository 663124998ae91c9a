"""The start of a run: from weights, from random parameters, or from a checkpoint."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import optax

from fcn_jax.data.survey import class_weights, survey_source
from fcn_jax.network import Network
from fcn_jax.processes import is_main
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    check_trainable,
    make_model,
    prefixed,
    save_config,
)
from fcn_jax.training.steps import TrainState, init_state
from fcn_jax.weights.load import read
from fcn_jax.weights.transplant import init_params, transplant

_log = logging.getLogger("fcn_jax")


def start_or_resume(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    tx: optax.GradientTransformation,
    source: Any,
) -> tuple[Config, TrainState, bool]:
    """Return the state that a run begins with.

    Args:
        config: the config of the run.
        workdir: directory of the run, which receives the config.
        checkpoints: the checkpoints in it.
        tx: the optimiser.
        source: the training images, for `Config.class_balance`.

    Returns:
        config: the config with the mean of the weights and the class weights.
        state: the first state, or that of the latest checkpoint.
        trained: whether a new run begins with a trained network.

    Raises:
        ValueError: if the weights do not suit the network.
    """
    first_state = functools.partial(init_state, tx=tx, freeze=config.optim.freeze)
    if checkpoints.latest_step() is not None:
        config = _balanced(config, source)
        fresh = functools.partial(init_params, make_model(config), given={})
        params = jax.eval_shape(fresh, random_key(config, "params"))
        state = checkpoints.restore(jax.eval_shape(first_state, params))
        _log.info("resuming %s at step %d", workdir, state.step)
        return config, state, False
    config, given = _balanced(config, source), {}
    if config.init_from:
        config, given = _read_weights(config)
    params = init_params(make_model(config), random_key(config, "params"), given)
    if is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(workdir / CONFIG_FILE, config)
    return config, first_state(params), bool(given.get("head"))


def random_key(config: Config, purpose: str) -> jax.Array:
    """Return the random key of the initial "params", or that of all "steps"."""
    number = {"params": 0, "steps": 1}[purpose]
    return jax.random.fold_in(jax.random.key(config.seed), number)


def _balanced(config: Config, source: Any) -> Config:
    """Return the config with the class weights computed from the training labels."""
    if not config.class_balance or config.class_weights:
        return config
    survey = survey_source(source, num_classes=config.data.num_classes)
    if survey.problems:
        raise ValueError(survey.problems[0])
    weights = class_weights(survey, config.class_balance)
    _log.info("class weights: %s", " ".join(f"{weight:.3g}" for weight in weights))
    return dataclasses.replace(config, class_weights=tuple(weights.tolist()))


def _read_weights(config: Config) -> tuple[Config, dict[str, Any]]:
    """Return the config with the mean of its weights, and their parameters."""
    source = read(config.init_from)
    is_fcn = isinstance(source, Network)
    config = _with_mean(config, source.model.mean_rgb if is_fcn else source.mean_rgb)
    check_trainable(config, from_vgg16=not is_fcn)
    with prefixed(f"config.init_from = {config.init_from}: "):
        given, notes = transplant(source, make_model(config))
    kind = source.model.variant if is_fcn else source.source
    for note in (f"({kind})", *notes):
        _log.info("starting from %s: %s", config.init_from, note)
    return config, given


def _with_mean(config: Config, mean_rgb: tuple[float, ...]) -> Config:
    model = dataclasses.replace(config.model, mean_rgb=tuple(mean_rgb))
    return dataclasses.replace(config, model=model)
