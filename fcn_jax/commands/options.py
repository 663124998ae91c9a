"""Options that several commands share, and what they stand for."""

import argparse
from collections.abc import Callable
from pathlib import Path

from fcn_jax.models.fcn import fields_of
from fcn_jax.network import DTYPES, Network
from fcn_jax.processes import initialize
from fcn_jax.training.config import CONFIG_FILE, Config, load_config, make_model
from fcn_jax.training.overrides import config_help, read_config
from fcn_jax.weights.load import RUN_FILE, load

WEIGHTS = "weight file, run directory, or published name such as fcn8s-heavy-pascal"
CONFIG = "file, or name such as quickstart; --config.field=value sets a field"


class _HelpConfig(argparse.Action):
    """Print the fields of a config and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(config_help())
        parser.exit()


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that needs a config."""
    parser.add_argument("--config", required=True, help=CONFIG)
    add_config_help(parser)


def add_config_help(parser: argparse.ArgumentParser) -> None:
    """Add the option that lists the fields of a config."""
    about = "list all fields of a config with their meaning"
    parser.add_argument("--helpconfig", action=_HelpConfig, nargs=0, help=about)


def config_of(args: argparse.Namespace) -> Config:
    """Return the config that --config and --config.field=value give."""
    return read_config(args.config, args.overrides)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a network."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--run", type=Path, help="run directory")
    group.add_argument("--weights", help=WEIGHTS)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the option of what a network computes in."""
    text = "what to compute in; default: float32"
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help=text)


def network_of(
    args: argparse.Namespace, *, load: Callable[[str | Path], Network] = load
) -> tuple[Network, Config | None]:
    """Return the network of --run and the config of the run, or that of --weights.

    Args:
        args: the options.
        load: reads the network; `fcn_jax.weights.load.load_outline` leaves its arrays.
    """
    if not args.run:
        return load(args.weights), None
    config, net = load_config(args.run / CONFIG_FILE), load(args.run)
    _check_same(args.run, config, net)
    # Runs of older versions keep the size in the config alone.
    return net.replace(size=net.size or config.data.size), config


def _check_same(workdir: Path, config: Config, net: Network) -> None:
    """Raise ValueError if the config of a run describes another network than it has."""
    told, true = fields_of(make_model(config)), fields_of(net.model)
    for name in told.keys() - {"dropout"}:  # Only a training depends on that.
        if told[name] != true[name]:
            raise ValueError(
                f"{workdir / CONFIG_FILE} says {name} = {told[name]!r}, and "
                f"{workdir / RUN_FILE} has {true[name]!r}: one of them is of another "
                f"run; use --weights {workdir} with --data or --config"
            )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options that join a process with others."""
    add = parser.add_argument
    add("--coordinator", help="host:port of process 0, if no scheduler tells it")
    add("--num_processes", type=int, help="number of processes of the run")
    add("--process_id", type=int, help="number of this process, from 0")


def join_processes(args: argparse.Namespace) -> None:
    """Join this process with the others that the options or a scheduler tell of."""
    initialize(args.coordinator, args.num_processes, args.process_id)


def count(text: str) -> int:
    """Return the whole number of an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)
