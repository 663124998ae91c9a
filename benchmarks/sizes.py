"""What images of many sizes cost: a program for each size, or for each bucket.

    python benchmarks/sizes.py --out sizes.json

Runs the same 100 images of 25 sizes through FCN-8s (a) with `jax.jit` alone, which
compiles for each size, and (b) with `predict_many`, which compiles for each bucket.
Both start without a compiled program; the labels must be equal but for rounding.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.inference.buckets import predict_many
from fcn_jax.inference.programs import labels_of
from fcn_jax.models.fcn import FCN
from fcn_jax.weights.layers import shapes_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--sizes", type=int, default=25)
    parser.add_argument("--side", type=int, default=256, help="the largest")
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()

    model = FCN(width=args.width)
    params = random_params(model)
    rng = np.random.default_rng(0)
    sizes = rng.integers(args.side // 2, args.side + 1, (args.sizes, 2)).tolist()
    images = [
        rng.integers(0, 256, (*sizes[i % args.sizes], 3)).astype(np.uint8)
        for i in range(args.images)
    ]
    exact = jax.jit(
        lambda params, x: jnp.argmax(model.apply({"params": params}, x), -1)
    )

    start = time.perf_counter()
    by_shape = [np.asarray(exact(params, image[None])[0]) for image in images]
    seconds = {"jit for each size": time.perf_counter() - start}

    start = time.perf_counter()
    by_bucket = dict(predict_many(model, params, enumerate(images)))
    seconds["predict"] = time.perf_counter() - start

    agree = np.mean([(by_bucket[i] == by_shape[i]).mean() for i in range(len(images))])
    programs = {
        "jit for each size": exact._cache_size(),
        "predict": labels_of._cache_size(),
    }
    for name in seconds:
        print(f"{name:<20}{programs[name]:4} compiles {seconds[name]:8.1f} s")
    ratio = seconds["jit for each size"] / seconds["predict"]
    print(f"ratio {ratio:.2f}; labels agree on {100 * agree:.3f} % of the pixels")
    if args.out:
        figures = {
            "device": jax.devices()[0].device_kind,
            "arguments": vars(args),
            "compiles": programs,
            "seconds": seconds,
            "ratio": ratio,
            "agreement": float(agree),
        }
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)


def random_params(model: FCN) -> dict:
    rng = np.random.default_rng(0)
    params: dict = {}
    for path, shape in shapes_of(model).items():
        part, layer, name = path.split("/")
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        array = rng.standard_normal(shape, np.float32) * np.float32(scale)
        params.setdefault(part, {}).setdefault(layer, {})[name] = jnp.asarray(array)
    return params


if __name__ == "__main__":
    main()
