"""Open a web page that segments photographs."""

import argparse
import sys

import numpy as np

from fcn_jax.commands.options import add_network, count, network_of
from fcn_jax.data.shorten import printable
from fcn_jax.inference.demo import serve_demo
from fcn_jax.training.config import Config, make_source

_MOST_EXAMPLES = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_network(parser)
    add = parser.add_argument
    host = "address to listen on; default: 127.0.0.1, for this machine alone"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=count, default=7860, help="default: 7860")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    net, config = network_of(args)
    examples = _examples(config) if config else []
    serve_demo(net, examples=examples, host=args.host, port=args.port)
    return 0


def _examples(config: Config) -> list[tuple[str, np.ndarray]]:
    """Return some validation images of a run with their names, if they are there."""
    try:
        source = make_source(config, config.data.eval_split)
        found = [source[i] for i in range(min(_MOST_EXAMPLES, len(source)))]
    except (ValueError, OSError) as error:
        print(f"no examples are offered: {printable(error)}", file=sys.stderr)
        return []
    return [(example["name"], example["image"][..., :3]) for example in found]
