"""Write the report page of a run anew."""

import argparse
from pathlib import Path

from fcn_jax.training.report_page import write_run_page


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--run", type=Path, required=True, help="run directory")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    print(f"Report: {write_run_page(args.run, command=args.line)}")
    return 0
