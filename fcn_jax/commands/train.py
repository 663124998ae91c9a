"""Train and evaluate a network."""

import argparse

from fcn_jax.commands.options import (
    add_config,
    add_processes,
    config_of,
    join_processes,
)
from fcn_jax.training.command import train_and_report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    add = parser.add_argument
    add("--workdir", required=True, help="run directory; an unfinished run is resumed")
    allow = "resume with other values of fields that alter the run"
    add("--allow_changes", action="store_true", help=allow)
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    config = config_of(args)
    join_processes(args)
    train_and_report(
        config, args.workdir, allow_changes=args.allow_changes, command=args.line
    )
    return 0
