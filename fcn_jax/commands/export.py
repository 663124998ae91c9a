"""Write a file that runs without fcn_jax."""

import argparse
from pathlib import Path

from fcn_jax.commands.options import add_dtype, add_network, network_of
from fcn_jax.inference.export import OUTPUTS, check_export_path, export


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_network(parser)
    add = parser.add_argument
    formats = ".npz or .jax for JAX, .onnx for onnxruntime and others"
    add("--out", type=Path, required=True, metavar="FILE", help=formats)
    add("--output", choices=OUTPUTS, default="labels", help="default: labels")
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    check_export_path(args.out)
    net, _ = network_of(args)
    sizes = export(args.out, net, output=args.output, dtype=args.dtype)
    checked = f"checked against the network at {sizes} sizes of image"
    print(f"Written: {args.out}, {checked if sizes else 'not checked'}")
    return 0
