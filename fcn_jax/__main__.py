"""The command line: python -m fcn_jax evaluate | predict."""

import argparse
import sys
from pathlib import Path

from fcn_jax.evaluation.report import judge, table, write_report
from fcn_jax.inference.predict import predict_files
from fcn_jax.training.config import CONFIG_FILE, load_config, make_model, make_source
from fcn_jax.weights.store import load


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args)
    except (ValueError, OSError) as error:
        print(f"fcn_jax {args.name}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fcn_jax")
    commands = parser.add_subparsers(dest="name", required=True)

    command = commands.add_parser("evaluate", help="scores of a run on a split")
    command.set_defaults(command=_evaluate)
    command.add_argument("--run", type=Path, required=True, help="run directory")
    command.add_argument("--split", help="as in the data set; default: validation")
    command.add_argument("--root", help="where the data is, if it has moved")

    command = commands.add_parser("predict", help="segments image files")
    command.set_defaults(command=_predict)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--run", type=Path, required=True, help="run directory")
    command.add_argument("--out", type=Path, required=True, help="folder of results")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    config = load_config(args.run / CONFIG_FILE)
    config.data.root = args.root or config.data.root
    split = args.split or config.data.eval_split
    source = make_source(config, split)
    _, params = load(args.run)
    names = config.class_names()
    figures, rows = judge(
        make_model(config),
        params,
        source,
        names,
        ignore_label=config.data.ignore_label,
        size=config.data.size,
    )
    print(table(figures))
    write_report(
        args.run,
        figures,
        rows,
        names,
        ignore_label=config.data.ignore_label,
        suffix=f"_{split}",
    )
    print(f"Written: {args.run}/metrics_{split}.json, {args.run}/results_{split}.png")
    return 0


def _predict(args: argparse.Namespace) -> int:
    config = load_config(args.run / CONFIG_FILE)
    _, params = load(args.run)
    unread = predict_files(
        make_model(config), params, args.images, args.out, size=config.data.size
    )
    for _, error in unread:
        print(f"not read: {error}", file=sys.stderr)
    print(f"{len(set(args.images)) - len(unread)} segmented into {args.out}")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
