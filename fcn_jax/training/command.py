"""The train command of train.py and ``python -m fcn_jax train``."""

import logging
import shlex
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from fcn_jax.evaluation.report import table
from fcn_jax.processes import is_main
from fcn_jax.training.config import Config
from fcn_jax.training.loop import train
from fcn_jax.training.report_page import write_run_page

_log = logging.getLogger("fcn_jax")


def train_and_report(
    config: Config, workdir: str, *, allow_changes: bool = False, command: str
) -> None:
    """Train a network; print the figures of the best one, its files and what is next.

    Args:
        config: the config of the run.
        workdir: directory of the run. An unfinished run in it is resumed.
        allow_changes: as for `train`.
        command: the command of the run, for its report.

    Raises:
        ValueError, KeyboardInterrupt: as `train` does.
        FloatingPointError: as `train` does, with the fields that may help.
    """
    logging.basicConfig()
    for handler in logging.root.handlers:  # A library may have made one before.
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():  # Messages leave the progress bar whole.
            figures = train(config, workdir, allow_changes=allow_changes)
    except FloatingPointError as error:
        advice = "see config.optim.learning_rate and config.optim.warmup_steps"
        raise FloatingPointError(f"{error}: {advice}") from error
    if is_main():
        print(f"Best network, of step {figures['step']}:\n{table(figures)}")
        _report(workdir, command)
        print(_guide(workdir))


def _report(workdir: str, command: str) -> None:
    """Write the report page; the run itself is saved without it."""
    try:
        write_run_page(Path(workdir), command=command)
    except (ValueError, OSError) as error:
        _log.warning("no report is written: %s", error)


def _guide(workdir: str) -> str:
    """Return where the files of a finished run are, and commands to try next."""
    run = shlex.quote(str(workdir))
    return f"""
Files in {workdir}:
  model.safetensors  the best network
  report.html        a page about the run, to open in a browser
  metrics.json       its figures
  results.png        four of its predictions, from good to bad
  errors.png         its worst predictions
  confusion.png      which classes it mistakes for which
  curves.png         loss and scores over the steps
  log.jsonl          the same as numbers
  tensorboard        the same, to look at in a browser:
                     tensorboard --logdir {run}
                     (pip install -e '.[tensorboard]' brings it)
Next:
  python -m fcn_jax predict --run {run} --out predictions IMAGE
  python -m fcn_jax export --run {run} --out network.npz"""
