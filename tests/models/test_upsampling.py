"""Bilinear kernels and upsampling, against hand values and a scatter in numpy."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_jax.models.upsampling import (
    bilinear_kernel,
    bilinear_weights,
    kernel_side,
    upsample_bilinear,
    upsample_learned,
)

FACTORS = (1, 2, 3, 4, 8, 16, 32)

bilinearly = jax.jit(upsample_bilinear, static_argnums=1)
by_kernel = jax.jit(upsample_learned, static_argnums=2)


def dense(weights, num_classes):
    """[k, k] for each class by itself as one [k, k, C, C] kernel."""
    kernel = np.zeros((*weights.shape, num_classes, num_classes))
    for c in range(num_classes):
        kernel[:, :, c, c] = weights
    return kernel


@pytest.mark.parametrize(
    ("factor", "row"),
    [(1, [1]), (2, [0.25, 0.75, 0.75, 0.25]), (3, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])],
)
def test_bilinear_weights_are_the_triangle(factor, row):
    np.testing.assert_allclose(bilinear_weights(factor), row, rtol=1e-6)


def test_bilinear_kernel_of_factor_2_has_the_published_values():
    quarter = np.array([[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]) / 16
    kernel = bilinear_kernel(2, 3)
    assert kernel.shape == (4, 4, 3, 3)
    np.testing.assert_array_equal(kernel, dense(quarter, 3))


@pytest.mark.parametrize("factor", FACTORS)
def test_bilinear_kernel_is_the_formula_on_the_diagonal(factor, reference):
    expected = dense(reference.bilinear(factor), 2)
    np.testing.assert_allclose(bilinear_kernel(factor, 2), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "side", "total"),
    [(2, 4, 4), (3, 5, 9), (8, 16, 64), (16, 32, 256), (32, 64, 1024)],
)
def test_bilinear_kernel_sums_to_the_square_of_the_factor(factor, side, total):
    assert kernel_side(factor) == side
    kernel = bilinear_kernel(factor, 2)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel.sum((0, 1)), [[total, 0], [0, total]], rtol=1e-6)


def test_upsample_bilinear_by_2_of_a_row_by_hand():
    # Along the row 4, 8: 0.75*4, 0.75*4 + 0.25*8, 0.25*4 + 0.75*8, 0.75*8; the single
    # row has nothing above and below, so both its rows are 0.75 of that.
    row = np.array([3.0, 5.0, 7.0, 6.0])
    y = bilinearly(jnp.array([4.0, 8.0]).reshape(1, 1, 2, 1), 2)
    np.testing.assert_allclose(y[0, :, :, 0], [0.75 * row, 0.75 * row], rtol=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 2)])
def test_upsample_bilinear_equals_the_scatter(factor, shape, reference):
    x = np.random.default_rng(factor).normal(size=shape).astype(np.float32)
    expected = reference.scatter(
        x, dense(reference.bilinear(factor), shape[-1]), factor
    )
    y = bilinearly(jnp.asarray(x), factor)
    assert y.shape == (shape[0], factor * shape[1], factor * shape[2], shape[3])
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 5, 2)])
def test_upsample_learned_equals_the_scatter(factor, shape, reference):
    rng = np.random.default_rng(factor)
    k = 2 * factor - factor % 2
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(k, k, 2, 3)).astype(np.float32)
    y = by_kernel(jnp.asarray(x), jnp.asarray(kernel), factor)
    np.testing.assert_allclose(y, reference.scatter(x, kernel, factor), atol=2e-5)


@settings(max_examples=10)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (3, 6, 6, 4)]),
    factor=st.sampled_from(FACTORS[:5]),
    seed=st.integers(0, 2**32 - 1),
)
@example(shape=(1, 1, 6, 3), factor=8, seed=0)
@example(shape=(3, 5, 1, 1), factor=3, seed=0)
def test_upsampling_of_any_shape_equals_the_scatter(shape, factor, seed, reference):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    bilinear = dense(reference.bilinear(factor), shape[-1])
    np.testing.assert_allclose(
        bilinearly(jnp.asarray(x), factor),
        reference.scatter(x, bilinear, factor),
        atol=1e-5,
    )
    kernel = rng.normal(size=(*bilinear.shape[:3], 2)).astype(np.float32)
    np.testing.assert_allclose(
        by_kernel(jnp.asarray(x), jnp.asarray(kernel), factor),
        reference.scatter(x, kernel, factor),
        atol=2e-5,
    )


@pytest.mark.parametrize("factor", [2, 3, 8, 32])
def test_learned_upsampling_starts_as_the_bilinear_one(factor, reference):
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 3)).astype(np.float32)
    y = by_kernel(jnp.asarray(x), jnp.asarray(bilinear_kernel(factor, 3)), factor)
    expected = reference.scatter(x, dense(reference.bilinear(factor), 3), factor)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_upsample_bilinear_interpolates_away_from_the_border(factor):
    x = np.random.default_rng(1).normal(size=(1, 4, 5, 2)).astype(np.float32)
    resized = jax.image.resize(x, (1, 4 * factor, 5 * factor, 2), "bilinear")
    y = bilinearly(jnp.asarray(x), factor)
    # Outside the centres of the outermost pixels the two differ by design.
    inside = slice(factor // 2, -(factor // 2) or None)
    np.testing.assert_allclose(
        y[:, inside, inside], resized[:, inside, inside], atol=1e-5
    )


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_gradient_of_upsample_bilinear_is_the_transposed_matrix(factor, reference):
    h, w = 3, 2
    units = np.eye(h * w).reshape(h * w, h, w, 1)
    # Row i: the flattened output of the i-th unit image.
    matrix = reference.scatter(
        units, reference.bilinear(factor)[..., None, None], factor
    )
    cotangent = np.random.default_rng(2).normal(size=(1, factor * h, factor * w, 1))
    expected = matrix.reshape(h * w, -1) @ cotangent.ravel()

    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, h, w, 1)), jnp.float32)
    _, vjp = jax.vjp(lambda x: bilinearly(x, factor), x)
    (gradient,) = vjp(jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-4)


def test_gradients_of_upsample_learned_are_the_transposed_scatter():
    rng = np.random.default_rng(4)
    factor, k, cut, h, w = 3, 5, 1, 3, 2
    x = rng.normal(size=(1, h, w, 2)).astype(np.float32)
    kernel = rng.normal(size=(k, k, 2, 3)).astype(np.float32)
    cotangent = rng.normal(size=(1, factor * h, factor * w, 3)).astype(np.float32)

    # The cut-away border has no gradient; each pixel then reads its footprint back.
    full = np.pad(cotangent[0], ((cut, cut), (cut, cut), (0, 0)))
    x_gradient, kernel_gradient = np.zeros_like(x), np.zeros_like(kernel)
    for i in range(h):
        for j in range(w):
            read = full[factor * i : factor * i + k, factor * j : factor * j + k]
            x_gradient[0, i, j] = np.einsum("abd,abcd->c", read, kernel)
            kernel_gradient += np.einsum("c,abd->abcd", x[0, i, j], read)

    _, vjp = jax.vjp(
        lambda x, kernel: by_kernel(x, kernel, factor),
        jnp.asarray(x),
        jnp.asarray(kernel),
    )
    gradients = vjp(jnp.asarray(cotangent))
    np.testing.assert_allclose(gradients[0], x_gradient, atol=1e-4)
    np.testing.assert_allclose(gradients[1], kernel_gradient, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_upsampling_keeps_the_dtype(dtype):
    x = jnp.ones((1, 2, 2, 1), dtype)
    assert bilinearly(x, 2).dtype == dtype
    assert by_kernel(x, jnp.ones((4, 4, 1, 1)), 2).dtype == dtype


def test_shape_of_the_bilinear_kernel_takes_no_memory():
    tracemalloc.start()
    try:
        kernel = jax.eval_shape(lambda: bilinear_kernel(8, 1000))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert kernel.shape == (16, 16, 1000, 1000)
    assert kernel.dtype == np.float32
