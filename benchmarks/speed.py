"""Measure FCN-8s at full width beside the same network in plain PyTorch, in one run.

    python benchmarks/speed.py --out speed.json

Without torch only fcn_jax is measured. From a checkout that is not installed,
PYTHONPATH=. runs it.

Both sides take the same random pixels and weights, and their scores are compared before
anything is timed. Then they take turns: inference (uint8 pixels in, labels out) of one
image and of a batch, and a training step (SGD with momentum). Of PyTorch the faster of
eager and `torch.compile` counts. On an accelerator both compute in bfloat16 from
float32 parameters (inference: parameters cast before), on a CPU in float32.
"""

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

# Both libraries share the accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import harness
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import FCN, Network
from fcn_jax.inference.programs import labels_of, scores_of
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

if harness.TORCH_INSTALLED:
    import fcn8s_torch

NUM_CLASSES = 21
STRIDES = {"fc6": 32, "fc7": 32, "score_fr": 32, "score_pool4": 16, "score_pool3": 8}
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4

# Each call does the work once.
Runs = dict[str, Callable[[], Any]]


def main() -> None:
    args = arguments()
    net = harness.random_network(
        FCN("fcn8s", NUM_CLASSES, width=args.width, dtype=jnp.dtype(args.dtype))
    )
    figures: dict[str, Any] = {"peak": matmul_peak(args)}
    peak = max(figures["peak"].values())
    print(f"{harness.machine()}, {args.dtype}")
    print(f"matrix product: {peak / 1e12:.2f} TFLOP/s at best")
    if harness.TORCH_INSTALLED:
        figures["torch"] = fcn8s_torch.torch.__version__
        figures["difference"] = difference(net, args)
        print(f"largest difference of the scores: {figures['difference']:.1e}")
    else:
        print("torch: not installed")
    figures["cases"] = {}
    for kind, images, side in (
        (inference, 1, args.single_side),
        (inference, args.batch_size, args.side),
        (training, args.batch_size, args.side),
    ):
        name = f"{kind.__name__}, batch {images}, {side}x{side}"
        times = alternate(kind(net, random_images(images, side), args), args)
        work = images * flops(net, side, training=kind is training)
        figures["cases"][name] = found = summary(times, images, work, peak)
        print(row(name, found), flush=True)
    harness.write_figures(args, figures)


def arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        side=256 if harness.ON_CPU else 512,
        batch_size=4 if harness.ON_CPU else 16,
        width=1.0,
        repeats=7,
        sample=0.5,
    )
    add = parser.add_argument
    add("--single-side", type=int, default=500, help="side of the one image")
    side = 2048 if harness.ON_CPU else 8192
    add("--product-side", type=int, default=side, help="side of the matrix product")
    dtype = "float32" if harness.ON_CPU else "bfloat16"
    add("--dtype", default=dtype, choices=("float32", "bfloat16"), help="of both")
    add("--no-compile", action="store_true", help="run PyTorch only eagerly")
    return parser.parse_args()


def alternate(runs: Runs, args: argparse.Namespace) -> dict[str, list[float]]:
    def wait(result: Any) -> None:
        jax.block_until_ready(result)
        if harness.TORCH_INSTALLED:
            fcn8s_torch.synchronize()

    options = {"repeats": args.repeats, "sample": args.sample, "wait": wait}
    return harness.time_in_turns(runs, **options)


def matmul_peak(args: argparse.Namespace) -> dict[str, float]:
    """Return the FLOP/s of a large square matrix product, by library."""
    side = args.product_side
    a, matmul = jnp.ones((side, side), args.dtype), jax.jit(jnp.matmul)
    runs: Runs = {"jax": lambda: matmul(a, a)}
    if harness.TORCH_INSTALLED:
        runs["torch"] = fcn8s_torch.product(side, args.dtype)
    times = alternate(runs, args)
    return {name: 2 * side**3 / min(values) for name, values in times.items()}


def difference(net: Network, args: argparse.Namespace) -> float:
    """Return the largest difference of the scores, relative to the largest score."""
    image = random_images(1, min(97, args.single_side))
    expected = fcn8s_torch.scores(net.params, image, args.dtype)
    found = np.asarray(scores_of(net, image))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def random_images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def inference(net: Network, image: np.ndarray, args: argparse.Namespace) -> Runs:
    cast = jax.tree.map(lambda x: x.astype(args.dtype), net)
    pixels = jax.device_put(image)
    runs: Runs = {"fcn_jax": lambda: labels_of(cast, pixels)}
    if harness.TORCH_INSTALLED:
        compiled = not args.no_compile
        runs |= fcn8s_torch.inference(net.params, image, args.dtype, compiled)
    return runs


def training(net: Network, image: np.ndarray, args: argparse.Namespace) -> Runs:
    label = np.random.default_rng(1).integers(0, NUM_CLASSES, image.shape[:3], np.int32)
    label[:, : image.shape[1] // 10] = 255
    options = {"momentum": MOMENTUM, "weight_decay": DECAY}
    tx = make_optimizer("sgd", lambda step: RATE, **options)
    step = jax.jit(make_train_step(net.model, tx), donate_argnums=0)
    # A copy: the step takes over the memory of its state.
    state, key = init_state(jax.tree.map(jnp.copy, net.params), tx), jax.random.key(0)
    batch = jax.device_put({"image": image, "label": label})

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch, key)
        return state, metrics

    runs: Runs = {"fcn_jax": run}
    if harness.TORCH_INSTALLED:
        options = {"rate": RATE, "momentum": MOMENTUM, "decay": DECAY}
        compiled = not args.no_compile
        runs |= fcn8s_torch.training(
            net.params, image, label, args.dtype, compiled, **options
        )
    return runs


def summary(
    times: dict[str, list[float]], images: int, work: float, peak: float
) -> dict[str, Any]:
    """Return medians and what follows from them.

    The ratio is above 1 if fcn_jax is faster than the faster form of torch.
    """
    seconds = harness.medians(times)
    sides, best = {"fcn_jax": seconds["fcn_jax"]}, {}
    if others := seconds.keys() - sides:
        name = min(others, key=seconds.get)
        sides["torch"] = seconds[name]
        best = {"best of torch": name, "ratio": harness.ratio(times, name, "fcn_jax")}
    return {
        "seconds": seconds,
        "spread": {name: [min(v), max(v)] for name, v in times.items()},
        **best,
        "images/s": {side: images / s for side, s in sides.items()},
        "FLOP/s": {side: work / s for side, s in sides.items()},
        "of peak": {side: work / s / peak for side, s in sides.items()},
    }


def flops(net: Network, side: int, *, training: bool) -> float:
    """Return the FLOP of one image: two for each multiplication of a convolution.

    Training takes three times as many, less the gradient of the pixels. Upsampling and
    everything else is not counted.
    """
    forward = first = 0.0
    for layer, arrays in (net.params["body"] | net.params["head"]).items():
        stride = STRIDES.get(layer) or 2 ** (int(layer[4]) - 1)  # By conv's block.
        work = 2.0 * math.prod(arrays["kernel"].shape) * math.ceil(side / stride) ** 2
        forward += work
        if layer == "conv1_1":
            first = work
    return 3 * forward - first if training else forward


def row(name: str, found: dict[str, Any]) -> str:
    rates = found["images/s"]
    text = f"{name:<34} fcn_jax {rates['fcn_jax']:8.2f} images/s"
    if "torch" in rates:
        text += f", {found['best of torch']} {rates['torch']:8.2f}"
        text += f", ratio {found['ratio']:.2f}"
    text += f", {found['FLOP/s']['fcn_jax'] / 1e12:8.3f} TFLOP/s"
    return f"{text}, {100 * found['of peak']['fcn_jax']:.0f} % of peak"


if __name__ == "__main__":
    main()
