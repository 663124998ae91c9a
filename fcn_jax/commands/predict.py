"""Segment image files."""

import argparse
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from fcn_jax.commands.options import (
    add_dtype,
    add_network,
    add_processes,
    count,
    join_processes,
    network_of,
)
from fcn_jax.data.shorten import printable
from fcn_jax.inference.image_files import compile_for_files, predict_files
from fcn_jax.inference.shares import (
    ClassShares,
    in_words,
    write_shares_csv,
    write_shares_json,
)
from fcn_jax.network import Network
from fcn_jax.processes import is_main
from fcn_jax.weights.load import load_outline


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_network(parser)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    add("--out", type=Path, required=True, help="folder for the results")
    extra = "folder with the next channels of each image; may be repeated"
    add("--extra", type=Path, action="append", default=[], metavar="FOLDER", help=extra)
    add("--batch-size", type=count, default=0, help="default: 8, on a CPU 1")
    scales = "average over scaled copies of the image, such as 0.75,1,1.25"
    add("--scales", type=_scales, default=(1.0,), help=scales)
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--probabilities", action="store_true", help="also write .npz files of float16")
    add("--legend", action="store_true", help="draw a legend below each overlay")
    table = "pixels, share and mean confidence of each class in each image"
    add("--csv", type=Path, metavar="FILE.csv", help=table)
    add("--json", type=Path, metavar="FILE.json", help="the same as JSON")
    add_dtype(parser)
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    for path, ending in ((args.csv, ".csv"), (args.json, ".json")):
        if path and path.suffix != ending:  # Such as an image.
            raise ValueError(f"{path}: name what is written {ending}")
    join_processes(args)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_compile_ahead, args)
        net, _ = network_of(args)
        net = net.astype(args.dtype)
    found, left_out = predict_files(
        net,
        args.images,
        args.out,
        extra=args.extra,
        batch_size=args.batch_size,
        scales=args.scales,
        flip=args.flip,
        probabilities=args.probabilities,
        legend=args.legend,
    )
    if is_main():
        _write_shares(net, found, left_out, args)
    return 1 if left_out else 0


def _compile_ahead(args: argparse.Namespace) -> None:
    """Compile the first program while the weights are read, which takes as long.

    Nobody looks for an error of this: reading or running meets it again and tells.
    """
    if args.flip or args.probabilities or args.scales != (1.0,):
        return  # These have other programs.
    net, _ = network_of(args, load=load_outline)
    net = jax.eval_shape(lambda net: net.astype(args.dtype), net)
    compile_for_files(net, args.images, batch_size=args.batch_size)


def _write_shares(
    net: Network,
    found: dict[Path, ClassShares],
    left_out: list[tuple[Path, str]],
    args: argparse.Namespace,
) -> None:
    """Print what is in each image and what was left out, and write the tables."""
    for path, shares in found.items():
        print(f"{printable(path)}: {in_words(shares, net.names)}")
    for _, error in left_out:
        print(f"left out: {printable(error)}", file=sys.stderr)
    print(f"{len(found)} segmented into {printable(args.out)}")
    writers = (args.csv, write_shares_csv), (args.json, write_shares_json)
    for path, write in writers:
        if path:
            write(path, found, net.names)
            print(f"Written: {printable(path)}")


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be numbers above 0, separated by commas"
        )
    return scales
