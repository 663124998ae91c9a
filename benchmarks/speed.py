"""FCN-8s at full width beside the same network in plain PyTorch, in one run.

    python benchmarks/speed.py --out speed.json

Needs torch and what `import fcn_jax` loads (jax, flax, optax, pillow, safetensors,
tqdm); from a checkout that is not installed, PYTHONPATH=. runs it.

Both sides take the same random pixels and weights, and their scores are compared before
anything is timed. Then they take turns: inference (uint8 pixels in, labels out) of one
image and of a batch, and a training step (SGD with momentum). Of PyTorch the faster of
eager and `torch.compile` counts, channels last. On an accelerator both compute in
bfloat16 from float32 parameters (inference: parameters cast before), on a CPU in
float32.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

# Both libraries share the accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from sizes import random_params

from fcn_jax.models.fcn import FCN
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step
from fcn_jax.weights.layers import shapes_of

try:
    import fcn8s_torch
    import torch
except ImportError as error:
    raise SystemExit("speed.py needs torch: pip install -e '.[torch]'") from error

NUM_CLASSES = 21
ON_CPU = jax.default_backend() == "cpu"
DEVICE = "cpu" if ON_CPU else "cuda"
STRIDES = {"fc6": 32, "fc7": 32, "score_fr": 32, "score_pool4": 16, "score_pool3": 8}
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4
SAMPLE_SECONDS = 0.5  # Short calls are repeated to fill so much for one sample.

# Of both sides: runs the work n times and returns when all of it is done.
Run = Callable[[int], None]


def main() -> None:
    args = arguments()
    batch, side = args.batch_size, args.side
    cases = {
        "inference, batch 1": ("inference", 1, args.single_side),
        f"inference, batch {batch}": ("inference", batch, side),
        f"training, batch {batch}": ("training", batch, side),
    }
    figures: dict[str, Any] = {
        "machine": machine(),
        "dtype": args.dtype,
        "peak": matmul_peak(args.dtype),
        "difference": difference(args.dtype),
        "cases": {},
    }
    peak = max(figures["peak"].values())
    print(f"{figures['machine']}, {args.dtype}")
    print(f"matrix product: {peak / 1e12:.2f} TFLOP/s at best")
    print(f"largest difference of the scores: {figures['difference']:.1e}")
    for name, (kind, images, size) in cases.items():
        make = {"inference": inference, "training": training}[kind]
        ours, theirs = make(images, size, args)
        seconds = alternate({"ours": ours, **theirs}, args.repeats)
        found = summary(seconds, kind, images, size, peak)
        figures["cases"][f"{name}, {size}x{size}"] = found
        print(row(f"{name}, {size}x{size}", found), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--single-side", type=int, default=500, help="of batch 1")
    parser.add_argument("--side", type=int, default=256 if ON_CPU else 512)
    parser.add_argument("--batch-size", type=int, default=4 if ON_CPU else 16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--dtype",
        default="float32" if ON_CPU else "bfloat16",
        choices=("float32", "bfloat16"),
    )
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager only")
    parser.add_argument("--out", help="JSON file of the figures")
    return parser.parse_args()


def machine() -> str:
    if not ON_CPU:
        return jax.devices()[0].device_kind
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
        name = names[0].split(":")[1].strip() if names else name
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def matmul_peak(dtype: str) -> dict[str, float]:
    """FLOP/s of a large square product, by each library."""
    side = 2048 if ON_CPU else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    b = torch.ones(side, side, dtype=getattr(torch, dtype), device=DEVICE)

    def jax_run(n: int) -> None:
        for _ in range(n):
            c = product(a, a)
        c.block_until_ready()

    def torch_run(n: int) -> None:
        for _ in range(n):
            torch.matmul(b, b)
        finish()

    seconds = alternate({"jax": jax_run, "torch": torch_run}, repeats=7)
    return {name: 2 * side**3 / min(values) for name, values in seconds.items()}


def finish() -> None:
    """Waits for all that torch has begun."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def difference(dtype: str) -> float:
    """Of the scores of both, relative to the largest, in the dtype of the benchmark."""
    model, params, image = network(dtype, 1, 97)
    network_torch = torch_network(params)
    with torch.inference_mode(), autocast(dtype):
        theirs = network_torch.eval()(to_torch(image)).permute(0, 2, 3, 1)
    ours = np.asarray(jax.jit(model.apply)({"params": params}, image))
    theirs = theirs.cpu().numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def network(dtype: str, images: int, side: int) -> tuple[FCN, dict, np.ndarray]:
    model = FCN("fcn8s", NUM_CLASSES, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (images, side, side, 3)).astype(np.uint8)
    return model, random_params(model), image


def torch_network(params: dict) -> fcn8s_torch.FCN8s:
    model = fcn8s_torch.FCN8s(NUM_CLASSES)
    fcn8s_torch.load(model, params)
    return model.to(DEVICE, memory_format=torch.channels_last)


def to_torch(image: np.ndarray) -> torch.Tensor:
    """[B, 3, H, W] on the device, channels last."""
    return torch.from_numpy(image).to(DEVICE).permute(0, 3, 1, 2)


def autocast(dtype: str) -> torch.autocast:
    enabled = dtype == "bfloat16"
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=enabled)


def inference(
    images: int, side: int, args: argparse.Namespace
) -> tuple[Run, dict[str, Run]]:
    model, params, image = network(args.dtype, images, side)
    plain = torch_network(params).eval().to(getattr(torch, args.dtype))
    cast = jax.tree.map(lambda x: x.astype(args.dtype), params)
    predict = jax.jit(lambda p, x: model.apply({"params": p}, x).argmax(-1))
    pixels, pixels_torch = jax.device_put(image), to_torch(image)

    def ours(n: int) -> None:
        for _ in range(n):
            labels = predict(cast, pixels)
        labels.block_until_ready()

    def run(network: Callable) -> Run:
        @torch.inference_mode()
        def theirs(n: int) -> None:
            for _ in range(n):
                network(pixels_torch).argmax(1)
            finish()

        return theirs

    return ours, {name: run(f) for name, f in forms(plain, args)}


def training(
    images: int, side: int, args: argparse.Namespace
) -> tuple[Run, dict[str, Run]]:
    model, params, image = network(args.dtype, images, side)
    label = np.random.default_rng(1).integers(0, NUM_CLASSES, image.shape[:3])
    label[:, : side // 10] = 255
    plain = torch_network(params).train()
    tx = make_optimizer("sgd", lambda step: RATE, momentum=MOMENTUM, weight_decay=DECAY)
    step = jax.jit(make_train_step(model, tx), donate_argnums=0)
    state, key = init_state(params, tx), jax.random.key(0)
    batch = jax.device_put({"image": image, "label": label.astype(np.int32)})
    pixels, labels = to_torch(image), torch.from_numpy(label).to(DEVICE)

    def ours(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    def run(network: Callable) -> Run:
        decayed = [p for p in plain.parameters() if p.ndim > 1]
        others = [p for p in plain.parameters() if p.ndim == 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(
            groups, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )

        def theirs(n: int) -> None:
            for _ in range(n):
                with autocast(args.dtype):
                    scores = network(pixels)
                    loss = torch.nn.functional.cross_entropy(
                        scores, labels, ignore_index=255
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            finish()

        return theirs

    return ours, {name: run(f) for name, f in forms(plain, args)}


def forms(
    network: torch.nn.Module, args: argparse.Namespace
) -> Iterator[tuple[str, Callable]]:
    """The ways to run a network of torch."""
    yield "torch eager", network
    if not args.no_compile:
        yield "torch.compile", torch.compile(network)


def alternate(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Seconds of one piece of work: each side in turn, after warming up apart.

    A turn begins with work that is not timed, for the memory that one library gave
    back is slow at first to the other.
    """
    counts = {}
    for name, run in runs.items():
        run(1)  # Compiles.
        run(2)
        start = time.perf_counter()
        run(1)
        elapsed = time.perf_counter() - start
        counts[name] = max(1, math.ceil(SAMPLE_SECONDS / elapsed))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run(1)
            start = time.perf_counter()
            run(counts[name])
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def summary(
    seconds: dict[str, list[float]], kind: str, images: int, side: int, peak: float
) -> dict[str, Any]:
    """Medians and what follows from them; the ratio is above 1 where we are faster."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians["ours"]
    theirs, name = min((v, k) for k, v in medians.items() if k != "ours")
    work = flops(kind, images, side)
    return {
        "seconds": medians,
        "spread": {k: [min(v), max(v)] for k, v in seconds.items()},
        "best of torch": name,
        "ratio": theirs / ours,
        "images/s": {"ours": images / ours, "torch": images / theirs},
        "FLOP/s": {"ours": work / ours, "torch": work / theirs},
        "of peak": {"ours": work / ours / peak, "torch": work / theirs / peak},
    }


def flops(kind: str, images: int, side: int) -> float:
    """Two for each multiplication of a convolution; of training three times so many,
    but for the gradient of the pixels. Upsampling and all else are not counted."""
    forward = first = 0.0
    for path, shape in shapes_of(FCN("fcn8s", NUM_CLASSES)).items():
        _, layer, name = path.split("/")
        if name != "kernel":
            continue
        stride = STRIDES.get(layer) or 2 ** (int(layer[4]) - 1)  # By conv's block.
        work = 2.0 * math.prod(shape) * math.ceil(side / stride) ** 2 * images
        forward += work
        if layer == "conv1_1":
            first = work
    return forward if kind == "inference" else 3 * forward - first


def row(name: str, found: dict[str, Any]) -> str:
    ours, theirs = found["images/s"]["ours"], found["images/s"]["torch"]
    return (
        f"{name:<34} ours {ours:8.2f} images/s, {found['best of torch']} {theirs:8.2f}"
        f", ratio {found['ratio']:.2f}, {found['FLOP/s']['ours'] / 1e12:8.3f} TFLOP/s,"
        f" {100 * found['of peak']['ours']:.0f} % of peak"
    )


if __name__ == "__main__":
    main()
