"""Resuming a run: which settings may differ from those it began with."""

import dataclasses
import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from fcn_jax.processes import assert_equal_across_processes, is_main
from fcn_jax.training.checkpoint import Checkpoint
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    as_tuple,
    config_of,
    flat,
    load_config,
    save_config,
    with_normalization,
)
from fcn_jax.training.log import (
    LOG_FILE,
    digest_of,
    read_log,
    records_at,
    write_records,
)
from fcn_jax.weights.load import RUN_FILE

# Fields that a run does not learn from. A new value is taken.
NEUTRAL = frozenset(
    {
        "data.root",
        "data.manual_dir",
        "data.class_names",
        "data.channels",
        "data.shown",
        "data.bucket",
        "data.cache",
        "data.threads",
        "data.workers",
        "data.help",
        "model.remat",
        "epochs",  # `steps` tells the length of a run once it has begun.
        "parallel",
        "eval_every",
        "log_every",
        "keep_checkpoints",
    }
)
# Fields that the saved parameters and the state of the optimiser depend on, or that
# tell how the run began.
FIXED = frozenset(
    {
        "model.variant",
        "model.geometry",
        "model.crop",
        "model.in_channels",
        "model.mean",
        "model.scale",
        "model.extra_init",
        "model.width",
        "model.score_init",
        "model.pool_scales",
        "model.learn_upsampling",
        "data.num_classes",
        "optim.name",
        "optim.freeze",
        "init_from",
    }
)
# A change of any other field alters the run, and is made only where that is allowed.

_log = logging.getLogger("fcn_jax")


class Change(NamedTuple):
    """A field of a config, such as "data.crop", with its old and its new value."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"config.{self.field} was {self.old!r} and is {self.new!r}"


def resume(
    config: Config, workdir: Path, saved: Checkpoint, *, allow_changes: bool = False
) -> Config:
    """Compare a config with that of a run, and record what differs.

    New values are written to ``config.json`` and, with the step, to ``log.jsonl``.

    Args:
        config: the config to resume with; ``steps`` is the length of the whole run.
        workdir: directory of the run.
        saved: the checkpoint to resume from, with the config of the run so far.
        allow_changes: whether fields that alter the run may differ.

    Returns:
        The config, with the values that the run computed from its weights and data.

    Raises:
        ValueError: if fields differ that must not; it lists them.
        WriteError: if they cannot be recorded.
    """
    before, step = config_of(saved.config), saved.step
    config = _with_computed(config, before)
    changes = _changes(before, config)
    if fixed := [change for change in changes if change.field in FIXED]:
        raise ValueError(
            f"{_listed(workdir, fixed)}\nThe run depends on these from its start: "
            "choose another workdir for a new run"
        )
    altering = [change for change in changes if not _is_neutral(change, config, step)]
    if {change.field for change in altering} <= {"steps"} and config.steps < step:
        raise ValueError(
            f"config.steps = {config.steps}, and {workdir} has taken {step} steps: ask "
            "for more steps, or choose another workdir"
        )
    if altering and not (allow_changes and config.steps > step):
        way = "go on so" if config.steps > step else "go on so with more steps"
        raise ValueError(
            f"{_listed(workdir, altering)}\nChoose another workdir for a new run, or "
            f"allow changes (--allow_changes) to {way} after step {step}"
        )
    if is_main():
        _record(changes, config, workdir, saved)
    return config


def assert_new_run(config: Config, workdir: Path) -> None:
    """Raise ValueError if a directory without checkpoints holds another run's network.

    A run that was killed before its first checkpoint may leave a network, which the
    same run finds again.
    """
    if not (workdir / RUN_FILE).exists():
        return
    if not (workdir / CONFIG_FILE).exists():
        raise ValueError(
            f"{workdir / RUN_FILE} is not the network of a run, and would be replaced: "
            "choose another workdir"
        )
    before = load_config(workdir / CONFIG_FILE)
    config = _with_computed(config, before)
    changes = [c for c in _changes(before, config) if c.field not in NEUTRAL]
    if changes:
        raise ValueError(
            f"{_listed(workdir, changes)}\nIt has a network and no checkpoints: choose "
            f"another workdir, or delete {workdir / RUN_FILE}"
        )


def _record(
    changes: list[Change], config: Config, workdir: Path, saved: Checkpoint
) -> None:
    step = saved.step
    for change in changes:
        _log.info("after step %d: %s", step, change)
    log, file = workdir / LOG_FILE, workdir / CONFIG_FILE
    records = read_log(log)
    kept = records_at(records, step)
    if digest_of(kept) != saved.log:
        _log.warning(
            "%s was damaged or edited: not all its numbers up to step %d are those of "
            "the run",
            log,
            step,
        )
    if changes:
        kept.append(
            {"step": step, "changes": {c.field: [c.old, c.new] for c in changes}}
        )
    if kept != records:
        write_records(log, kept)
    if not _holds(file, config):
        save_config(file, config)


def _holds(path: Path, config: Config) -> bool:
    """Tell whether a file is there and holds a config."""
    try:
        return path.exists() and not _changes(load_config(path), config)
    except ValueError as error:
        _log.warning("%s", error)
        return False


def _is_neutral(change: Change, config: Config, step: int) -> bool:
    """Tell whether a change leaves the steps of the run as they would have been."""
    if change.field == "steps":  # The schedule runs over all steps.
        finished = step == change.old
        return finished or config.optim.schedule == "constant"
    return change.field in NEUTRAL


def _with_computed(config: Config, before: Config) -> Config:
    """Return the config with the mean, scale and class weights that a run computed."""
    config = with_normalization(config, before.model.mean, before.model.scale)
    if not config.class_weights and config.class_balance == before.class_balance:
        config = dataclasses.replace(config, class_weights=before.class_weights)
    return config


def _changes(before: Config, now: Config) -> list[Change]:
    # JSON has no tuples.
    values = ((as_tuple(value) for *_, value in flat(c)) for c in (before, now))
    names = (name for name, *_ in flat(now))
    changes = map(Change, names, *values)
    return [change for change in changes if change.old != change.new]


def _listed(workdir: Path, changes: list[Change]) -> str:
    lines = "".join(f"\n  {change}" for change in changes)
    return f"{workdir} holds a run with other settings:{lines}"


def assert_same_run(config: Config, step: int | None) -> None:
    """Raise ValueError in every process of a run if their runs differ.

    Args:
        config: the config of this process; fields in `NEUTRAL` may differ.
        step: the latest checkpoint that it sees, or None.
    """
    values = [value for name, _, value in flat(config) if name not in NEUTRAL]
    assert_equal_across_processes(
        [zlib.crc32(repr((values, step)).encode())],
        "the processes of this run have different configs or see different "
        "checkpoints: start them with one command and a workdir that all share",
    )
