"""The train command of train.py and ``python -m fcn_jax train``."""

import logging

from tqdm.contrib.logging import logging_redirect_tqdm

from fcn_jax.evaluation.report import table
from fcn_jax.processes import is_main
from fcn_jax.training.config import Config
from fcn_jax.training.loop import train


def train_and_report(
    config: Config, workdir: str, *, allow_changes: bool = False
) -> None:
    """Train a network and print the figures of the best one and where its files are.

    Args:
        config: the config of the run.
        workdir: directory of the run. An unfinished run in it is resumed.
        allow_changes: as for `train`.

    Raises:
        ValueError, KeyboardInterrupt: as `train` does.
        FloatingPointError: as `train` does, with the fields that may help.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():  # Messages leave the progress bar whole.
            figures = train(config, workdir, allow_changes=allow_changes)
    except FloatingPointError as error:
        advice = "see config.optim.learning_rate and config.optim.warmup_steps"
        raise FloatingPointError(f"{error}: {advice}") from error
    if is_main():
        print(f"Best network, of step {figures['step']}:\n{table(figures)}")
        print(f"Pictures: {workdir}/results.png, {workdir}/curves.png")
