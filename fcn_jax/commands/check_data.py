"""List the faults of a data set."""

import argparse
from pathlib import Path

from fcn_jax.commands.options import add_config, config_of
from fcn_jax.training.check_data import check_data


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the results")
    add("--augmented", action="store_true", help="also draw augmented examples")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    return check_data(config_of(args), args.out, augmented=args.augmented)
