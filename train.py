"""Train and evaluate a network: python train.py --config FILE --workdir DIR.

``python -m fcn_jax train`` does the same for a single process.
"""

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; --config.field=value overrides a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; an unfinished run in it is resumed."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, if a scheduler does not tell it."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes of the run."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Run the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    from fcn_jax.files import enable_compilation_cache
    from fcn_jax.processes import initialize
    from fcn_jax.training.command import train_and_report

    try:
        enable_compilation_cache()
        initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        train_and_report(_CONFIG.value, _WORKDIR.value)
    except (ValueError, FloatingPointError, OSError, KeyboardInterrupt) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    app.run(main)
