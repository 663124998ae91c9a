"""Evaluation during a run, and the record of its best network."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from fcn_jax.evaluation.evaluate import (
    Evaluation,
    Example,
    evaluate_over_processes,
)
from fcn_jax.evaluation.report import draw_results
from fcn_jax.evaluation.summary import summarize_evaluation, write_summary
from fcn_jax.files import WriteError, write_json
from fcn_jax.network import Network, Palette
from fcn_jax.processes import is_main
from fcn_jax.progress import say
from fcn_jax.training.checkpoint import Checkpoint, Checkpoints
from fcn_jax.training.config import Config, make_network
from fcn_jax.training.log import Log
from fcn_jax.visualize import colorize
from fcn_jax.weights.load import RUN_FILE, save
from fcn_jax.weights.safetensors_file import read_metrics

METRICS_FILE = "metrics.json"  # The figures of the network in RUN_FILE.
SUMMARY_FILE = "evaluation.json"  # What a report page shows of that network.
_BOARD_EXAMPLES = 4  # Pictures in TensorBoard, for each evaluation.
_BOARD_SIDE = 320  # Pixels of each, at most, so that many evaluations stay small.

_log = logging.getLogger("fcn_jax")


@dataclasses.dataclass
class Validation:
    """Evaluate the network of a run, log the figures and keep the best network.

    Attributes:
        workdir: directory of the run. It receives the best network as
            ``model.safetensors`` and the figures of that network as ``metrics.json``.
        source: the validation images.
        split: their name.
        log: receives the figures.
        best: figures of the best network so far with its "step", or None.
    """

    workdir: Path
    source: Any
    split: str
    log: Log
    best: dict[str, Any] | None
    _warned: bool = False

    def __call__(self, net: Network, step: int) -> None:
        """Evaluate a network after a step, and keep it if it is the best so far.

        All processes of a run must call this.

        Raises:
            WriteError: if the network or its figures cannot be written.
        """
        options = {"examples": _BOARD_EXAMPLES, "progress": is_main()}
        found = evaluate_over_processes(net, self.source, **options)
        is_best = self._is_best(found.figures["mean_iu"])
        if is_main():
            self._report(net, step, found, is_best)
        if is_best:
            self.best = {"step": step, **found.figures}
            if is_main():
                self._keep(net, found)

    def _is_best(self, mean_iu: float | None) -> bool:
        if mean_iu is None:
            _log.warning(
                "all pixels of the validation images are void, so no network can be "
                "called the best: the last one is kept; see config.data.eval_split"
            )
        best = self.best and self.best["mean_iu"]
        return best is None or mean_iu is not None and mean_iu > best

    def _report(
        self, net: Network, step: int, found: Evaluation, is_best: bool
    ) -> None:
        mean_iu, accuracy = (
            "none" if value is None else f"{value:.4f}"
            for value in (found.figures["mean_iu"], found.figures["pixel_accuracy"])
        )
        note = "the best so far" if is_best else f"the best is step {self.best['step']}"
        line = f"validation mean IU {mean_iu}, pixel accuracy {accuracy}; {note}"
        say(f"step {step}: {line}")
        self.log.scalars(step, found.figures, prefix="eval")
        for example in found.examples:
            picture = _row(example.shrunk(_BOARD_SIDE), net.palette)
            self.log.image(step, f"eval/{example.name}", picture)

    def _keep(self, net: Network, found: Evaluation) -> None:
        """Write the network, its figures, its pictures and its summary.

        The next checkpoint tells of it. If the run is killed before that, it comes to
        the same step again and writes the same files.
        """
        save_best(self.workdir, net, self.best)
        try:
            draw_results(self.workdir, net, self.source, found)
            summary = summarize_evaluation(net, self.source, found, split=self.split)
            write_summary(self.workdir / SUMMARY_FILE, summary)
        except WriteError as error:
            if not self._warned:
                _log.warning("%s; the run goes on without pictures", error)
            self._warned = True


def _row(example: Example, palette: Palette) -> np.ndarray:
    """Return an image, its label and its prediction side by side."""
    maps = (colorize(labels, palette) for labels in example[2:])
    return np.concatenate([example.image, *maps], axis=1)


def save_best(workdir: Path, net: Network, figures: dict[str, Any]) -> None:
    """Write the best network of a run, and its figures with its "step"."""
    save(workdir / RUN_FILE, net, metrics=figures)
    write_json(workdir / METRICS_FILE, figures)


def restore_best(
    workdir: Path, checkpoints: Checkpoints, newest: Checkpoint, config: Config
) -> dict[str, Any] | None:
    """Write the files of the best network anew where they are missing or damaged.

    Args:
        workdir: directory of the run.
        checkpoints: all of its checkpoints.
        newest: the one that the run goes on from.
        config: the config of the run.

    Returns:
        The figures of the best network, or None if the run has not been evaluated yet
        or both files that hold the network are damaged.
    """
    best = newest.best
    if best is None:
        return None
    try:
        found = read_metrics(workdir / RUN_FILE) or {}
        # A run that went back to an older checkpoint will come to this step again.
        if found == best or found.get("step", 0) > newest.step:
            if _read_json(workdir / METRICS_FILE) != found:
                write_json(workdir / METRICS_FILE, found)
            return best
        problem = f"{workdir / RUN_FILE} is not the network of step {best['step']}"
    except (ValueError, FileNotFoundError) as error:
        problem = str(error)
    try:
        arrays = checkpoints.read(best["step"]).arrays
    except (ValueError, FileNotFoundError) as error:
        _log.warning(
            "%s; %s: the best network is lost, and the next evaluation keeps its own",
            problem,
            error,
        )
        return None
    params = unflatten_dict(arrays, sep="/")["params"]
    save_best(workdir, make_network(config, params), best)
    _log.warning("%s; written anew from its checkpoint", problem)
    return best


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
