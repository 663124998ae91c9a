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
from fcn_jax.data.loader import prefetch_to_device, train_batches
from fcn_jax.data.transforms import augment
from fcn_jax.evaluation.report import judge, write_report
from fcn_jax.models.fcn import FCN
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    check,
    load_config,
    make_model,
    make_source,
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
from fcn_jax.weights.store import RUN_FILE, read_vgg16, save

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
        config, state = _start_or_resume(config, workdir, checkpoints, tx)
        start, key = int(state.step), _key(config, "steps")
        model = make_model(config)
        train_step = _train_step(config, model, tx)
        batches = _batches(config, train_source, start)
        stack.callback(batches.close)
        log = Log(workdir, start_step=start)
        stack.callback(log.close)
        stop = stack.enter_context(_stop_signal())
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
        start_step=start,
        threads=data.threads,
        workers=data.workers,
    )


def _start_or_resume(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    tx: optax.GradientTransformation,
) -> tuple[Config, TrainState]:
    """The state to go on from, and the config with the mean of its weights."""
    if checkpoints.latest_step() is not None:
        config = _as_before(config, workdir / CONFIG_FILE)
        fresh = functools.partial(_init_params, make_model(config), frozenset())
        params = jax.eval_shape(fresh, _key(config, "params"))
        state = checkpoints.restore(
            jax.eval_shape(functools.partial(init_state, tx=tx), params)
        )
        _log.info("resuming %s at step %d", workdir, state.step)
        return config, state
    body = {}
    if config.init_from:
        body, mean_rgb, source = read_vgg16(config.init_from)
        _log.info("starting from %s (%s)", config.init_from, source)
        config = _with_mean(config, mean_rgb)
    model = make_model(config)
    _check_body(model, body, config.init_from)
    body = {name: layer for name, layer in body.items() if name != "fc8"}
    params = _init_params(model, frozenset(body), _key(config, "params"))
    params["body"] |= jax.tree.map(jnp.asarray, body)
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(workdir / CONFIG_FILE, config)
    return config, init_state(params, tx)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(model: FCN, known: frozenset[str], key: jax.Array) -> dict[str, Any]:
    """Random parameters, without the layers of the body that are known."""
    params = model.init(key, jnp.zeros([1, 1, 1, 3]))["params"]
    body = {name: p for name, p in params["body"].items() if name not in known}
    return {**params, "body": body}


def _check_body(model: FCN, body: dict[str, Any], path: str) -> None:
    if body and (filters := body["conv1_1"]["bias"].size) != 64 * model.width:
        raise ValueError(
            f"config.init_from = {path} has {filters} filters in conv1_1, the network "
            f"{64 * model.width:g}: set config.model.width={filters / 64:g}"
        )


def _with_mean(config: Config, mean_rgb: tuple[float, ...]) -> Config:
    mean_rgb = tuple(mean_rgb)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, mean_rgb=mean_rgb)
    )


def _as_before(config: Config, path: Path) -> Config:
    """The config, if it can go on with the run that ``path`` tells of."""
    before = load_config(path)
    config = _with_mean(config, before.model.mean_rgb)
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
    figures, rows = judge(
        model,
        state.params,
        source,
        names,
        ignore_label=data.ignore_label,
        size=data.size,
    )
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
