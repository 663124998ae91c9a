"""Measure what the true sizes of images cost: forward and train step, with and without.

    python benchmarks/mask.py --out mask.json

`benchmarks/exact.py` checks that the results are the same.
"""

import argparse
import json
from collections.abc import Callable

import harness
import jax
import numpy as np
import optax

from fcn_jax import FCN
from fcn_jax.inference.programs import scores_of
from fcn_jax.training.steps import init_state, make_train_step


def main() -> None:
    options = {"side": 256, "batch_size": 1, "width": 1.0, "repeats": 7, "sample": 0.5}
    args = harness.make_parser(__doc__, **options).parse_args()
    model = FCN(width=args.width, dropout=0.0, pool_scales=(0.01, 0.001))
    net = harness.random_network(model)
    shape = (args.batch_size, args.side, args.side)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    batch = {"image": image, "label": np.zeros(shape, np.int32)}
    size = np.full((args.batch_size, 2), max(1, args.side - 7), np.int32)
    tx = optax.sgd(1e-6)
    step = jax.jit(make_train_step(model, tx))
    state, key = init_state(net.params, tx), jax.random.key(0)
    figures = {
        "forward": compare(
            lambda: scores_of(net, image, size), lambda: scores_of(net, image), args
        ),
        "train step": compare(
            lambda: step(state, {**batch, "size": size}, key),
            lambda: step(state, batch, key),
            args,
        ),
    }
    print(json.dumps(harness.write_figures(args, figures), indent=2))


def compare(with_size: Callable, without: Callable, args: argparse.Namespace) -> dict:
    """Return the medians in seconds and their ratio."""
    runs = {"with size": with_size, "without": without}
    times = harness.time_in_turns(runs, repeats=args.repeats, sample=args.sample)
    ratio = harness.ratio(times, "with size", "without")
    return harness.medians(times) | {"ratio": ratio}


if __name__ == "__main__":
    main()
