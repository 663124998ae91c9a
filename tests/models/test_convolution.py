"""Convolutions against their definition, on both branches of the platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.convolution import Conv, conv, max_pool, wide_conv


def convolve(x, kernel, padding):
    """A convolution by its definition, the surplus of an even side after the map."""
    kh, kw = kernel.shape[:2]
    if padding == "SAME":
        before = [(k - 1) // 2 for k in (kh, kw)]
        pads = [(b, k - 1 - b) for b, k in zip(before, (kh, kw), strict=True)]
        x = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))
    return np.einsum("nhwcij,ijcd->nhwd", windows, kernel)


@pytest.fixture(params=["cpu", "default"])
def branch(request, monkeypatch):
    """Each branch of a computation that depends on the platform, run on this one."""

    def choose(*args, **branches):
        return branches[request.param](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


# Batch and map such that images share a product, and that an image takes several, the
# last of fewer rows.
@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(
    ("shape", "sides", "padding"),
    [
        ((4, 9, 13), (3, 3), "SAME"),
        ((4, 9, 13), (3, 3), ((1, 1), (1, 1))),
        ((6, 30, 11), (2, 4), ((0, 2), (3, 1))),
        ((2, 67, 101), (2, 4), ((0, 2), (3, 1))),
    ],
    ids=str,
)
def test_conv_has_the_gradients_of_the_definition(shape, sides, padding, assert_close):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*shape, 64)).astype(np.float32)
    kernel = rng.normal(size=(*sides, 64, 3)).astype(np.float32)
    pads = ((1, 1), (1, 1)) if padding == "SAME" else padding
    padded = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    y, pull_back = jax.vjp(lambda x, k: conv(x, k, padding), x, kernel)
    assert_close(y, convolve(padded, kernel.astype(np.float64), "VALID"), 1e-5)

    g = rng.normal(size=y.shape).astype(np.float32)
    (_, h, w, _), (kh, kw) = y.shape, sides
    taps = [
        (i, j, np.s_[:, i : i + h, j : j + w]) for i in range(kh) for j in range(kw)
    ]
    for_kernel = np.zeros(kernel.shape)
    for_x = np.zeros(padded.shape)
    for i, j, at in taps:
        for_kernel[i, j] = np.einsum("bhwc,bhwd->cd", padded[at], g)
        for_x[at] += g @ kernel[i, j].T
    (top, _), (left, _) = pads
    for_x = for_x[:, top : top + x.shape[1], left : left + x.shape[2]]
    for gradient, expected in zip(pull_back(g), (for_x, for_kernel), strict=True):
        assert_close(gradient, expected, 1e-5)


def test_conv_sums_its_gradient_in_float32():
    x = jnp.ones((1, 80, 80, 64), jnp.bfloat16)  # bfloat16 cannot count to 6400.
    kernel = jnp.ones((1, 3, 64, 1), jnp.bfloat16)
    _, pull_back = jax.vjp(lambda k: conv(x, k, "VALID"), kernel)
    (gradient,) = pull_back(jnp.ones((1, 80, 78, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(np.float32), 6240)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 2), ("cuda", 3)])
def test_conv_has_a_gradient_of_its_own_on_cpu_only(platform, convolutions):
    x, kernel = jnp.zeros((1, 7, 7, 64)), jnp.zeros((3, 3, 64, 64))
    gradients = jax.grad(lambda x, k: (conv(x, k, "SAME") ** 2).sum(), (0, 1))
    traced = jax.jit(gradients).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize(
    ("platform", "has_bfloat16", "dtype", "convolutions"),
    [
        ("cpu", True, "bfloat16", 0),
        ("cpu", False, "bfloat16", 2),
        ("cpu", True, "float32", 2),
        ("cuda", True, "bfloat16", 3),
    ],
)
def test_conv_multiplies_bfloat16_where_the_cpu_can(
    platform, has_bfloat16, dtype, convolutions, monkeypatch
):
    monkeypatch.setattr("fcn_jax.models.convolution.has_bfloat16", lambda: has_bfloat16)
    x, kernel = jnp.zeros((1, 7, 7, 64), dtype), jnp.zeros((3, 3, 64, 64), dtype)
    gradients = jax.grad(lambda x, k: (conv(x, k, "SAME") ** 2).sum(), (0, 1))
    traced = jax.jit(gradients).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (7, 7), (2, 4), (1, 5)], ids=str)
def test_wide_conv_equals_the_definition(padding, sides, assert_close):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(*sides, 3, 4)).astype(np.float32)
    y = wide_conv(jnp.asarray(x), jnp.asarray(kernel), padding)
    assert_close(y, convolve(x, kernel, padding), 1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("sides", [(3, 3), (2, 4)], ids=str)
def test_wide_conv_has_the_gradients_of_a_convolution(padding, sides, assert_close):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*sides, 3, 4)), jnp.float32)
    cotangent = rng.normal(size=convolve(x, kernel, padding).shape).astype(np.float32)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(f):
        pull_back = jax.jit(lambda x, kernel, y: jax.vjp(f, x, kernel)[1](y))
        return pull_back(x, kernel, cotangent)

    ours = gradients(lambda x, kernel: wide_conv(x, kernel, padding))
    for gradient, expected in zip(ours, gradients(conv), strict=True):
        assert_close(gradient, np.asarray(expected), 1e-5)


@pytest.mark.parametrize(
    ("platform", "convolves"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_wide_conv_is_a_matrix_product_on_cpu_only(platform, convolves):
    x, kernel = jnp.zeros((1, 7, 7, 2)), jnp.zeros((7, 7, 2, 3))
    traced = jax.jit(wide_conv).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == convolves
    assert ("stablehlo.dot_general" in text) != convolves


@pytest.mark.usefixtures("branch")
def test_dense_fc6_equals_its_convolution_on_7x7(assert_close):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, 7, 7, 512)).astype(np.float32)
    rows = rng.normal(size=(7 * 7 * 512, 8)).astype(np.float32)  # in H, W, C order
    dense = features.reshape(2, -1) @ rows
    x, kernel = jnp.asarray(features), jnp.asarray(rows.reshape(7, 7, 512, 8))
    assert_close(wide_conv(x, kernel, "VALID")[:, 0, 0], dense)
    assert_close(wide_conv(x, kernel, "SAME")[:, 3, 3], dense)


def test_conv_casts_parameters_to_its_dtype():
    conv = Conv(filters=2, side=1, dtype=jnp.bfloat16)
    params = {"kernel": jnp.full((1, 1, 1, 2), 1 + 2**-12), "bias": jnp.zeros(2)}
    y = conv.apply({"params": params}, jnp.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(y, np.ones((1, 1, 1, 2)))
    assert y.dtype == jnp.bfloat16


def test_conv_sums_the_gradient_of_its_bias_in_float32():
    conv = Conv(filters=1, side=1, dtype=jnp.bfloat16)
    params = {"kernel": jnp.zeros((1, 1, 1, 1)), "bias": jnp.zeros(1)}
    x = jnp.ones((1, 51, 101, 1))  # bfloat16 cannot count to 5151.
    gradient = jax.grad(lambda p: conv.apply({"params": p}, x).sum(dtype="float32"))
    assert gradient(params)["bias"] == 5151


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 1)], ids=str)
def test_max_pool_gives_the_gradient_to_the_greatest_values(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *shape, 3)).astype(np.float32)
    y, pull_back = jax.vjp(max_pool, jnp.asarray(x, dtype))
    g = 12 * rng.integers(1, 9, y.shape).astype(np.float32)  # Exact when divided.
    (gradient,) = pull_back(jnp.asarray(g, dtype))
    gradient = np.asarray(gradient, np.float32)
    for b, i, j, c in np.ndindex(y.shape):
        under = np.s_[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        best = x[under] == x[under].max()
        assert y[b, i, j, c] == x[under].max()
        assert gradient[under].sum() == g[b, i, j, c]
        assert ((gradient[under] > 0) == best).all()
