"""The wiring of a run: data, network, steps, evaluation, checkpoints, log."""

import contextlib
import functools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
from fcn_jax.evaluation.report import judge, report, write_report
from fcn_jax.models.fcn import FCN
from fcn_jax.parallel import make_parallel
from fcn_jax.processes import (
    is_main,
    main_first,
    part,
    preempted,
    sum_over_processes,
    wait_for_all,
)
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import Config, check, make_model, make_source
from fcn_jax.training.log import Log, Meter, read_log
from fcn_jax.training.optim import make_optimizer, make_schedule
from fcn_jax.training.start import key_of, start_or_resume
from fcn_jax.training.steps import TrainState, TrainStep, make_train_step
from fcn_jax.weights.download import fetch
from fcn_jax.weights.load import RUN_FILE, save


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
    with main_first():  # It may download the weights and prepare the data set.
        if config.init_from:
            fetch(config.init_from)
        train_source = make_source(config, config.data.train_split)
        eval_source = make_source(config, config.data.eval_split)
    epoch = math.ceil(len(train_source) / config.batch_size)
    steps = config.steps or max(1, round(config.epochs * epoch))
    eval_every = config.eval_every or epoch
    schedule, tx = _optimizer(config, steps)
    parallel = make_parallel(
        config.parallel, batch_size=config.batch_size, accumulate=config.accumulate
    )
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        config, state, trained = start_or_resume(
            config, workdir, checkpoints, tx, train_source
        )
        start, key = int(state.step), key_of(config, "steps")
        model = make_model(config)
        train_step = parallel.step(_make_step(config, model, tx))
        state = parallel.put_state(state)
        batches = _batches(config, train_source, start, parallel.shard)
        stack.callback(batches.close)
        log = Log(workdir, start_step=start, silent=not is_main())
        stack.callback(log.close)
        stop = stack.enter_context(_stop_signal())

        def judge_now(state: TrainState) -> dict[str, Any]:
            state = parallel.one_copy(state)
            return _judge(config, workdir, model, state, eval_source, log)

        if trained:  # A network to be improved: here is what it was worth.
            judge_now(state)
        bar = tqdm(
            initial=start,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not is_main(),
        )
        meter = Meter(
            log,
            stack.enter_context(bar),
            schedule=schedule,
            batch_size=config.batch_size,
            every=config.log_every,
        )
        ahead = prefetch_to_device(batches, put=parallel.put_batch)
        shapes = set()
        for step in range(start + 1, steps + 1):
            clock = time.perf_counter()
            batch = next(ahead)
            waited = time.perf_counter() - clock
            shapes.add(batch["image"].shape)  # Each is compiled once.
            state, metrics = train_step(state, batch, key)
            meter.add(step, metrics, waited=waited, compiles=len(shapes))
            due = step % eval_every == 0 or step == steps
            if not (preempted(step) or due or stop):
                continue
            meter.drain()
            _check_finite(parallel.one_copy(state), step)
            scores = judge_now(state) if due else None
            checkpoints.save(state, scores)
            if not due:
                raise KeyboardInterrupt(
                    f"stopped and saved at step {step}; the same command goes on"
                )
            meter.restart_clock()
    if is_main():
        visualize.learning_curves(workdir / "curves.png", read_log(log.path))
    wait_for_all()
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


def _make_step(
    config: Config, model: FCN, tx: optax.GradientTransformation
) -> Callable[..., TrainStep]:
    return functools.partial(
        make_train_step,
        model,
        tx,
        ignore_label=config.data.ignore_label,
        loss_normalization=config.loss_normalization,
        class_weights=config.class_weights,
        accumulate=config.accumulate,
    )


def _batches(config: Config, source: Any, start: int, shard: tuple[int, int]) -> Any:
    data = config.data
    # Sizes that differ are filled up, unless each image is cut or resized to one.
    same = data.crop or (data.size and tuple(data.scale) == (1.0, 1.0))
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
        bucket=0 if same else data.bucket,
        ignore_label=data.ignore_label,
        start_step=start,
        shard=shard,
        threads=data.threads,
        workers=data.workers,
    )


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
        part(source),
        names,
        ignore_label=data.ignore_label,
        size=data.size,
        progress=is_main(),
    )
    figures = report(sum_over_processes(confusion), names)
    mean_iu = figures["mean_iu"] or 0.0  # None where all pixels are void.
    if not is_main():
        return {"mean_iu": mean_iu}
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

    # Of several processes, all must stop after the same step: see `preempted`.
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
