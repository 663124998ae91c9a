"""The command line: python -m fcn_jax COMMAND, see --help."""

import argparse
import contextlib
import math
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGINT, set_wakeup_fd
from typing import Any

import jax
import numpy as np

from fcn_jax.data.shorten import printable
from fcn_jax.evaluation.evaluate import Evaluation, evaluate_over_processes
from fcn_jax.evaluation.report import (
    beside_published,
    table,
    write_confusion,
    write_report,
)
from fcn_jax.evaluation.summary import Summary, summarize_evaluation
from fcn_jax.files import enable_compilation_cache
from fcn_jax.inference.demo import serve_demo
from fcn_jax.inference.export import OUTPUTS, check_export_path, export
from fcn_jax.inference.image_files import predict_files
from fcn_jax.inference.shares import (
    ClassShares,
    in_words,
    write_shares_csv,
    write_shares_json,
)
from fcn_jax.network import Network, Palette
from fcn_jax.processes import initialize, is_main, main_first, wait_for_all
from fcn_jax.training.check_data import check_data
from fcn_jax.training.command import train_and_report
from fcn_jax.training.config import CONFIG_FILE, Config, load_config, make_source
from fcn_jax.training.log import LOG_FILE, read_log
from fcn_jax.training.overrides import config_help, read_config, split_overrides
from fcn_jax.training.recipes import voc_data
from fcn_jax.training.report_page import run_facts, write_page, write_run_page
from fcn_jax.training.verify import assert_same_network, verdict_table, verify_run
from fcn_jax.visualize import save_labels
from fcn_jax.weights.describe import describe
from fcn_jax.weights.load import check_fit, load, read_file, save

_WEIGHTS = "weight file, run directory, or published name such as fcn8s-heavy-pascal"
_DEMO_EXAMPLES = 4
_INTERRUPTED = 130  # Exit status of a command that Ctrl-C ended, by convention.
_CONFIG = "file, or name such as quickstart; --config.field=value sets a field"


class _HelpConfig(argparse.Action):
    """Print the fields of a config and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(config_help())
        parser.exit()


_HELP_CONFIG = {
    "action": _HelpConfig,
    "nargs": 0,
    "help": "list all fields of a config with their meaning",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    args, unknown = parser.parse_known_args(words)
    args.line = f"python -m fcn_jax {shlex.join(words)}"
    args.overrides, strange = split_overrides(unknown)
    if args.overrides and not getattr(args, "config", None):
        strange = unknown
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    # Training handles the signal itself.
    training = args.name == "train"
    ending = contextlib.nullcontext() if training else _ending_on_interrupt(args.name)
    try:
        with ending:
            return args.command(args)
    except KeyboardInterrupt as error:
        reason = str(error) or "interrupted"
    except MemoryError as error:
        reason = f"the memory is full: {error}"
    except (ValueError, FloatingPointError, OSError) as error:
        reason = str(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = f"the memory of the device is full: {error}"
    print(f"fcn_jax {args.name}: {reason}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _ending_on_interrupt(command: str) -> Iterator[None]:
    """End the process soon after Ctrl-C, whatever it computes.

    Python raises KeyboardInterrupt only after the compiled program at work, which may
    take a minute, and then waits for threads; and it forgets one that is raised in a
    callback of the garbage collector. So a thread ends the process a second after the
    signal. By then an unfinished file is removed: none is written while a compiled
    program is at work.
    """
    end, wake = socket.socketpair()
    wake.setblocking(False)

    def wait() -> None:
        with end:
            while signal := end.recv(1):
                if signal[0] == SIGINT:
                    time.sleep(1)
                    leave()

    def leave() -> None:
        print(f"\nfcn_jax {command}: interrupted", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)

    before = set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        leave()
    finally:
        set_wakeup_fd(before)
        wake.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fcn_jax")
    commands = parser.add_subparsers(dest="name", required=True)

    def add_command(
        name: str, run: Callable, help: str, *, network: bool = False
    ) -> Callable:
        command = commands.add_parser(name, help=help)
        command.set_defaults(command=run)
        if network:
            group = command.add_mutually_exclusive_group(required=True)
            group.add_argument("--run", type=Path, help="run directory")
            group.add_argument("--weights", help=_WEIGHTS)
        return command.add_argument

    _add_data_commands(add_command)
    _add_network_commands(add_command)
    return parser


def _add_data_commands(add_command: Callable) -> None:
    add = add_command("train", _train, "train and evaluate a network")
    add("--config", required=True, help=_CONFIG)
    add("--helpconfig", **_HELP_CONFIG)
    add("--workdir", required=True, help="run directory; an unfinished run is resumed")
    allow = "resume with other values of fields that alter the run"
    add("--allow_changes", action="store_true", help=allow)
    _add_process_options(add)

    add = add_command("evaluate", _evaluate, "score a network on a split", network=True)
    add("--data", choices=("voc",), help="the data set, for --weights")
    add("--config", help=f"or a config with the data set, for --weights: {_CONFIG}")
    add("--helpconfig", **_HELP_CONFIG)
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
    _add_process_options(add)

    add = add_command("report", _report, "write the report page of a run anew")
    add("--run", type=Path, required=True, help="run directory")

    add = add_command("check-data", _check_data, "list the faults of a data set")
    add("--config", required=True, help=_CONFIG)
    add("--helpconfig", **_HELP_CONFIG)
    add("--out", type=Path, required=True, help="folder for the results")
    add("--augmented", action="store_true", help="also draw augmented examples")


def _add_network_commands(add_command: Callable) -> None:
    add = add_command("predict", _predict, "segment image files", network=True)
    add("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    add("--out", type=Path, required=True, help="folder for the results")
    extra = "folder with the next channels of each image; may be repeated"
    add("--extra", type=Path, action="append", default=[], metavar="FOLDER", help=extra)
    add("--batch-size", type=_count, default=0, help="default: 8, on a CPU 1")
    scales = "average over scaled copies of the image, such as 0.75,1,1.25"
    add("--scales", type=_scales, default=(1.0,), help=scales)
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--probabilities", action="store_true", help="also write .npz files of float16")
    add("--legend", action="store_true", help="draw a legend below each overlay")
    table = "pixels, share and mean confidence of each class in each image"
    add("--csv", type=Path, metavar="FILE.csv", help=table)
    add("--json", type=Path, metavar="FILE.json", help="the same as JSON")
    _add_process_options(add)

    about = "open a web page that segments photographs"
    add = add_command("demo", _demo, about, network=True)
    host = "address to listen on; default: 127.0.0.1, for this machine alone"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=_count, default=7860, help="default: 7860")

    about = "write a file that runs without fcn_jax"
    add = add_command("export", _export, about, network=True)
    formats = ".npz or .jax for JAX, .onnx for onnxruntime and others"
    add("--out", type=Path, required=True, metavar="FILE", help=formats)
    add("--output", choices=OUTPUTS, default="labels", help="default: labels")

    about = "describe a weight file, or verify all files of a run"
    add = add_command("inspect", _inspect, about)
    add("file", metavar="FILE", help=_WEIGHTS)

    convert = "convert a weight file of any kind to safetensors"
    add = add_command("convert", _convert, convert)
    add("source", metavar="IN", help=_WEIGHTS)
    add("target", type=Path, metavar="OUT.safetensors")


def _add_process_options(add: Callable) -> None:
    add("--coordinator", help="host:port of process 0, if no scheduler tells it")
    add("--num_processes", type=int, help="number of processes of the run")
    add("--process_id", type=int, help="number of this process, from 0")


def _join(args: argparse.Namespace) -> None:
    initialize(args.coordinator, args.num_processes, args.process_id)


def _network(args: argparse.Namespace) -> tuple[Network, Config | None]:
    """Return the network of --run and the config of the run, or that of --weights."""
    if not args.run:
        return load(args.weights), None
    config, net = load_config(args.run / CONFIG_FILE), load(args.run)
    assert_same_network(args.run, config, net)
    # Runs of older versions keep the size in the config alone.
    return net.replace(size=net.size or config.data.size), config


def _train(args: argparse.Namespace) -> int:
    config = _config(args)
    _join(args)
    train_and_report(
        config, args.workdir, allow_changes=args.allow_changes, command=args.line
    )
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    if args.run and (args.data or args.config):
        raise ValueError(
            "--run has the config of the run: leave out --data and --config, or pass "
            f"--weights {args.run} to evaluate on other data"
        )
    _join(args)
    # Read the config first, so that its errors come before a download.
    given = None if args.run else _data_config(args)
    net, config = _network(args)
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
    net = net.replace(class_names=config.class_names())
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


def _report(args: argparse.Namespace) -> int:
    print(f"Report: {write_run_page(args.run, command=args.line)}")
    return 0


def _resized_as(net: Network, config: Config) -> Network:
    """Return the network with the input size that the data's config asks for."""
    size = tuple(config.data.size)
    if size and net.size and size != net.size:
        raise ValueError(
            f"the network resizes images to {net.size}, and config.data.size = {size}: "
            f'pass --config.data.size="{net.size}"'
        )
    return net.replace(size=net.size or size)


def _data_config(args: argparse.Namespace) -> Config:
    """Return the config of the data that --data or --config names."""
    if bool(args.data) == bool(args.config):
        raise ValueError("with --weights, pass --data voc or --config FILE")
    if args.data:
        return Config(data=voc_data("train", "val"))
    return _config(args)


def _config(args: argparse.Namespace) -> Config:
    """Return the config that --config and --config.field=value give."""
    return read_config(args.config, args.overrides)


def _label_saver(folder: Path, palette: Palette) -> Callable[[str, np.ndarray], None]:
    """Return a function that saves predictions in a folder."""

    def save(name: str, labels: np.ndarray) -> None:
        # The stem alone: a name such as ../../x must not lead out of the folder.
        stem = _file_name(Path(name).stem)
        save_labels(folder / f"{stem}.png", labels, palette)

    return save


def _file_name(name: str) -> str:
    """Replace what the names of files must not have on Windows, such as the colon.

    TFDS has splits such as "train[:100]".
    """
    return re.sub(r'[<>:"/\\|?*]', "_", name)


def _predict(args: argparse.Namespace) -> int:
    for path, ending in ((args.csv, ".csv"), (args.json, ".json")):
        if path and path.suffix != ending:  # Such as an image.
            raise ValueError(f"{path}: name what is written {ending}")
    _join(args)
    net, _ = _network(args)
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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)


def _check_data(args: argparse.Namespace) -> int:
    return check_data(_config(args), args.out, augmented=args.augmented)


def _demo(args: argparse.Namespace) -> int:
    net, config = _network(args)
    examples = _examples(config) if config else []
    serve_demo(net, examples=examples, host=args.host, port=args.port)
    return 0


def _examples(config: Config) -> list[tuple[str, np.ndarray]]:
    """Return some validation images of a run with their names, if they are there."""
    try:
        source = make_source(config, config.data.eval_split)
        found = [source[i] for i in range(min(_DEMO_EXAMPLES, len(source)))]
    except (ValueError, OSError) as error:
        print(f"no examples are offered: {printable(error)}", file=sys.stderr)
        return []
    return [(example["name"], example["image"][..., :3]) for example in found]


def _export(args: argparse.Namespace) -> int:
    check_export_path(args.out)
    net, _ = _network(args)
    sizes = export(args.out, net, output=args.output)
    checked = f"checked against the network at {sizes} sizes of image"
    print(f"Written: {args.out}, {checked if sizes else 'not checked'}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
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


def _convert(args: argparse.Namespace) -> int:
    if args.target.suffix != ".safetensors":
        raise ValueError(f"{args.target}: name what is written .safetensors")
    if args.target.resolve() == Path(args.source).resolve():
        raise ValueError(f"{args.target} is the source: name another file to write")
    file = read_file(args.source)
    save(args.target, check_fit(args.source, file))
    print(f"Written: {args.target}, from {file.source}")
    return 0


def run(argv: list[str] | None = None) -> None:
    """Run the command of this process: the entry point of ``fcn-jax``."""
    enable_compilation_cache()
    sys.exit(main(argv))


if __name__ == "__main__":
    run()
