"""Score a network on a split of its data or of others."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.commands.options import (
    CONFIG,
    add_config_help,
    add_dtype,
    add_network,
    add_processes,
    config_of,
    join_processes,
    network_of,
)
from fcn_jax.evaluation.evaluate import Evaluation, evaluate_over_processes
from fcn_jax.evaluation.report import (
    beside_published,
    table,
    write_confusion,
    write_report,
)
from fcn_jax.evaluation.summary import Summary, summarize_evaluation
from fcn_jax.network import Network, Palette
from fcn_jax.processes import is_main, main_first, wait_for_all
from fcn_jax.training.config import Config, make_source
from fcn_jax.training.log import LOG_FILE, read_log
from fcn_jax.training.recipes import voc_data
from fcn_jax.training.report_page import run_facts, write_page
from fcn_jax.visualize import save_labels


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_network(parser)
    add = parser.add_argument
    add("--data", choices=("voc",), help="the data set, for --weights")
    add("--config", help=f"or a config with the data set, for --weights: {CONFIG}")
    add_config_help(parser)
    add("--split", help="default: the validation split")
    add("--root", help="folder of the data, if it has moved")
    add("--manual-dir", help="folder of downloaded archives")
    add("--out", type=Path, help="folder for the results; default: the run")
    add("--save-confusion", action="store_true", help="write the matrix as CSV")
    add(
        "--save-predictions",
        action="store_true",
        help="write index PNGs, in the folders that VOC's server expects",
    )
    add_dtype(parser)
    add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if args.run and (args.data or args.config):
        raise ValueError(
            "--run has the config of the run: leave out --data and --config, or pass "
            f"--weights {args.run} to evaluate on other data"
        )
    join_processes(args)
    # Read the config first, so that its errors come before a download.
    given = None if args.run else _data_config(args)
    net, config = network_of(args)
    net, config = (net, config) if config else (_resized_as(net, given), given)
    data = config.data
    data.root = args.root or data.root
    data.manual_dir = args.manual_dir or data.manual_dir
    args.split = args.split or data.eval_split
    args.out = args.out or args.run or Path(".")
    if net.model.num_classes != data.num_classes:
        raise ValueError(
            f"the network has {net.model.num_classes} classes, the data "
            f"{data.num_classes}"
        )
    if net.model.in_channels != config.model.in_channels:
        raise ValueError(
            f"the network takes {net.model.in_channels} input channels, the data have "
            f"{config.model.in_channels}: pass --config with data of as many, and its "
            "model.in_channels set"
        )
    net = net.replace(class_names=config.class_names()).astype(args.dtype)
    voc = args.out / "results" / "VOC2012" / "Segmentation"
    voc /= f"comp6_{_file_name(args.split)}_cls"
    with main_first():  # It may prepare the data set.
        source = make_source(config, args.split)
    save = _label_saver(voc, net.palette) if args.save_predictions else None
    found = evaluate_over_processes(net, source, save=save, progress=is_main())
    if is_main():
        _write_evaluation(net, source, found, config, args)
        if args.save_predictions:
            print(f"Written: {voc}/")
    wait_for_all()
    return 0


def _data_config(args: argparse.Namespace) -> Config:
    """Return the config of the data that --data or --config names."""
    if bool(args.data) == bool(args.config):
        raise ValueError("with --weights, pass --data voc or --config FILE")
    if args.data:
        return Config(data=voc_data("train", "val"))
    return config_of(args)


def _resized_as(net: Network, config: Config) -> Network:
    """Return the network with the input size that the data's config asks for."""
    size = tuple(config.data.size)
    if size and net.size and size != net.size:
        raise ValueError(
            f"the network resizes images to {net.size}, and config.data.size = {size}: "
            f'pass --config.data.size="{net.size}"'
        )
    return net.replace(size=net.size or size)


def _label_saver(folder: Path, palette: Palette) -> Callable[[str, np.ndarray], None]:
    """Return a function that saves predictions in a folder."""

    def save(name: str, labels: np.ndarray) -> None:
        # The stem alone: a name such as ../../x must not lead out of the folder.
        stem = _file_name(Path(name).stem)
        save_labels(folder / f"{stem}.png", labels, palette)

    return save


def _write_evaluation(
    net: Network,
    source: Any,
    found: Evaluation,
    config: Config,
    args: argparse.Namespace,
) -> None:
    """Print what an evaluation found, and write its files."""
    out, split, split_name = args.out, args.split, _file_name(args.split)
    print(table(found.figures))
    if published := beside_published(str(args.weights), split, found.figures):
        print(published)
    write_report(out, net, source, found, suffix=f"_{split_name}")
    print(f"Written: {out}/metrics_{split_name}.json")
    pictures = ("results", "errors", "confusion")
    paths = (f"{out}/{name}_{split_name}.png" for name in pictures)
    print(f"Pictures: {', '.join(paths)}")
    summary = summarize_evaluation(net, source, found, split=split)
    _write_report_page(out / f"report_{split_name}.html", summary, config, args)
    if args.save_confusion:
        write_confusion(out / f"confusion_{split_name}.csv", found)
        print(f"Written: {out}/confusion_{split_name}.csv")


def _write_report_page(
    path: Path, summary: Summary, config: Config, args: argparse.Namespace
) -> None:
    """Write the report of an evaluation, with the curves of a run if it is of one."""
    if args.run:
        facts, records = run_facts(config), read_log(args.run / LOG_FILE)
    else:
        facts = {"Network": args.weights, "Data": config.data.name}
        records = []
    write_page(
        path,
        summary,
        config=config,
        facts=facts,
        records=records,
        settings=bool(args.run),
        command=args.line,
    )
    print(f"Report: {path}")


def _file_name(name: str) -> str:
    """Replace what the names of files must not have on Windows, such as the colon.

    TFDS has splits such as "train[:100]".
    """
    return re.sub(r'[<>:"/\\|?*]', "_", name)
