"""Trains and evaluates a network: python train.py --config configs/quickstart.py"""

import logging

import absl.logging
from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; --config.field=value overrides a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; an unfinished run in it is resumed."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, of several; schedulers tell it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many they are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    from fcn_jax.compilation import keep_compiled
    from fcn_jax.evaluation.report import table
    from fcn_jax.processes import initialize, is_main
    from fcn_jax.training.loop import train

    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells all it does.
    logging.getLogger("fcn_jax").setLevel(logging.INFO)
    try:
        keep_compiled()
        initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        figures = train(_CONFIG.value, _WORKDIR.value)
    except (ValueError, FloatingPointError, OSError, KeyboardInterrupt) as error:
        raise SystemExit(f"train.py: {error}") from error
    if not is_main():
        return
    print(f"Best network, of step {figures.pop('step')}:\n{table(figures)}")
    print(f"Pictures: {_WORKDIR.value}/results.png, {_WORKDIR.value}/curves.png")


if __name__ == "__main__":
    app.run(main)
