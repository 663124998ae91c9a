"""What each way to write the bilinear upsampling costs, alternating in one run.

    python benchmarks/upsample.py --out upsample.json

For the upsamplings of FCN-32s (32), FCN-16s (2, 16) and FCN-8s (2, 2, 8), those of one
network in a row, forward alone and with the gradient; ratios are to the first form.

    upsample_bilinear  the library's: a product with a matrix for rows, one for columns
    separable          a transposed convolution for rows, one for columns, the classes
                       folded into the batch
    dense              one transposed convolution with a [k, k, C, C] kernel
    grouped            one transposed convolution with a group for each class
    phases             each of the f pixels made of one as a sum of that one and its
                       neighbours
    image.resize       jax.image.resize(method="linear")

All give what a loop gives that adds the footprint of each pixel ("difference": the
largest from it). Only the last does not at the border, where it repeats the outermost
pixels instead of fading to zero, so its border is left out of the comparison. "temp" is
the working memory of the compiled program. A form that takes more than a second is
timed once after its warm-up.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.models.upsampling import (
    bilinear_kernel,
    bilinear_weights,
    kernel_side,
    transpose_padding,
    upsample_bilinear,
    upsample_learned,
)

USES = {"FCN-32s": (32,), "FCN-16s": (2, 16), "FCN-8s": (2, 2, 8)}
# Far above the rounding of TF32 and bfloat16 products, far below any mistake.
TOLERANCE = 0.05
LONG = 1.0  # Seconds a call from which on a form is timed once.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    on_cpu = jax.default_backend() == "cpu"
    parser.add_argument("--side", type=int, default=256 if on_cpu else 512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()
    if args.side % 32:
        parser.error(f"--side must be a multiple of 32, got {args.side}")

    device = jax.devices()[0].device_kind
    print(f"{device}, {args.batch_size}x{args.side}x{args.side}x{args.classes}")
    figures = {"device": device, "arguments": vars(args), "uses": {}}
    for use, factors in USES.items():
        figures["uses"][use] = compare(factors, args)
        show(f"{use}: {', '.join(map(str, factors))}", figures["uses"][use])
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)


def compare(factors: tuple[int, ...], args: argparse.Namespace) -> dict:
    """Of each form: difference from the definition, seconds, ratios, memory."""
    rng = np.random.default_rng(0)
    small, big = args.side // np.prod(factors), args.side
    shapes = [(args.batch_size, n, n, args.classes) for n in (small, big)]
    x, cotangent = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes)
    expected = functools.reduce(scatter, factors, np.asarray(x, np.float64))

    found: dict[str, dict] = {name: {} for name in args.forms}
    programs: dict[str, dict[str, Callable]] = {"forward": {}, "with gradient": {}}
    for name in args.forms:
        apply = functools.partial(chain, FORMS[name], factors)
        forward = jax.jit(apply).lower(x).compile()
        both = jax.jit(functools.partial(with_gradient, apply)).lower(x, cotangent)
        both = both.compile()
        cut = border(factors) if name == "image.resize" else 0
        found[name]["difference"] = difference(name, forward(x), expected, cut)
        programs["forward"][name] = functools.partial(forward, x)
        programs["with gradient"][name] = functools.partial(both, x, cotangent)
        found[name]["temp bytes"] = {
            "forward": forward.memory_analysis().temp_size_in_bytes,
            "with gradient": both.memory_analysis().temp_size_in_bytes,
        }
    for what, runs in programs.items():
        times = medians(runs, args.repeats)
        for name, median in times.items():
            ratio = median / times[args.forms[0]]
            found[name][what] = {"seconds": median, "ratio": ratio}
    return found


def chain(form: Callable, factors: tuple[int, ...], x: jax.Array) -> jax.Array:
    return functools.reduce(form, factors, x)


def with_gradient(
    apply: Callable, x: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    y, pull = jax.vjp(apply, x)
    return y, pull(cotangent)[0]


# The forms: (x [B, H, W, C], factor) -> [B, factor * H, factor * W, C].


def dense(x: jax.Array, factor: int) -> jax.Array:
    return upsample_learned(x, bilinear_kernel(factor, x.shape[-1]), factor)


def grouped(x: jax.Array, factor: int) -> jax.Array:
    weights, channels = bilinear_weights(factor), x.shape[-1]
    kernel = np.outer(weights, weights)[:, :, None, None]
    return lax.conv_general_dilated(
        x,
        jnp.asarray(np.tile(kernel, channels), x.dtype),
        window_strides=(1, 1),
        padding=[transpose_padding(factor, "SAME")] * 2,
        lhs_dilation=(factor, factor),
        feature_group_count=channels,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def separable(x: jax.Array, factor: int) -> jax.Array:
    b, h, w, c = x.shape
    weights = jnp.asarray(bilinear_weights(factor), x.dtype)
    pad = transpose_padding(factor, "SAME")
    x = x.transpose(0, 3, 1, 2).reshape(b * c, h, w, 1)
    for shape, strides, padding in (
        ((-1, 1, 1, 1), (factor, 1), [pad, (0, 0)]),
        ((1, -1, 1, 1), (1, factor), [(0, 0), pad]),
    ):
        x = lax.conv_transpose(x, weights.reshape(shape), strides, padding)
    return x.reshape(b, c, factor * h, factor * w).transpose(0, 2, 3, 1)


def phases(x: jax.Array, factor: int) -> jax.Array:
    # Each of the f pixels made of one is a sum of that one and its two neighbours.
    cut = (kernel_side(factor) - factor) // 2
    weights = np.pad(bilinear_weights(factor), (factor - cut, factor))
    weights = jnp.asarray(weights[: 3 * factor].reshape(3, factor)[::-1], x.dtype)
    for axis in (1, 2):
        shape = list(x.shape)
        padded = jnp.pad(x, [(int(i == axis), int(i == axis)) for i in range(4)])
        x = sum(
            jnp.expand_dims(
                lax.slice_in_dim(padded, t, t + shape[axis], axis=axis), axis + 1
            )
            * weights[t].reshape(factor, *(1,) * (3 - axis))
            for t in range(3)
        )  # [B, H, f, W, C], then [B, f * H, W, f, C]
        shape[axis] *= factor
        x = x.reshape(shape)
    return x


def image_resize(x: jax.Array, factor: int) -> jax.Array:
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, factor * h, factor * w, c), method="linear")


FORMS: dict[str, Callable] = {
    "upsample_bilinear": upsample_bilinear,
    "separable": separable,
    "dense": dense,
    "grouped": grouped,
    "phases": phases,
    "image.resize": image_resize,
}


def scatter(x: np.ndarray, factor: int) -> np.ndarray:
    """The definition: each pixel adds its footprint, the margin is cut away."""
    b, h, w, c = x.shape
    k = kernel_side(factor)
    weights = bilinear_weights(factor).astype(np.float64)
    kernel = np.outer(weights, weights)[None, :, :, None]
    y = np.zeros((b, (h - 1) * factor + k, (w - 1) * factor + k, c))
    for i, j in np.ndindex(h, w):
        top, left = factor * i, factor * j
        y[:, top : top + k, left : left + k] += kernel * x[:, i, None, j, None]
    cut = (k - factor) // 2
    return y[:, cut : cut + factor * h, cut : cut + factor * w]


def border(factors: tuple[int, ...]) -> int:
    """Pixels from the edge that what lies outside the image has touched."""
    return functools.reduce(lambda cut, factor: factor * cut + factor // 2, factors, 0)


def difference(name: str, found: jax.Array, expected: np.ndarray, cut: int) -> float:
    inside = np.s_[:, cut : expected.shape[1] - cut, cut : expected.shape[2] - cut]
    worst = float(np.abs(np.asarray(found)[inside] - expected[inside]).max(initial=0))
    if worst > TOLERANCE:
        raise SystemExit(f"{name} is wrong: it differs by {worst:.2g}")
    return worst


def medians(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Seconds a call, run in turn: short ones several times at once, long ones once."""
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        times[name] = [seconds(run, 1)]
    short = {name: first for name, (first,) in times.items() if first < LONG}
    times |= {name: [] for name in short}
    for _ in range(repeats):
        for name, first in short.items():
            calls = min(100, max(1, round(0.02 / first)))
            times[name].append(seconds(runs[name], calls) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(run: Callable, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def show(title: str, found: dict) -> None:
    print(f"\n{title:<19}{'forward':>14}{'ratio':>9}{'temp':>10}", end="")
    print(f"{'with gradient':>17}{'ratio':>9}{'temp':>10}{'difference':>12}")
    for name, row in found.items():
        print(f"{name:<19}", end="")
        for what, width in (("forward", 11), ("with gradient", 14)):
            print(f"{1e3 * row[what]['seconds']:{width}.3f} ms", end="")
            print(f"{row[what]['ratio']:8.2f}x", end="")
            print(f"{row['temp bytes'][what] / 2**20:7.1f} MB", end="")
        print(f"{row['difference']:12.1e}")


if __name__ == "__main__":
    main()
