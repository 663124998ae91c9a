"""Evaluation during a run, and the record of its best network."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fcn_jax.evaluation.evaluate import Evaluation, evaluate
from fcn_jax.evaluation.report import RESULT_ROWS, write_report
from fcn_jax.network import Network
from fcn_jax.processes import is_main, process_shard, sum_over_processes
from fcn_jax.training.log import Log
from fcn_jax.visualize import colorize
from fcn_jax.weights.load import RUN_FILE, save

METRICS_FILE = "metrics.json"  # The figures of the network in RUN_FILE.
_BOARD_EXAMPLES = 4  # Pictures in TensorBoard.


@dataclasses.dataclass
class Validation:
    """Evaluate the network of a run, log the figures and keep the best network.

    Attributes:
        workdir: directory of the run. It receives the best network as
            ``model.safetensors`` and the figures of that network as ``metrics.json``.
        source: the validation images.
        log: receives the figures.
        best: mean IU of the best network so far, or None.
    """

    workdir: Path
    source: Any
    log: Log
    best: float | None

    def __call__(self, net: Network, step: int) -> bool:
        """Evaluate a network after a step and tell whether it is the best so far.

        All processes of a run must call this.
        """
        found = evaluate(
            net,
            process_shard(self.source),
            examples=RESULT_ROWS,
            progress=is_main(),
        )
        confusion = sum_over_processes(found.confusion)
        found = dataclasses.replace(found, confusion=confusion)
        mean_iu = found.figures["mean_iu"] or 0.0  # None where all pixels are void.
        is_best = self.best is None or mean_iu > self.best
        if is_best:
            self.best = mean_iu
        if is_main():
            self._write(net, step, found, mean_iu, is_best)
        return is_best

    def _write(
        self, net: Network, step: int, found: Evaluation, mean_iu: float, is_best: bool
    ) -> None:
        tqdm.write(f"step {step}: validation mean IU {mean_iu:.4f}")
        self.log.scalars(step, found.figures, prefix="eval")
        for name, image, *labels in found.examples[:_BOARD_EXAMPLES]:
            colors = [colorize(each, net.palette) for each in labels]
            row = np.concatenate([image, *colors], axis=1)
            self.log.image(step, f"eval/{name}", row)
        if is_best:
            # The network comes before its figures: if the run is killed between the
            # two, the resumed run evaluates the same network again and writes both.
            save(self.workdir / RUN_FILE, net)
            write_report(self.workdir, found, palette=net.palette, step=step)


def read_best(workdir: Path) -> dict[str, Any] | None:
    """Return the figures of the best network of a run, with "step" and "mean_iu".

    Returns:
        The content of ``metrics.json``, or None before the first evaluation.

    Raises:
        ValueError: if the file is damaged.
    """
    path = workdir / METRICS_FILE
    if not path.exists() or not (workdir / RUN_FILE).exists():
        return None
    try:
        figures = json.loads(path.read_text("utf-8"))
        return figures | {"step": int(figures["step"]), "mean_iu": figures["mean_iu"]}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it, and the next evaluation "
            "writes it anew"
        ) from error
