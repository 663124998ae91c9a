"""Verification of a run directory: which of its files are whole."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fcn_jax.training.checkpoint import FOLDER, Checkpoints
from fcn_jax.training.config import CONFIG_FILE, load_config
from fcn_jax.training.log import LOG_FILE, digest_of, parse_log, records_at
from fcn_jax.training.validation import METRICS_FILE
from fcn_jax.weights.load import RUN_FILE
from fcn_jax.weights.safetensors_file import read_metrics


class Verdict(NamedTuple):
    """What a file of a run holds, or what is wrong with it."""

    name: str
    found: str
    is_whole: bool


def verify_run(workdir: Path) -> list[Verdict]:
    """Read all files of a run that carry a digest, and compare what belongs together.

    Args:
        workdir: directory of the run.

    Returns:
        A verdict on each file. A network that a run has not come to yet is no fault.
    """
    return list(_verdicts(workdir))


def verdict_table(verdicts: list[Verdict]) -> str:
    """Return verdicts as lines to print."""
    width = max(len(verdict.name) for verdict in verdicts)
    return "\n".join(f"{v.name:<{width}}  {v.found}" for v in verdicts)


def _verdicts(workdir: Path) -> Iterator[Verdict]:
    yield _verdict(CONFIG_FILE, lambda: load_config(workdir / CONFIG_FILE) and "whole")
    network, figures = workdir / RUN_FILE, workdir / METRICS_FILE
    if network.exists() or figures.exists():
        # Once for both, since the digest takes a reading of the whole file.
        metrics = functools.cache(functools.partial(read_metrics, network))
        yield _verdict(RUN_FILE, lambda: _network(network, metrics))
        yield _verdict(METRICS_FILE, lambda: _figures(figures, metrics))
    else:
        yield Verdict(RUN_FILE, "none yet: the run has not been evaluated", True)
    checkpoints = Checkpoints(workdir / FOLDER, keep=1)
    logged, steps = {}, checkpoints.steps()  # The digest of the log at each step.

    def read(step: int) -> str:
        found = checkpoints.read(step)
        logged[step] = found.log
        if found.best and found.best["step"] not in steps:
            missing = checkpoints.path(found.best["step"])
            raise ValueError(f"{missing}, that of the best network, is missing")
        return "whole"

    for step in steps:
        name = f"{FOLDER}/{checkpoints.path(step).name}"
        yield _verdict(name, functools.partial(read, step))
    if (workdir / LOG_FILE).exists() or logged:
        yield _verdict(LOG_FILE, lambda: _log_lines(workdir / LOG_FILE, logged))


def _verdict(name: str, read: Callable[[], str]) -> Verdict:
    """Return the verdict on a file that ``read`` describes or refuses."""
    try:
        return Verdict(name, read(), True)
    except (ValueError, OSError) as error:
        return Verdict(name, f"NOT WHOLE: {error}", False)


def _network(path: Path, metrics: Callable[[], dict[str, Any] | None]) -> str:
    found = metrics()
    if not found:
        raise ValueError(f"{path} lacks the figures that a run saves with it")
    score = found["mean_iu"]
    scored = "nothing but void to score" if score is None else f"mean IU {score:.4f}"
    return f"whole: step {found['step']}, {scored}"


def _figures(path: Path, metrics: Callable[[], dict[str, Any] | None]) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        wanted = metrics()
    except (ValueError, OSError):
        return f"cannot be compared with {RUN_FILE}"
    if found != wanted:
        raise ValueError(f"{path} differs from the figures in {RUN_FILE}")
    return f"the figures in {RUN_FILE}"


def _log_lines(path: Path, logged: dict[int, str]) -> str:
    records, damaged = parse_log(path)
    if damaged:
        lines = ", ".join(map(str, damaged))
        raise ValueError(f"{path} has damaged lines: {lines}")
    for step, digest in logged.items():
        if digest_of(records_at(records, step)) != digest:
            raise ValueError(f"{path} is not what the run logged up to step {step}")
    return f"{len(records)} lines"
