"""The loop of a run: data, network, steps, evaluation, checkpoints, log."""

import contextlib
import dataclasses
import functools
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fcn_jax.charts import learning_curves
from fcn_jax.data.cache import cache_source, check_cacheable
from fcn_jax.data.loader import prefetch_to_device, train_batches
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import CheckedSource
from fcn_jax.files import WriteError, owning, remove_leftovers
from fcn_jax.parallel import Parallel, make_parallel
from fcn_jax.processes import (
    is_main,
    main_first,
    preempted,
    sum_over_processes,
    wait_for_all,
)
from fcn_jax.training.augmentation import Transform, own_transform, training_augment
from fcn_jax.training.checkpoint import FOLDER, Checkpoint, Checkpoints
from fcn_jax.training.config import (
    Config,
    check,
    fields,
    make_model,
    make_network,
    make_source,
    prefixed,
    steps_per_epoch,
)
from fcn_jax.training.display import Display
from fcn_jax.training.faults import check_quickly
from fcn_jax.training.log import LOG_FILE, Log, Meter, read_log
from fcn_jax.training.optim import make_optimizer, make_schedule
from fcn_jax.training.resume import assert_new_run, assert_same_run, resume
from fcn_jax.training.start import random_key, start_or_resume
from fcn_jax.training.steps import TrainState, make_train_step
from fcn_jax.training.summary import check_room, describe_run
from fcn_jax.training.validation import Validation, restore_best
from fcn_jax.weights.download import fetch

_log = logging.getLogger("fcn_jax")


def train(
    config: Config,
    workdir: str | Path,
    train_source: Any = None,
    eval_source: Any = None,
    *,
    transform: Transform | None = None,
    allow_changes: bool = False,
) -> dict[str, Any]:
    """Train a network, or resume an earlier run in the same directory.

    Args:
        config: the config of the run.
        workdir: directory of the run. It receives ``config.json``, ``checkpoints/``,
            ``log.jsonl``, ``tensorboard/`` and ``curves.png``, and of the network with
            the best mean IU ``model.safetensors``, ``metrics.json``, ``results.png``,
            ``errors.png`` and ``confusion.png``.
        train_source: training images to use instead of those of the config: anything
            with ``__len__`` and ``__getitem__(i)`` that gives (image, label), or a dict
            with "image", "label" and perhaps "name". An image is [H, W, 3] uint8 RGB,
            or with more ``config.model.in_channels`` [H, W, in_channels] uint8 or
            float32 with RGB first; a label is [H, W] integers in [0,
            ``config.data.num_classes``), or 255 for void.
        eval_source: validation images to use instead, likewise.
        transform: own transform of training examples to use instead of that of
            ``config.data.transform``. It is called with an example, {"image": [H, W, N]
            uint8 or float32, "label": [H, W] int32, "name": str}, after all other
            augmentation, and a generator, from which it draws all that is random. It
            returns an example of the same types, of any one size.
        allow_changes: whether an earlier run may be resumed with other values of fields
            that alter it. They are logged with the step from which they hold.

    Returns:
        The figures of the best network, as ``metrics.json`` holds them.

    Raises:
        ValueError: if the config, the data or the weights cannot be used, or the
            directory holds a run with other settings, no checkpoint that is whole, or
            is in use by another process.
        OSError: if a file cannot be read or written, other than a picture, or a reading
            process is killed. What was there before is kept, and the same call resumes.
        FloatingPointError: if the loss or the gradient is no longer finite.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the current step is saved.
    """
    workdir, checked = Path(workdir), config
    checkpoints = Checkpoints(workdir / FOLDER, keep=config.keep_checkpoints)
    if checkpoints.steps():  # The weights may be gone.
        checked = dataclasses.replace(config, init_from="")
    check(checked)
    transform = own_transform(config, transform)
    train_source, eval_source = _sources(config, train_source, eval_source)
    config = _with_steps(config, len(train_source))
    schedule, tx = optimizer_of(config)
    with prefixed(f"config.parallel = {config.parallel!r}: "):
        parallel = make_parallel(
            config.parallel, **fields(config, "batch_size", "accumulate")
        )
    with contextlib.ExitStack() as stack:
        assert_there = stack.enter_context(_owning(workdir))
        saved = checkpoints.newest()
        assert_same_run(config, saved and saved.step)
        if saved is None:
            assert_new_run(config, workdir)
            _prepare(config, train_source, eval_source)
            best, progress = None, None
        else:
            config = resume(config, workdir, saved, allow_changes=allow_changes)
            best, progress = (
                _restored(workdir, checkpoints, saved, config),
                saved.progress,
            )
            if saved.step == config.steps and best is not None:
                _log.info("finished at step %d: nothing to train", saved.step)
                _draw_curves(workdir)
                return best
        config, state, trained = start_or_resume(
            config, workdir, saved, tx, train_source
        )
        train_source, eval_source = _cached(config, train_source, eval_source)
        start = int(state.step)
        log_start = -1 if saved is None else start
        if is_main():
            describe_run(config, state, train_source, [*parallel.mesh.devices.flat])
            check_room(config, state, workdir)
        del saved  # Its arrays take as much memory as the state.
        log = Log(workdir, start_step=log_start, silent=not is_main())
        stack.callback(log.close)
        text = json.dumps(dataclasses.asdict(config), indent=4)
        log.text(start, "config", f"```\n{text}\n```")
        split = config.data.eval_split
        validate = Validation(workdir, eval_source, split, log, best)
        best_iu = best and best["mean_iu"]
        display = stack.enter_context(
            Display(config, len(train_source), start, best=best_iu, shown=is_main())
        )

        def evaluate(params: Any, step: int) -> None:
            assert_there()
            validate(make_network(config, params), step)
            display.best = validate.best["mean_iu"]

        state = parallel.put_state(state)
        # Log the scores that the training is to improve, or that are missing.
        if trained or start == config.steps:
            with display.evaluation():
                evaluate(parallel.one_copy(state.params), start)
        augment = training_augment(config, transform)
        batches = _batches(config, train_source, augment, start, parallel.shard)
        stack.callback(batches.close)
        stop = stack.enter_context(_stop_signal())
        meter = stack.enter_context(
            Meter(
                log,
                display,
                schedule=schedule,
                batch_size=config.batch_size,
                every=config.log_every,
                progress=progress,
            )
        )
        run = _run_steps(config, tx, parallel, state, batches, meter)
        for step, state in enumerate(run, start=start + 1):
            due = step % config.eval_every == 0 or step == config.steps
            if preempted(step) or due or stop:
                meter.drain()
                with display.evaluation():
                    one = parallel.one_copy(state)
                    _check_finite(one, step)
                    if due:
                        evaluate(one.params, step)
                    if is_main():
                        assert_there()
                        checkpoints.save(
                            one,
                            config=dataclasses.asdict(config),
                            best=validate.best,
                            progress=meter.progress,
                            log=log.digest,
                        )
                    if not due:
                        raise KeyboardInterrupt(
                            f"stopped and saved at step {step}; start it again to "
                            "resume"
                        )
                meter.restart_clock()
        _draw_curves(workdir)
        assert_there()
    wait_for_all()
    return validate.best


@contextlib.contextmanager
def _owning(workdir: Path) -> Iterator[Callable[[], None]]:
    """Hold the directory of a run in its process 0, and clear it of leftovers.

    Yields:
        A function that raises OSError if the directory has been deleted or moved.
    """
    if not is_main():
        yield lambda: None
        return
    with owning(workdir) as assert_there:
        remove_leftovers(workdir)
        remove_leftovers(workdir / FOLDER)
        yield assert_there


def _restored(
    workdir: Path, checkpoints: Checkpoints, saved: Checkpoint, config: Config
) -> dict[str, Any] | None:
    """Put the files of the best network and the checkpoints in order in process 0.

    Returns:
        The figures of the best network in every process, or None if it is lost.
    """
    best = saved.best
    if is_main():
        best = restore_best(workdir, checkpoints, saved, config)
        checkpoints.remove_old(saved.step, best)
    is_lost = sum_over_processes([best is None])[0]
    return None if is_lost else best


def _draw_curves(workdir: Path) -> None:
    if is_main():
        try:
            learning_curves(workdir / "curves.png", read_log(workdir / LOG_FILE))
        except WriteError as error:
            _log.warning("%s", error)


def optimizer_of(config: Config) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning-rate schedule and the optimiser of a run of config.steps."""
    optim = config.optim
    with prefixed("config.optim."):
        shape = fields(optim, "learning_rate", "warmup_steps")
        schedule = make_schedule(optim.schedule, steps=config.steps, **shape)
    names = ("momentum", "weight_decay", "bias_rate", "rates", "clip_norm")
    return schedule, make_optimizer(optim.name, schedule, **fields(optim, *names))


def _sources(config: Config, train_source: Any, eval_source: Any) -> list[Any]:
    """Return the given sources, checked, or those of the config in place of None."""
    data = config.data
    given = (train_source, data.train_split), (eval_source, data.eval_split)
    with main_first():  # It may prepare the data set.
        sources = [
            make_source(config, split)
            if source is None
            else CheckedSource(
                source,
                num_classes=data.num_classes,
                in_channels=config.model.in_channels,
            )
            for source, split in given
        ]
    if data.cache:
        with prefixed(f"config.data.cache = {data.cache!r}: "):
            for source in sources:
                check_cacheable(source)
    return sources


def _cached(config: Config, train_source: Any, eval_source: Any) -> list[Any]:
    """Return the sources with their images decoded, if the config has a cache."""
    data = config.data
    if not data.cache:
        return [train_source, eval_source]
    # Evaluation resizes each image for the network, and scores it at its own size.
    splits = (
        (train_source, data.train_split, tuple(data.size)),
        (eval_source, data.eval_split, ()),
    )
    with main_first(), prefixed(f"config.data.cache = {data.cache!r}: "):
        return [
            cache_source(source, data.cache, name=name, size=size, progress=is_main())
            for source, name, size in splits
        ]


def _prepare(config: Config, train_source: Any, eval_source: Any) -> None:
    """Check the data of a new run, then download its weights."""
    splits = config.data.train_split, config.data.eval_split
    with main_first():
        if is_main() and not isinstance(train_source, ShapesSource):
            check_quickly(
                config, dict(zip(splits, (train_source, eval_source), strict=True))
            )
        if config.init_from:
            fetch(config.init_from)


def _with_steps(config: Config, examples: int) -> Config:
    """Return the config with the steps that its epochs take, where they are 0."""
    if config.batch_size > examples:
        raise ValueError(
            f"config.batch_size = {config.batch_size} is larger than the training "
            f"split, which has {examples} images: set it to {examples} or less"
        )
    epoch = steps_per_epoch(config, examples)
    return dataclasses.replace(
        config,
        steps=config.steps or max(1, round(config.epochs * epoch)),
        eval_every=config.eval_every or epoch,
    )


def _batches(
    config: Config,
    source: Any,
    augment: Transform,
    start: int,
    shard: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    data = config.data
    # Images are padded unless all are cropped or resized to one size.
    same = data.crop or (data.size and tuple(data.scale) == (1.0, 1.0))
    return train_batches(
        source,
        augment,
        start_step=start,
        shard=shard,
        bucket=0 if same else data.bucket,
        **fields(config, "batch_size", "seed"),
        **fields(data, "replacement", "threads", "workers"),
    )


def _run_steps(
    config: Config,
    tx: optax.GradientTransformation,
    parallel: Parallel,
    state: TrainState,
    batches: Iterator[dict[str, Any]],
    meter: Meter,
) -> Iterator[TrainState]:
    """Take the remaining steps of a run and yield the state after each."""
    names = ("loss", "loss_normalization", "class_weights", "accumulate")
    options = fields(config, *names) | fields(config.optim, "freeze")
    make_step = functools.partial(make_train_step, make_model(config), tx, **options)
    train_step, key = parallel.step(make_step), random_key(config, "steps")
    ahead = prefetch_to_device(batches, put=parallel.put_batch)
    for step in range(int(state.step) + 1, config.steps + 1):
        asked = time.perf_counter()
        batch = _next(ahead)
        got, shape = time.perf_counter(), batch["image"].shape
        state, metrics = train_step(state, batch, key)
        meter.add(step, metrics, shape=shape, asked=asked, got=got)
        yield state


def _next(batches: Iterator[Any]) -> Any:
    """Return the next batch; raise ChildProcessError if a reading process is dead."""
    try:
        return next(batches)
    except RuntimeError as error:
        if "Worker process" not in str(error):  # As grain's message begins.
            raise
        raise ChildProcessError(
            "a reading process was killed, perhaps for lack of memory: fewer "
            "config.data.workers take less; the same command resumes the run"
        ) from error


def _check_finite(state: TrainState, step: int) -> None:
    """Raise before a state is saved that no run could resume from."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"the parameters are not finite after step {step}")


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Yield a list to which SIGINT or SIGTERM is added; a second one acts as usual.

    A signal may arrive within a step, which has donated its state already, so the loop
    checks the list between steps.
    """
    stop: list[int] = []
    before = {}

    def note(number: int, frame: Any) -> None:
        stop.append(number)
        signal.signal(number, before[number])
        _log.warning("stopping after this step; a second signal stops at once")

    # Several processes must stop after the same step: `preempted` handles that.
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
