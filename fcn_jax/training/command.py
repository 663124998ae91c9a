"""The train command of train.py and ``python -m fcn_jax train``."""

import logging
import shlex

from tqdm.contrib.logging import logging_redirect_tqdm

from fcn_jax.evaluation.report import table
from fcn_jax.processes import is_main
from fcn_jax.training.config import Config
from fcn_jax.training.loop import train


def train_and_report(
    config: Config, workdir: str, *, allow_changes: bool = False
) -> None:
    """Train a network; print the figures of the best one, its files and what is next.

    Args:
        config: the config of the run.
        workdir: directory of the run. An unfinished run in it is resumed.
        allow_changes: as for `train`.

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
        print(_guide(workdir))


def _guide(workdir: str) -> str:
    """Return where the files of a finished run are, and commands to try next."""
    run = shlex.quote(str(workdir))
    return f"""
Files in {workdir}:
  model.safetensors  the best network
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
