"""What the true sizes of images cost: a step with ``size`` and without, alternating.

    python benchmarks/mask.py --out mask.json

`benchmarks/exact.py` tells that the results are the same.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from sizes import random_params

from fcn_jax.models.fcn import FCN
from fcn_jax.training.steps import init_state, make_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()

    model = FCN(width=args.width, dropout=0.0, pool_scales=(0.01, 0.001))
    params = random_params(model)
    figures = {
        "device": jax.devices()[0].device_kind,
        "arguments": vars(args),
        "forward": forward(model, params, args),
        "train step": train_step(model, params, args),
    }
    print(json.dumps(figures, indent=2))
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)


def images(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (args.batch_size, args.side, args.side, 3)
    size = np.full((args.batch_size, 2), args.side - 7, np.int32)
    return rng.integers(0, 256, shape).astype(np.uint8), size


def forward(model: FCN, params: dict, args: argparse.Namespace) -> dict:
    image, size = images(args)
    apply = jax.jit(model.apply)
    return compare(
        lambda: apply({"params": params}, image, size),
        lambda: apply({"params": params}, image),
        args.repeats,
    )


def train_step(model: FCN, params: dict, args: argparse.Namespace) -> dict:
    image, size = images(args)
    label = np.zeros(image.shape[:3], np.int32)
    batch = {"image": image, "label": label}
    tx = optax.sgd(1e-6)
    step = jax.jit(make_train_step(model, tx))
    state, key = init_state(params, tx), jax.random.key(0)
    return compare(
        lambda: step(state, {**batch, "size": size}, key),
        lambda: step(state, batch, key),
        args.repeats,
    )


def compare(with_size: Callable, without: Callable, repeats: int) -> dict:
    """Medians in seconds, after one call that compiles, and their ratio."""
    times: dict[str, list[float]] = {"with size": [], "without": []}
    for i in range(repeats + 1):
        for name, run in (("with size", with_size), ("without", without)):
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i:
                times[name].append(time.perf_counter() - start)
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"ratio": found["with size"] / found["without"]}


if __name__ == "__main__":
    main()
