"""Measure what images of many sizes cost: one program per size, or one per bucket.

    python benchmarks/sizes.py --out sizes.json

Runs the same 100 images of 25 sizes through FCN-8s (a) with `jax.jit` alone, which
compiles for each size, and (b) with `predict_many`, which compiles for each bucket.
Neither starts with a compiled program. The labels must be equal except for rounding.
"""

import time
from collections.abc import Callable, Iterable

import harness
import jax
import numpy as np

from fcn_jax import FCN, predict_many
from fcn_jax.inference.programs import labels_of

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    parser = harness.make_parser(__doc__, side=256, width=1.0)
    parser.add_argument("--images", type=int, default=100, help="number of images")
    parser.add_argument("--sizes", type=int, default=25, help="number of sizes")
    args = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)
    net = harness.random_network(FCN(width=args.width))
    rng = np.random.default_rng(0)
    sizes = rng.integers(args.side // 2, args.side + 1, (args.sizes, 2)).tolist()
    images = [
        rng.integers(0, 256, (*sizes[i % args.sizes], 3), np.uint8)
        for i in range(args.images)
    ]
    alternatives: dict[str, Callable[[], Iterable]] = {
        "jit for each size": lambda: (
            (i, np.asarray(labels_of(net, image[None]))[0])
            for i, image in enumerate(images)
        ),
        "predict": lambda: predict_many(net, enumerate(images)),
    }
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    labels, compiles, seconds = {}, {}, {}
    for name, run in alternatives.items():
        compiled.clear()
        start = time.perf_counter()
        labels[name] = dict(run())
        seconds[name] = time.perf_counter() - start
        compiles[name] = compiled.count(COMPILE_EVENT)
        print(f"{name:<20}{compiles[name]:4} compiles {seconds[name]:8.1f} s")
    by_size, by_bucket = labels.values()
    agreement = float(np.mean([(by_bucket[i] == by_size[i]).mean() for i in by_size]))
    ratio = seconds["jit for each size"] / seconds["predict"]
    print(f"ratio {ratio:.2f}; labels agree on {100 * agreement:.3f} % of the pixels")
    figures = {"compiles": compiles, "seconds": seconds}
    harness.write_figures(args, figures | {"ratio": ratio, "agreement": agreement})


if __name__ == "__main__":
    main()
