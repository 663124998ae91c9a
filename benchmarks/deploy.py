"""Measure the ways to deploy a network beside each other, in one run.

    python benchmarks/deploy.py --out deploy.json

The ways are `fcn_jax.predict`, the exported file for JAX, and the .onnx file in
onnxruntime and, where it is installed, in OpenVINO: uint8 pixels in, labels out, one
image after the other. Of each way the first labels are timed, from the file on, and
then images of that size in turns. The network has random weights, because speed does
not depend on their values, and full width.

On a CPU that computes in bfloat16, OpenVINO does so unless it is told not to. It is
measured both ways.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnxruntime

import fcn_jax
from fcn_jax import FCN, Network

OPENVINO_INSTALLED = importlib.util.find_spec("openvino") is not None

Runner = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    args = arguments()
    net = harness.random_network(FCN(args.variant, width=args.width))
    image = np.random.default_rng(0).integers(
        0, 256, (1, args.side, args.side, 3), np.uint8
    )
    print(f"{harness.machine()}, {args.variant}, {args.side}x{args.side}")
    with tempfile.TemporaryDirectory() as folder:
        openers = ways(net, Path(folder))
        sizes = {
            path.suffix: path.stat().st_size for path in sorted(Path(folder).iterdir())
        }
        first, runs, labels = {}, {}, {}
        for name, opener in openers.items():
            start = time.perf_counter()
            runs[name] = opener()
            labels[name] = runs[name](image)
            first[name] = time.perf_counter() - start
        times = harness.time_in_turns(
            {name: lambda run=run: run(image) for name, run in runs.items()},
            repeats=args.repeats,
            sample=args.sample,
        )
    found = summary(times, first, labels)
    for name, row in found.items():
        print(
            f"{name:<22} {row['images/s']:8.2f} images/s, ratio {row['ratio']:.2f}, "
            f"first labels after {row['first']:.1f} s, "
            f"{100 * row['agreement']:.3f} % of the labels as predict"
        )
    if not OPENVINO_INSTALLED:
        print("openvino: not installed")
    harness.write_figures(args, {"ways": found, "bytes": sizes})


def arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__, side=500 if harness.ON_CPU else 512, width=1.0, repeats=5, sample=0.5
    )
    choices = ("fcn32s", "fcn16s", "fcn8s")
    parser.add_argument("--variant", default="fcn8s", choices=choices, help="(fcn8s)")
    return parser.parse_args()


def ways(net: Network, folder: Path) -> dict[str, Callable[[], Runner]]:
    """Write the files of a network; return what opens them, by the way to deploy it."""
    weights, jax_file, onnx_file = (
        folder / f"net{suffix}" for suffix in (".safetensors", ".npz", ".onnx")
    )
    fcn_jax.save(weights, net)
    fcn_jax.export(jax_file, net)
    fcn_jax.export(onnx_file, net)
    found = {
        "fcn_jax.predict": lambda: predictor(weights),
        "file for JAX": lambda: fcn_jax.load_exported(jax_file),
        "onnxruntime": lambda: in_onnxruntime(onnx_file),
    }
    if OPENVINO_INSTALLED:
        for kind, dtype in (("", "f32"), (" bfloat16", "bf16")):
            opener = lambda dtype=dtype: in_openvino(onnx_file, dtype)  # noqa: E731
            found[f"OpenVINO{kind}"] = opener
    return found


def predictor(weights: Path) -> Runner:
    net = fcn_jax.load(weights)
    return lambda image: fcn_jax.predict(net, image)


def in_onnxruntime(path: Path) -> Runner:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def in_openvino(path: Path, dtype: str) -> Runner:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": dtype, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda image: compiled(image)[0]


def summary(
    times: dict[str, list[float]],
    first: dict[str, float],
    labels: dict[str, np.ndarray],
) -> dict[str, dict[str, Any]]:
    """Return the figures of each way; the ratio is to the speed of predict."""
    seconds, (base, *_) = harness.medians(times), times
    return {
        name: {
            "images/s": 1 / seconds[name],
            "ratio": harness.ratio(times, base, name),
            "spread": [min(times[name]), max(times[name])],
            "first": first[name],
            "agreement": float(np.mean(labels[name] == labels[base])),
        }
        for name in times
    }


if __name__ == "__main__":
    main()
