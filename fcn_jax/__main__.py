"""The command line: python -m fcn_jax COMMAND, see --help."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from fcn_jax.compilation import keep_compiled
from fcn_jax.data.voc_classes import TFDS
from fcn_jax.evaluation.published import beside_published
from fcn_jax.evaluation.report import (
    judge,
    report,
    table,
    write_confusion,
    write_report,
)
from fcn_jax.inference.export import OUTPUTS, export
from fcn_jax.inference.image_files import predict_files
from fcn_jax.training.check_data import check_data
from fcn_jax.training.config import (
    CONFIG_FILE,
    Config,
    Data,
    load_config,
    make_model,
    make_source,
)
from fcn_jax.visualize import save_label_png
from fcn_jax.weights.describe import describe
from fcn_jax.weights.load import (
    Weights,
    compare,
    read,
    read_content,
    read_network,
    save_weights,
)

_WEIGHTS = "file of weights, run directory, or name such as vgg16"


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = _parser()
    args, args.overrides = parser.parse_known_args(argv)
    if strange := [a for a in args.overrides if not a.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    try:
        return args.command(args)
    except (ValueError, OSError) as error:
        print(f"fcn_jax {args.name}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fcn_jax")
    commands = parser.add_subparsers(dest="name", required=True)

    command = commands.add_parser("evaluate", help="scores of a network on a split")
    command.set_defaults(command=_evaluate)
    _add_network(command)
    command.add_argument(
        "--data", choices=("voc",), help="with --weights: the data set, or else"
    )
    command.add_argument("--config", help="a config whose data it is")
    command.add_argument("--split", help="as in the data set; default: validation")
    command.add_argument("--root", help="where the data is, if it has moved")
    command.add_argument("--manual-dir", help="where its archives are, see the README")
    command.add_argument("--out", type=Path, help="folder of results; default: the run")
    command.add_argument("--save-confusion", action="store_true", help="as CSV")
    command.add_argument(
        "--save-predictions",
        action="store_true",
        help="index PNGs, in the folders that VOC's server wants",
    )

    command = commands.add_parser("predict", help="segments image files")
    command.set_defaults(command=_predict)
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders or patterns"
    )
    _add_network(command)
    command.add_argument("--out", type=Path, required=True, help="folder of results")
    command.add_argument(
        "--batch-size", type=int, default=0, help="default: 8, on a CPU 1"
    )
    command.add_argument(
        "--scales", type=_numbers, default=(1.0,), help="to average, as 0.75,1,1.25"
    )
    command.add_argument("--flip", action="store_true", help="average with the mirror")
    command.add_argument(
        "--probabilities", action="store_true", help="write them, npz of float16"
    )

    command = commands.add_parser(
        "check-data", help="reads a data set, tells its flaws"
    )
    command.set_defaults(command=_check_data)
    command.add_argument(
        "--config", required=True, help="of configs/; --config.field=value overrides"
    )
    command.add_argument("--out", type=Path, required=True, help="folder of results")

    command = commands.add_parser("export", help="a network as a file for JAX alone")
    command.set_defaults(command=_export)
    _add_network(command)
    command.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    command.add_argument("--output", choices=OUTPUTS, default="labels")

    command = commands.add_parser("inspect", help="what a file of weights holds")
    command.set_defaults(command=_inspect)
    command.add_argument("file", metavar="FILE", help=_WEIGHTS)

    command = commands.add_parser("convert", help="weights of any kind to safetensors")
    command.set_defaults(command=_convert)
    command.add_argument("source", metavar="IN", help=_WEIGHTS)
    command.add_argument("target", type=Path, metavar="OUT.safetensors")
    return parser


def _add_network(command: argparse.ArgumentParser) -> None:
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", type=Path, help="run directory")
    network.add_argument("--weights", help=_WEIGHTS)


def _network(args: argparse.Namespace) -> tuple[Weights, Config | None]:
    """The network of --run, with the config of the run, or that of --weights."""
    if not args.run:
        return read_network(args.weights), None
    config = load_config(args.run / CONFIG_FILE)
    # The config tells in which dtype it computes, the file does not.
    return read_network(args.run)._replace(model=make_model(config)), config


def _evaluate(args: argparse.Namespace) -> int:
    given = None if args.run else _data_config(args)  # Its errors before a download.
    weights, config = _network(args)
    model, config = weights.model, config or given
    data = config.data
    data.root = args.root or data.root
    data.manual_dir = args.manual_dir or data.manual_dir
    split, out = args.split or data.eval_split, args.out or args.run or Path(".")
    if model.num_classes != data.num_classes:
        raise ValueError(
            f"the network has {model.num_classes} classes, the data {data.num_classes}"
        )
    source, names = make_source(config, split), config.class_names()
    voc = out / "results" / "VOC2012" / "Segmentation" / f"comp6_{split}_cls"
    confusion, rows = judge(
        model,
        weights.params,
        source,
        names,
        ignore_label=data.ignore_label,
        size=data.size,
        save=_label_saver(voc) if args.save_predictions else None,
    )
    figures = report(confusion, names)
    print(table(figures))
    if published := beside_published(str(args.weights), split, figures):
        print(published)
    write_report(
        out, figures, rows, names, ignore_label=data.ignore_label, suffix=f"_{split}"
    )
    print(f"Written: {out}/metrics_{split}.json, {out}/results_{split}.png")
    if args.save_confusion:
        write_confusion(out / f"confusion_{split}.csv", confusion, names)
        print(f"Written: {out}/confusion_{split}.csv")
    if args.save_predictions:
        print(f"Written: {voc}/")
    return 0


def _data_config(args: argparse.Namespace) -> Config:
    """The config of the data that --data or --config tell."""
    if bool(args.data) == bool(args.config):
        raise ValueError("with --weights, pass --data voc or --config FILE")
    if args.data:
        return Config(data=Data(**TFDS, train_split="train", eval_split="val"))
    return _config(args)


def _config(args: argparse.Namespace) -> Config:
    """The config of --config FILE --config.field=value."""
    values = flags.FlagValues()
    argv = ["fcn_jax", f"--config={args.config}", *args.overrides]
    config = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        raise ValueError(f"--config={args.config}: {error}") from error
    return config.value


def _label_saver(folder: Path) -> Callable[[str, np.ndarray], None]:
    """Saves predictions in a folder, which their names cannot lead out of."""

    def save(name: str, labels: np.ndarray) -> None:
        save_label_png(folder / f"{Path(name).stem}.png", labels)

    return save


def _predict(args: argparse.Namespace) -> int:
    weights, config = _network(args)
    written, unread = predict_files(
        weights.model,
        weights.params,
        args.images,
        args.out,
        size=config.data.size if config else (),
        batch_size=args.batch_size,
        scales=args.scales,
        flip=args.flip,
        probabilities=args.probabilities,
    )
    for _, error in unread:
        print(f"not read: {error}", file=sys.stderr)
    print(f"{written} segmented into {args.out}")
    return 1 if unread else 0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _check_data(args: argparse.Namespace) -> int:
    return check_data(_config(args), args.out)


def _export(args: argparse.Namespace) -> int:
    weights, _ = _network(args)
    export(
        args.out,
        weights.model,
        weights.params,
        output=args.output,
        class_names=weights.class_names,
    )
    print(f"Written: {args.out}, checked against the network at three sizes")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    content = read_content(args.file)
    print(describe(args.file, content))
    compare(args.file, content)
    return 0


def _convert(args: argparse.Namespace) -> int:
    if args.target.suffix != ".safetensors":
        raise ValueError(f"{args.target}: name what is written .safetensors")
    weights = read(args.source)
    save_weights(args.target, weights)
    print(f"Written: {args.target}, from {weights.source}")
    return 0


if __name__ == "__main__":
    keep_compiled()
    sys.exit(main())
