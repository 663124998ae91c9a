"""Convert a weight file of any kind to safetensors."""

import argparse
from pathlib import Path

from fcn_jax.commands.options import WEIGHTS
from fcn_jax.weights.load import check_fit, read_file, save


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("source", metavar="IN", help=WEIGHTS)
    add("target", type=Path, metavar="OUT.safetensors")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if args.target.suffix != ".safetensors":
        raise ValueError(f"{args.target}: name what is written .safetensors")
    if args.target.resolve() == Path(args.source).resolve():
        raise ValueError(f"{args.target} is the source: name another file to write")
    file = read_file(args.source)
    save(args.target, check_fit(args.source, file))
    print(f"Written: {args.target}, from {file.source}")
    return 0
