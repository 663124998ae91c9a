"""Describe a weight file, or verify all files of a run."""

import argparse
from pathlib import Path

from fcn_jax.commands.options import WEIGHTS
from fcn_jax.training.verify import verdict_table, verify_run
from fcn_jax.weights.describe import describe
from fcn_jax.weights.load import check_fit, read_file


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", metavar="FILE", help=WEIGHTS)


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if Path(args.file).is_dir():
        return _inspect_run(Path(args.file))
    file = read_file(args.file)
    print(describe(args.file, file))
    check_fit(args.file, file)
    return 0


def _inspect_run(workdir: Path) -> int:
    verdicts = verify_run(workdir)
    print(verdict_table(verdicts))
    if all(verdict.is_whole for verdict in verdicts):
        return 0
    raise ValueError(
        f"{workdir} is not whole: the command that trained it goes on from the last "
        "whole checkpoint, and writes what it can anew"
    )
