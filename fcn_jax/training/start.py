"""The start of a run: from weights, from random parameters, or from a checkpoint."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fcn_jax.data.statistics import Moments
from fcn_jax.data.survey import Survey, class_weights, survey_source
from fcn_jax.models.vgg import PIXEL_SIZE, VGG_MEAN_RGB
from fcn_jax.network import Network, VGG16Weights
from fcn_jax.processes import is_main
from fcn_jax.training.checkpoint import Checkpoint
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    check_trainable,
    fields,
    make_model,
    prefixed,
    save_config,
    with_normalization,
)
from fcn_jax.training.steps import TrainState, init_state
from fcn_jax.weights.load import read
from fcn_jax.weights.transplant import (
    check_normalization,
    init_params,
    normalization,
    transplant,
)

_log = logging.getLogger("fcn_jax")


def start_or_resume(
    config: Config,
    workdir: Path,
    saved: Checkpoint | None,
    tx: optax.GradientTransformation,
    source: Any,
) -> tuple[Config, TrainState, bool]:
    """Return the state that a run begins with.

    Args:
        config: the config of the run.
        workdir: directory of the run, which receives the config.
        saved: the checkpoint to go on from, or None for a new run.
        tx: the optimiser.
        source: the training images, for `Config.class_balance` and for the mean and
            scale of channels after RGB.

    Returns:
        config: the config with the mean and scale of each channel and the class
            weights.
        state: the first state, or that of the checkpoint.
        trained: whether a new run begins with a trained network.

    Raises:
        ValueError: if the weights do not suit the network.
    """
    first_state = functools.partial(init_state, tx=tx, freeze=config.optim.freeze)
    survey = functools.cache(functools.partial(_survey, config, source))
    if saved is not None:
        config = _balanced(config, survey)
        fresh = functools.partial(init_params, make_model(config), given={})
        params = jax.eval_shape(fresh, random_key(config, "params"))
        state = saved.state(jax.eval_shape(first_state, params))
        _log.info("resuming %s at step %d", workdir, saved.step)
        return config, state, False
    weights = read(config.init_from) if config.init_from else None
    # The weights are checked before the training images are read.
    given = _transplant(config, weights) if weights else {}
    config = _balanced(_normalized(config, weights, survey), survey)
    params = init_params(make_model(config), random_key(config, "params"), given)
    if is_main():
        save_config(workdir / CONFIG_FILE, config)
    return config, first_state(params), bool(given.get("head"))


def random_key(config: Config, purpose: str) -> jax.Array:
    """Return the random key of the initial "params", or that of all "steps"."""
    number = {"params": 0, "steps": 1}[purpose]
    return jax.random.fold_in(jax.random.key(config.seed), number)


def _survey(config: Config, source: Any) -> Survey:
    """Read and count the training images; raise ValueError for the first bad one."""
    classes, channels = config.data.num_classes, config.model.in_channels
    survey = survey_source(
        source, num_classes=classes, in_channels=channels, progress=is_main()
    )
    if survey.problems:
        raise ValueError(survey.problems[0])
    return survey


def _balanced(config: Config, survey: Callable[[], Survey]) -> Config:
    """Return the config with the class weights computed from the training labels."""
    if not config.class_balance or config.class_weights:
        return config
    weights = class_weights(survey(), config.class_balance)
    _log.info("class weights: %s", " ".join(f"{weight:.3g}" for weight in weights))
    return dataclasses.replace(config, class_weights=tuple(weights.tolist()))


def _transplant(config: Config, weights: Network | VGG16Weights) -> dict[str, Any]:
    """Return the parameters that a run takes over from the weights of init_from."""
    is_fcn = isinstance(weights, Network)
    check_trainable(config, from_vgg16=not is_fcn)
    with prefixed("config.model."):
        check_normalization(weights, **fields(config.model, "mean", "scale"))
    model = make_model(with_normalization(config, *normalization(weights)))
    with prefixed(f"config.init_from = {config.init_from}: "):
        given, notes = transplant(weights, model, extra_init=config.model.extra_init)
    kind = weights.model.variant if is_fcn else weights.source
    for note in (f"({kind})", *notes):
        _log.info("starting from %s: %s", config.init_from, note)
    return given


def _normalized(
    config: Config,
    weights: Network | VGG16Weights | None,
    survey: Callable[[], Survey],
) -> Config:
    """Return the config with the mean and the scale of each channel.

    They are those of the config, of the weights and, for channels that both lack, of
    the training images.
    """
    mean, scale = normalization(weights) if weights else (VGG_MEAN_RGB, (1.0, 1.0, 1.0))
    model, known = config.model, len(mean)
    if known < model.in_channels and not (model.mean and model.scale):
        further = normalization_of(survey().channels, known)
        mean, scale = mean + further[0], scale + further[1]
        config = with_normalization(config, mean, scale)
        _log.info(
            'mean and scale of the training images: --config.model.mean="%s" '
            '--config.model.scale="%s"',
            config.model.mean,
            config.model.scale,
        )
    return with_normalization(config, mean, () if set(scale) == {1.0} else scale)


def normalization_of(
    channels: Moments, known: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the scale that give channels the size of RGB less its mean.

    A constant channel is zero less its mean, and gets scale 1. The numbers are those of
    float32, which the network computes with, and short to read.

    Args:
        channels: the moments of all channels.
        known: how many of the first channels are left out.
    """
    std = channels.std[known:]
    scale = PIXEL_SIZE / np.where(std > 0, std, PIXEL_SIZE)
    mean, scale = (map(str, np.float32(v)) for v in (channels.mean[known:], scale))
    return tuple(map(float, mean)), tuple(map(float, scale))
