"""Convolutions as matrix products against their definition in float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models import patches

# Relative to the largest value: bfloat16 has 8 bits, and sums are rounded once.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2**-8}
DTYPES = list(TOLERANCES)
# (B, H, W), sides, padding: several images in a strip; several strips in an image, the
# last of fewer rows; a row longer than a strip; more padding than the kernel reaches.
CASES = [
    ((6, 9, 13), (3, 3), ((1, 1), (1, 1))),
    ((2, 67, 101), (2, 4), ((0, 2), (3, 1))),
    ((1, 3, 2100), (3, 3), ((1, 1), (1, 1))),
    ((1, 7, 6), (1, 1), ((0, 0), (0, 0))),
    ((1, 4, 5), (3, 3), ((5, 4), (3, 6))),
]


def randoms(*shape, dtype):
    """Random values that ``dtype`` holds exactly, and the same in float64."""
    rng = np.random.default_rng(sum(shape))
    x = jnp.asarray(rng.normal(size=shape), dtype)
    return x, np.asarray(x, np.float64)


def definition(x, kernel, pads, g):
    """The output, and the gradients of input and kernel for that of the output."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    (kh, kw), (_, h, w, _) = kernel.shape[:2], g.shape
    y, for_x, for_kernel = np.zeros(g.shape), np.zeros_like(padded), kernel * 0
    for i in range(kh):
        for j in range(kw):
            at = np.s_[:, i : i + h, j : j + w]
            y += padded[at] @ kernel[i, j]
            for_x[at] += g @ kernel[i, j].T
            for_kernel[i, j] = np.tensordot(padded[at], g, ([0, 1, 2], [0, 1, 2]))
    (top, _), (left, _) = pads
    inside = np.s_[:, top : top + x.shape[1], left : left + x.shape[2]]
    return y, for_x[inside], for_kernel


def inputs(shape, sides, pads, channels, filters, dtype):
    (b, h, w), (kh, kw) = shape, sides
    out = (h + sum(pads[0]) - kh + 1, w + sum(pads[1]) - kw + 1)
    x = randoms(b, h, w, channels, dtype=dtype)
    kernel = randoms(kh, kw, channels, filters, dtype=dtype)
    return x, kernel, randoms(b, *out, filters, dtype=dtype)


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error <= TOLERANCES[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 20])  # One product, and one for each row.
@pytest.mark.parametrize(("shape", "sides", "pads"), CASES, ids=str)
def test_conv_and_its_gradients_equal_the_definition(
    shape, sides, pads, channels, dtype
):
    (x, x64), (kernel, kernel64), (g, g64) = inputs(
        shape, sides, pads, channels, 5, dtype
    )
    y, for_x, for_kernel = definition(x64, kernel64, pads, g64)
    assert_near(jax.jit(patches.conv, static_argnums=2)(x, kernel, pads), y, dtype)
    found = jax.jit(patches.input_gradient, static_argnums=2)(g, kernel, pads)
    assert_near(found, for_x, dtype)
    found = jax.jit(patches.kernel_gradient, static_argnums=(2, 3))(x, g, sides, pads)
    assert_near(found, for_kernel, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "sides", "pads"), CASES[:2], ids=str)
def test_wide_conv_and_its_gradients_equal_the_definition(shape, sides, pads, dtype):
    (x, x64), (kernel, kernel64), (g, g64) = inputs(shape, sides, pads, 7, 5, dtype)
    y, for_x, for_kernel = definition(x64, kernel64, pads, g64)
    assert_near(jax.jit(patches.wide_conv, static_argnums=2)(x, kernel, pads), y, dtype)
    found = jax.jit(patches.wide_gradients, static_argnums=3)(x, kernel, g, pads)
    for gradient, expected in zip(found, (for_x, for_kernel), strict=True):
        assert_near(gradient, expected, dtype)


def test_conv_sums_in_float32():
    ones = jnp.ones((1, 3, 3, 600), jnp.bfloat16)  # bfloat16 cannot count to 5400.
    y = jax.jit(patches.conv, static_argnums=2)(
        ones, ones.reshape(3, 3, 600, 1), "VALID"
    )
    assert float(y[0, 0, 0, 0]) == float(jnp.bfloat16(5400))


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 fsrm", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("flags\t\t: fpu avx512f avx512_bf16x", False),
        ("model name\t: avx512_bf16", False),
    ],
)
def test_has_bfloat16_reads_the_flags_of_the_cpu(flags, has, monkeypatch):
    text = f"processor\t: 0\nmodel name\t: A\n{flags}\nbugs\t: b\n"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: text)
    assert patches.has_bfloat16.__wrapped__() == has
