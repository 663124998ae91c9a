"""Measure every way to write the bilinear upsampling, in turns in one run.

    python benchmarks/upsample.py --out upsample.json

For the upsamplings of FCN-32s (32), FCN-16s (2, 16) and FCN-8s (2, 2, 8), those of one
network in a row, forward alone and with the gradient. Ratios are to the first form.

    upsample_bilinear  the library's: a product with a matrix for rows, one for columns
    separable          a transposed convolution for rows, one for columns, the classes
                       folded into the batch
    dense              one transposed convolution with a [k, k, C, C] kernel
    grouped            one transposed convolution with a group for each class
    phases             each of the f pixels made of one as a sum of that one and its
                       neighbours
    image.resize       jax.image.resize(method="linear")

Each form is compared with a loop that adds the footprint of each pixel: "difference" is
the largest. Only image.resize differs at the border, where it repeats the outermost
pixels instead of fading to zero, so its border is not compared. "temp" is the working
memory of the compiled program. A form that takes more than a second is timed once.
"""

import argparse
import functools
from collections.abc import Callable

import harness
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


def main() -> None:
    options = {"side": 256 if harness.ON_CPU else 512, "batch_size": 1}
    parser = harness.make_parser(__doc__, **options, repeats=7, sample=0.02)
    parser.add_argument("--classes", type=int, default=21, help="channels of a map")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    args = parser.parse_args()
    if args.side % 32:
        parser.error(f"--side must be a multiple of 32, got {args.side}")

    shape = f"{args.batch_size}x{args.side}x{args.side}x{args.classes}"
    print(f"{harness.machine()}, {shape}")
    uses = {}
    for use, factors in USES.items():
        uses[use] = compare(factors, args)
        show(f"{use}: {', '.join(map(str, factors))}", uses[use])
    harness.write_figures(args, {"uses": uses})


def compare(factors: tuple[int, ...], args: argparse.Namespace) -> dict:
    """Return for each form: difference from the loop, seconds, ratios, memory."""
    rng = np.random.default_rng(0)
    small, big = args.side // np.prod(factors), args.side
    shapes = [(args.batch_size, n, n, args.classes) for n in (small, big)]
    x, cotangent = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes)
    expected = functools.reduce(scatter, factors, np.asarray(x, np.float64))

    found: dict[str, dict] = {name: {"temp bytes": {}} for name in args.forms}
    runs: dict[str, dict[str, Callable]] = {"forward": {}, "with gradient": {}}
    for name in args.forms:
        apply = functools.partial(chain, FORMS[name], factors)
        gradient = functools.partial(with_gradient, apply)
        for what, function, inputs in (
            ("forward", apply, (x,)),
            ("with gradient", gradient, (x, cotangent)),
        ):
            program = jax.jit(function).lower(*inputs).compile()
            memory = program.memory_analysis().temp_size_in_bytes
            found[name]["temp bytes"][what] = memory
            runs[what][name] = functools.partial(program, *inputs)
        cut = border(factors) if name == "image.resize" else 0
        result = runs["forward"][name]()
        found[name]["difference"] = difference(name, result, expected, cut)
    options = {"repeats": args.repeats, "sample": args.sample, "once_above": 1.0}
    for what in runs:
        times = harness.time_in_turns(runs[what], **options)
        for name, seconds in harness.medians(times).items():
            relative = harness.ratio(times, name, args.forms[0])
            found[name][what] = {"seconds": seconds, "ratio": relative}
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
    """Add the footprint of each pixel and cut the margin: the definition."""
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
    """Return the number of pixels at the edge that depend on those outside."""
    return functools.reduce(lambda cut, factor: factor * cut + factor // 2, factors, 0)


def difference(name: str, found: jax.Array, expected: np.ndarray, cut: int) -> float:
    inside = np.s_[:, cut : expected.shape[1] - cut, cut : expected.shape[2] - cut]
    worst = float(np.abs(np.asarray(found)[inside] - expected[inside]).max(initial=0))
    if worst > TOLERANCE:
        raise SystemExit(f"{name} is wrong: it differs by {worst:.2g}")
    return worst


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
