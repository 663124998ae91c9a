"""The wiring of a run: data, network, steps, evaluation, checkpoints, log."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from fcn_jax import visualize
from fcn_jax.data import balance
from fcn_jax.data.check import check_source
from fcn_jax.data.loader import prefetch_to_device, train_batches
from fcn_jax.data.transforms import augment
from fcn_jax.evaluation.report import judge, report, write_report
from fcn_jax.models.fcn import FCN
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    check,
    load_config,
    make_model,
    make_source,
    refuse_hopeless,
    save_config,
)
from fcn_jax.training.log import Log, Meter, read_log
from fcn_jax.training.optim import make_optimizer, make_schedule
from fcn_jax.training.steps import (
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
)
from fcn_jax.weights.store import RUN_FILE, read, save
from fcn_jax.weights.transplant import transplant

_log = logging.getLogger("fcn_jax")


def train(config: Config, workdir: str | Path) -> dict[str, Any]:
    """Trains, or resumes what an earlier run in the same directory left off.

    Args:
        config: of the run.
        workdir: receives ``config.json``, ``checkpoints/``, ``log.jsonl``,
            ``tensorboard/`` and ``curves.png``, and of the best network so far by mean
            IU ``model.safetensors``, ``metrics.json`` and ``results.png``.
    Returns:
        The content of ``metrics.json``: the figures of the best network.
    Raises:
        ValueError: if the config, the data or the weights cannot be used.
        FloatingPointError: if the loss or the gradient is no longer finite.
        KeyboardInterrupt: on SIGINT or SIGTERM, once the step at hand is saved.
    """
    check(config)
    workdir = Path(workdir)
    train_source = make_source(config, config.data.train_split)
    eval_source = make_source(config, config.data.eval_split)
    epoch = math.ceil(len(train_source) / config.batch_size)
    steps = config.steps or max(1, round(config.epochs * epoch))
    eval_every = config.eval_every or epoch
    schedule, tx = _optimizer(config, steps)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        config, state, trained = _start_or_resume(
            config, workdir, checkpoints, tx, train_source
        )
        start, key = int(state.step), _key(config, "steps")
        model = make_model(config)
        train_step = _train_step(config, model, tx)
        batches = _batches(config, train_source, start)
        stack.callback(batches.close)
        log = Log(workdir, start_step=start)
        stack.callback(log.close)
        stop = stack.enter_context(_stop_signal())
        if trained:  # A network to be improved: here is what it was worth.
            _judge(config, workdir, model, state, eval_source, log)
        bar = tqdm(initial=start, total=steps, unit="step", dynamic_ncols=True)
        meter = Meter(
            log,
            stack.enter_context(bar),
            schedule=schedule,
            batch_size=config.batch_size,
            every=config.log_every,
        )
        ahead = prefetch_to_device(batches)
        for step, batch in enumerate(itertools.islice(ahead, steps - start), start + 1):
            state, metrics = train_step(state, batch, key)
            meter.add(step, metrics)
            due = step % eval_every == 0 or step == steps
            if not (due or stop):
                continue
            meter.drain()
            _check_finite(state, step)
            scores = None
            if due:
                scores = _judge(config, workdir, model, state, eval_source, log)
            checkpoints.save(state, scores)
            if not due:
                raise KeyboardInterrupt(
                    f"stopped and saved at step {step}; the same command goes on"
                )
            meter.restart_clock()
    visualize.learning_curves(workdir / "curves.png", read_log(log.path))
    return json.loads((workdir / "metrics.json").read_text())


def _optimizer(
    config: Config, steps: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    optim = config.optim
    schedule = make_schedule(
        optim.schedule,
        learning_rate=optim.learning_rate,
        steps=steps,
        warmup_steps=optim.warmup_steps,
    )
    tx = make_optimizer(
        optim.name,
        schedule,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        bias_rate=optim.bias_rate,
    )
    return schedule, tx


def _train_step(
    config: Config, model: FCN, tx: optax.GradientTransformation
) -> TrainStep:
    step = make_train_step(
        model,
        tx,
        ignore_label=config.data.ignore_label,
        loss_normalization=config.loss_normalization,
        class_weights=config.class_weights,
    )
    return jax.jit(step, donate_argnums=0)


def _key(config: Config, purpose: str) -> jax.Array:
    """The key of the initial "params", or that of all "steps"."""
    number = {"params": 0, "steps": 1}[purpose]
    return jax.random.fold_in(jax.random.key(config.seed), number)


def _batches(config: Config, source: Any, start: int) -> Any:
    data = config.data
    # Not a lambda: worker processes must be able to unpickle it.
    prepare = functools.partial(
        augment,
        size=data.size,
        scale=data.scale,
        crop=data.crop,
        flip=data.flip,
        ignore_label=data.ignore_label,
        mean_rgb=config.model.mean_rgb,
    )
    return train_batches(
        source,
        prepare,
        batch_size=config.batch_size,
        seed=config.seed,
        replacement=data.replacement,
        start_step=start,
        threads=data.threads,
        workers=data.workers,
    )


def _start_or_resume(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    tx: optax.GradientTransformation,
    source: Any,
) -> tuple[Config, TrainState, bool]:
    """The state to go on from, and the config with what its weights and data tell.

    And whether a run begins here with a network that was trained already.
    """
    if checkpoints.latest_step() is not None:
        config = _as_before(config, workdir / CONFIG_FILE)
        fresh = functools.partial(_init_params, make_model(config), frozenset())
        params = jax.eval_shape(fresh, _key(config, "params"))
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
    params = _init_params(model, known, _key(config, "params"))
    for part, layers in given.items():
        params[part] |= jax.tree.map(jnp.asarray, layers)
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
    weights = getattr(balance, config.class_balance)(survey)
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


def _check_finite(state: TrainState, step: int) -> None:
    """Raises before a state is saved that no run could go on from."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"the parameters are not finite after step {step}")


def _judge(
    config: Config,
    workdir: Path,
    model: FCN,
    state: TrainState,
    source: Any,
    log: Log,
) -> dict[str, Any]:
    """Evaluates, logs, and saves the network where it is the best so far."""
    data, step, names = config.data, int(state.step), config.class_names()
    confusion, rows = judge(
        model,
        state.params,
        source,
        names,
        ignore_label=data.ignore_label,
        size=data.size,
    )
    figures = report(confusion, names)
    mean_iu = figures["mean_iu"] or 0.0  # None where all pixels are void.
    tqdm.write(f"step {step}: validation mean IU {mean_iu:.4f}")
    best = max((r.get("mean_iu") or 0.0 for r in read_log(log.path)), default=0.0)
    log.scalars(step, figures, prefix="eval")
    for name, image, label, prediction in rows[:4]:
        colors = [
            visualize.colorize(labels, ignore_label=data.ignore_label)
            for labels in (label, prediction)
        ]
        log.image(step, f"eval/{name}", np.concatenate([image, *colors], axis=1))
    if mean_iu > best or not (workdir / RUN_FILE).exists():
        save(workdir / RUN_FILE, model, state.params, names)
        write_report(
            workdir,
            {"step": step, **figures},
            rows,
            names,
            ignore_label=data.ignore_label,
        )
    return {"mean_iu": mean_iu}


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Gives a list that SIGINT or SIGTERM is noted in; a second one acts as usual.

    A signal may come in the middle of a step, whose state is donated already, so the
    loop looks between steps.
    """
    stop: list[int] = []
    before = {}

    def note(number: int, frame: Any) -> None:
        stop.append(number)
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
