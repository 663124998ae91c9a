"""The network against its restatement in ONNX, hand counts and properties.

ONNX Runtime computes convolutions, pools and transposed convolutions with code of its
own; the graph here is written from the definition of the network, with every side and
offset spelt out.
"""

import math
from types import SimpleNamespace

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.convolution import Conv, conv, wide_conv
from fcn_jax.models.fcn import FCN, fields_of, model_of
from fcn_jax.models.vgg import VGG16

WIDTH = 1 / 16
CLASSES = 5
MEAN_RGB = (123.68, 116.779, 103.939)
VARIANTS = ("fcn32s", "fcn16s", "fcn8s")
AT_ONCE = (0.01, 0.0001)

# (variant, crop, learned upsampling, pool scales)
CASES = {
    **{
        f"{v}-{c}": (v, c, False, (1, 1))
        for v in VARIANTS
        for c in ("center", "corner")
    },
    **{f"{v}-learned": (v, "center", True, (1, 1)) for v in VARIANTS},
    "fcn16s-at-once": ("fcn16s", "center", False, AT_ONCE),
    "fcn8s-at-once": ("fcn8s", "corner", True, AT_ONCE),
}
# Batch, height, width and type of the images.
IMAGES = {
    "1x1-float": (1, 1, 1, np.float32),
    "33x47-uint8": (2, 33, 47, np.uint8),
    "97x65-float": (1, 97, 65, np.float32),
    "64x64-uint8": (2, 64, 64, np.uint8),
}
MAPS = ("pool1", "pool2", "pool3", "pool4", "pool5", "fc7", "fc8")


def assert_close(actual, expected, tolerance=1e-4):
    """The largest difference is at most ``tolerance`` of the largest number."""
    assert actual.shape == expected.shape
    largest = np.abs(expected).max()
    assert largest > 0
    assert (
        np.abs(np.asarray(actual, np.float64) - expected).max() <= tolerance * largest
    )


def make_image(shape, dtype, seed=0):
    image = np.random.default_rng(seed).uniform(0, 255, (*shape, 3))
    return image.astype(dtype)


def run_onnx(reference, weights, image, cases):
    """The body's maps and the logits of each case, [B, H, W, C]."""
    graph, sides, found = reference.Graph(), {}, {}
    h, w = size = image.shape[1:3]
    x = "image"
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convolutions + 1):
            x = graph.add("Relu", graph.conv(x, *weights[f"conv{block}_{i}"]))
        # An odd side is pooled with one pixel more, which never wins.
        pads = [0, 0, h % 2, w % 2]
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], pads=pads)
        h, w = sides[f"pool{block}"] = (h + h % 2) // 2, (w + w % 2) // 2
        found[f"pool{block}"] = x
    for name in ("fc6", "fc7"):
        x = graph.add("Relu", graph.conv(x, *weights[name]))
    found["fc7"] = x
    found["fc8"] = graph.conv(x, *weights["fc8"])

    def upsample(x, h, w, name, factor, learned):
        if learned:
            kernel, group = weights[name], 1
        else:
            kernel = reference.bilinear(factor).astype(np.float32)
            kernel, group = np.stack([kernel[None]] * CLASSES), CLASSES
        x = graph.add(
            "ConvTranspose",
            x,
            graph.constant(kernel),
            strides=[factor, factor],
            group=group,
        )  # side (n - 1) * factor + 2 * factor; half a factor is cut away on each side
        return graph.crop(x, factor // 2, factor // 2, h * factor, w * factor)

    def crop_to(x, big, small, crop):
        offsets = [
            (b - s) // 2 if crop == "center" else 0
            for b, s in zip(big, small, strict=True)
        ]
        return graph.crop(x, *offsets, *small)

    for case, (variant, crop, learned, scales) in cases.items():
        x, (h, w) = graph.conv(found["fc7"], *weights["score_fr"]), sides["pool5"]
        *doublings, last = reference.UPSAMPLINGS[variant].items()
        for pool, scale, doubling in zip(
            ("pool4", "pool3"), scales, doublings, strict=False
        ):
            scale = graph.constant(np.float32(scale))
            skip = graph.add("Mul", found[pool], scale)
            skip = graph.conv(skip, *weights[f"score_{pool}"])
            x = upsample(x, h, w, *doubling, learned)
            x = crop_to(x, (2 * h, 2 * w), sides[pool], crop)
            x = graph.add("Add", x, skip)
            h, w = sides[pool]
        x = upsample(x, h, w, *last, learned)
        found[case] = crop_to(x, (last[1] * h, last[1] * w), size, crop)

    feed = (image.astype(np.float64) - MEAN_RGB).astype(np.float32)
    outputs = graph.run(feed.transpose(0, 3, 1, 2), list(found.values()))
    return dict(zip(found, outputs, strict=True))


def scaled_scores(weights, scales):
    """Score layers that undo the scale of their pools: it shows if it is off."""
    weights = dict(weights)
    for pool, scale in zip(("pool4", "pool3"), scales, strict=True):
        kernel, bias = weights[f"score_{pool}"]
        weights[f"score_{pool}"] = (kernel / np.float32(scale), bias)
    return weights


@pytest.fixture(scope="module")
def weights(reference):
    rng = np.random.default_rng(7)
    return reference.random_weights(rng, width=WIDTH, num_classes=CLASSES)


@pytest.fixture(scope="module")
def ours(reference, weights):
    """One jitted function of the body's maps and all cases: bodies are shared."""
    vgg16 = VGG16(num_classes=CLASSES, width=WIDTH)
    models, heads = {}, {}
    for case, (variant, crop, learned, scales) in CASES.items():
        models[case] = FCN(
            variant=variant,
            num_classes=CLASSES,
            crop=crop,
            width=WIDTH,
            pool_scales=scales,
            learn_upsampling=learned,
        )
        scores = scaled_scores(weights, scales)
        heads[case] = reference.head_params(scores, variant, learned)
    body = reference.body_params(weights)
    fc8 = reference.conv_params(*weights["fc8"])

    @jax.jit
    def apply(body, heads, image):
        x = image - jnp.asarray(MEAN_RGB, jnp.float32)
        found = vgg16.apply({"params": {**body, "fc8": fc8}}, x)
        for case, model in models.items():
            params = {"body": body, "head": heads[case]}
            found[case] = model.apply({"params": params}, image)
        return found

    return SimpleNamespace(apply=apply, models=models, heads=heads, body=body)


@pytest.fixture(scope="module", params=IMAGES.values(), ids=IMAGES.keys())
def results(request, reference, weights, ours):
    *shape, dtype = request.param
    image = make_image(shape, dtype)
    plain = {name: case for name, case in CASES.items() if case[3] == (1, 1)}
    expected = run_onnx(reference, weights, image, plain)
    scaled = {name: case for name, case in CASES.items() if case[3] == AT_ONCE}
    at_once = scaled_scores(weights, AT_ONCE)
    expected |= {n: run_onnx(reference, at_once, image, scaled)[n] for n in scaled}
    return ours.apply(ours.body, ours.heads, jnp.asarray(image)), expected


@pytest.mark.parametrize("name", MAPS)
def test_body_equals_onnx(results, name):
    maps, expected = results
    assert_close(maps[name], expected[name])


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_onnx(results, case):
    logits, expected = results
    assert logits[case].dtype == jnp.float32
    assert_close(logits[case], expected[case])


def test_fcn16s_with_zero_skip_is_fcn32s_upsampled_in_two_stages(
    reference, weights, ours
):
    image = make_image((2, 33, 47), np.uint8)
    zero = {
        name: np.zeros_like(p)
        for name, p in zip(("kernel", "bias"), weights["score_pool4"], strict=True)
    }
    zero["kernel"] = zero["kernel"].transpose(2, 3, 1, 0)
    head = {**ours.heads["fcn16s-center"], "score_pool4": zero}
    heads = {**ours.heads, "fcn16s-center": head}
    logits = ours.apply(ours.body, heads, jnp.asarray(image))["fcn16s-center"]

    fc7 = run_onnx(reference, weights, image, {})["fc7"]
    kernel, bias = weights["score_fr"]
    score = fc7 @ kernel[:, :, 0, 0].T + bias  # [2, 2, 2, C]: sides 33, 17, 9, 5, 3, 2

    def upsample(x, factor):
        diagonal = np.eye(CLASSES) * reference.bilinear(factor)[..., None, None]
        return reference.scatter(x, diagonal, factor)

    # 2x2 becomes 4x4, pool4 is 3x3: offset 0; 48x48 is cropped to 33x47 at 7, 0.
    expected = upsample(upsample(score, 2)[:, :3, :3], 16)[:, 7:40, 0:47]
    assert_close(logits, expected)


# Convolutions.


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
@pytest.mark.parametrize("shape", [(4, 9, 13), (6, 30, 11), (2, 67, 101)], ids=str)
@pytest.mark.parametrize(
    ("sides", "padding"),
    [((3, 3), ((1, 1), (1, 1))), ((2, 4), ((0, 2), (3, 1))), ((3, 3), "SAME")],
    ids=str,
)
def test_conv_has_the_gradients_of_the_definition(shape, sides, padding):
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


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (7, 7), (2, 4), (1, 5)], ids=str)
def test_wide_conv_equals_the_definition(padding, sides):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
    kernel = rng.normal(size=(*sides, 3, 4)).astype(np.float32)
    y = wide_conv(jnp.asarray(x), jnp.asarray(kernel), padding)
    assert_close(y, convolve(x, kernel, padding), 1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("sides", [(3, 3), (2, 4)], ids=str)
def test_wide_conv_has_the_gradients_of_a_convolution(padding, sides):
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
def test_dense_fc6_equals_its_convolution_on_7x7():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, 7, 7, 512)).astype(np.float32)
    rows = rng.normal(size=(7 * 7 * 512, 8)).astype(np.float32)  # in H, W, C order
    dense = features.reshape(2, -1) @ rows
    x, kernel = jnp.asarray(features), jnp.asarray(rows.reshape(7, 7, 512, 8))
    assert_close(wide_conv(x, kernel, "VALID")[:, 0, 0], dense)
    assert_close(wide_conv(x, kernel, "SAME")[:, 3, 3], dense)


def dense(weights, features):
    """The scores of the dense layers, rows in H, W, C order, for one 7x7 map."""
    y = features.reshape(1, -1)
    for name in ("fc6", "fc7", "fc8"):
        kernel, bias = weights[name]
        y = y @ kernel.transpose(2, 3, 1, 0).reshape(y.shape[1], -1) + bias
        y = y if name == "fc8" else np.maximum(y, 0)
    return y[0]


@pytest.fixture(scope="module")
def classifier(reference):
    """Random dense weights of a thin VGG-16 for 1000 classes, and their params."""
    rng = np.random.default_rng(3)
    weights = reference.random_weights(rng, width=1 / 32, num_classes=2)
    params = reference.body_params(weights)
    kernel = rng.normal(0, 0.1, (1000, 128, 1, 1)).astype(np.float32)
    bias = rng.normal(0, 30, 1000).astype(np.float32)
    weights["fc8"] = kernel, bias
    params["fc8"] = reference.conv_params(kernel, bias)
    return weights, params


@pytest.mark.parametrize(
    ("size", "padding", "sides"),
    [
        ((224, 224), "VALID", (1, 1)),
        ((256, 320), "VALID", (2, 4)),
        ((224, 224), "SAME", (7, 7)),
    ],
)
def test_vgg16_scores_each_7x7_window_of_pool5_as_the_dense_classifier(
    classifier, size, padding, sides
):
    weights, params = classifier
    model = VGG16(num_classes=1000, width=1 / 32, fc6_padding=padding)
    x = jnp.asarray(make_image((1, *size), np.float32) - 120)
    maps = jax.jit(model.apply)({"params": params}, x)
    assert maps["fc8"].shape == (1, *sides, 1000)

    pool5 = np.asarray(maps["pool5"])[0]
    pad = 3 if padding == "SAME" else 0
    pool5 = np.pad(pool5, ((pad, pad), (pad, pad), (0, 0)))
    expected = [
        [dense(weights, pool5[i : i + 7, j : j + 7]) for j in range(sides[1])]
        for i in range(sides[0])
    ]
    assert_close(maps["fc8"], np.array([expected]))


# Parameters.


def shapes(model, size=(1, 32, 32, 3)):
    key, x = jax.random.key(0), jnp.zeros(size)
    return jax.eval_shape(model.init, key, x)["params"]


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (VGG16(), 134_260_544),
        (VGG16(num_classes=1000), 138_357_544),
        (FCN(variant="fcn32s"), 134_346_581),
        (FCN(variant="fcn16s"), 134_346_581 + 512 * 21 + 21),
        (FCN(variant="fcn8s"), 134_346_581 + 512 * 21 + 21 + 256 * 21 + 21),
        (
            FCN(variant="fcn8s", learn_upsampling=True),
            134_346_581 + 768 * 21 + 2 * 21 + (2 * 4 * 4 + 16 * 16) * 21 * 21,
        ),
    ],
    ids=["vgg16", "vgg16-1000", "fcn32s", "fcn16s", "fcn8s", "fcn8s-learned"],
)
def test_number_of_parameters(model, parameters):
    assert count(shapes(model)) == parameters


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_have_the_names_and_shapes_of_the_original(
    variant, learned, reference, weights
):
    model = FCN(variant, num_classes=CLASSES, width=WIDTH, learn_upsampling=learned)
    expected = {
        "body": reference.body_params(weights),
        "head": reference.head_params(weights, variant, learned),
    }
    params = shapes(model)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_mean_is_that_of_the_original_in_rgb_order():
    assert FCN().mean_rgb == MEAN_RGB


def initial(model, *path):
    """What ``model`` starts with at a path; the rest is never computed."""

    def init(key):
        params = model.init(key, jnp.zeros((1, 1, 1, 3)))["params"]
        for name in path:
            params = params[name]
        return params

    return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def small(reference, weights):
    """A thin FCN-8s with random parameters, and an image for it."""
    model = FCN(num_classes=CLASSES, width=WIDTH)
    head = reference.head_params(weights, "fcn8s")
    params = {"body": reference.body_params(weights), "head": head}
    return model, params, jnp.asarray(make_image((1, 32, 32), np.float32))


def test_score_layers_start_within_the_xavier_bound():
    head = initial(FCN(num_classes=3, width=1 / 16), "head")
    for name, fan_in in (("score_fr", 256), ("score_pool4", 32), ("score_pool3", 16)):
        bound = math.sqrt(6 / (fan_in + 3))
        # Uniform: no number beyond the bound, the largest of 48 or more close to it.
        assert 0.8 * bound < np.abs(head[name]["kernel"]).max() <= bound
        assert not head[name]["bias"].any()


@pytest.mark.parametrize(
    ("name", "fan_in"), [("conv4_2", 9 * 32), ("conv5_3", 9 * 32), ("fc7", 256)]
)
def test_convolutions_start_at_the_scale_that_keeps_features_in_size(name, fan_in):
    layer = initial(VGG16(width=1 / 16), name)
    np.testing.assert_allclose(layer["kernel"].std(), math.sqrt(2 / fan_in), rtol=0.05)
    assert not layer["bias"].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_learned_upsampling_starts_bilinear(variant, reference):
    model = FCN(variant, num_classes=2, width=1 / 64, learn_upsampling=True)
    head = initial(model, "head")
    for name, factor in reference.UPSAMPLINGS[variant].items():
        kernel = head[name]["kernel"]
        for c, d in np.ndindex(2, 2):
            expected = reference.bilinear(factor) * (c == d)
            np.testing.assert_allclose(kernel[:, :, c, d], expected, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_scores_give_zero_logits(variant, small):
    _, params, image = small
    model = FCN(variant, num_classes=CLASSES, width=WIDTH, score_init="zero")
    params = {"body": params["body"], "head": initial(model, "head")}
    logits = jax.jit(model.apply)({"params": params}, image)
    np.testing.assert_array_equal(logits, np.zeros((1, 32, 32, CLASSES)))


# Behaviour.


def test_mean_is_subtracted_from_the_image(small):
    model, params, image = small
    mean = (10.0, 200.0, 90.0)

    def logits(mean_rgb, image):
        return jax.jit(model.clone(mean_rgb=mean_rgb).apply)({"params": params}, image)

    expected = logits((0.0, 0.0, 0.0), image - jnp.array(mean))
    assert_close(logits(mean, image), np.asarray(expected), 1e-5)
    other = logits((10.0, 90.0, 200.0), image)
    assert np.abs(other - expected).max() > 0.01 * np.abs(expected).max()


def test_dropout_acts_in_training_only_and_needs_a_key(small):
    model, params, image = small

    @jax.jit
    def train(key):
        return model.apply({"params": params}, image, train=True, rngs={"dropout": key})

    evaluate = jax.jit(lambda: model.apply({"params": params}, image))
    np.testing.assert_array_equal(evaluate(), evaluate())
    first = train(jax.random.key(1))
    np.testing.assert_array_equal(first, train(jax.random.key(1)))
    assert np.abs(first - train(jax.random.key(2))).max() > 1e-3
    assert np.abs(first - evaluate()).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: model.apply({"params": params}, image, train=True))


def test_dropout_zeroes_single_elements_after_fc6_and_fc7_and_scales_the_others():
    model = VGG16(width=1 / 16, dropout=0.25)
    x = jnp.zeros((4, 64, 64, 3))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(model, x.shape))
    bias = jnp.linspace(1, 2, 256)
    params["fc6"]["bias"] = bias  # fc6 gives its bias everywhere, fc7 hands it on
    params["fc7"]["kernel"] = jnp.eye(256)[None, None]

    @jax.jit
    def fc7(key):
        return model.apply({"params": params}, x, train=True, rngs={"dropout": key})[
            "fc7"
        ]

    y = np.asarray(fc7(jax.random.key(3)))
    assert y.shape == (4, 2, 2, 256)
    kept = y != 0
    # Each of the two layers keeps 3/4 and divides by it.
    full = np.broadcast_to(bias / 0.75**2, y.shape)
    np.testing.assert_allclose(y[kept], full[kept], rtol=1e-5)
    # 4096 elements: the standard deviation of the mean is 0.008.
    assert abs(kept.mean() - 0.75**2) < 0.04
    # Neither whole channels nor whole positions fall out together.
    assert 0 < kept.reshape(16, 256).sum(0).mean() < 16
    assert len(np.unique(kept.reshape(16, 256), axis=0)) == 16
    assert len(np.unique(kept.reshape(16, 256), axis=1).T) > 200


def test_bfloat16_gives_float32_logits_close_to_those_of_float32(small):
    model, params, image = small
    half = model.clone(dtype=jnp.bfloat16)
    expected = np.asarray(jax.jit(model.apply)({"params": params}, image))
    logits = jax.jit(half.apply)({"params": params}, image)
    assert logits.dtype == jnp.float32
    assert_close(logits, expected, 2e-2)
    # It is bfloat16 that was computed with: float32 would be far closer.
    assert np.abs(logits - expected).max() > 1e-4 * np.abs(expected).max()
    assert {p.dtype for p in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}


def test_bfloat16_body_computes_in_bfloat16():
    model = VGG16(width=1 / 64, dtype=jnp.bfloat16)
    maps, _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((1, 9, 9, 3))
    )
    assert {x.dtype for x in maps.values()} == {jnp.dtype("bfloat16")}


def test_conv_casts_parameters_to_its_dtype():
    conv = Conv(filters=2, side=1, dtype=jnp.bfloat16)
    params = {"kernel": jnp.full((1, 1, 1, 2), 1 + 2**-12), "bias": jnp.zeros(2)}
    y = conv.apply({"params": params}, jnp.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(y, np.ones((1, 1, 1, 2)))
    assert y.dtype == jnp.bfloat16


# Memory.


def test_remat_changes_the_memory_of_a_gradient_and_nothing_else():
    model = FCN(num_classes=3, width=WIDTH, dropout=0.0)
    image = jnp.asarray(make_image((2, 192, 192), np.float32))
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]

    def gradient_of(model):
        def loss(params):
            return (model.apply({"params": params}, image) ** 2).sum()

        # On a CPU this pass lets XLA undo it.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return jax.jit(jax.grad(loss)).lower(params).compile(options)

    kept = gradient_of(model)
    again = gradient_of(model.clone(remat="blocks"))
    memory = [f.memory_analysis().temp_size_in_bytes for f in (again, kept)]
    assert memory[0] < 0.7 * memory[1]
    found, expected = again(params), kept(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(b).max()))


# Errors.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("remat", "all"),
        ("variant", "fcn4s"),
        ("geometry", "valid"),
        ("crop", "middle"),
        ("score_init", "ones"),
        ("num_classes", 0),
        ("num_classes", -3),
        ("width", 0.3),
        ("width", 0),
        ("width", -0.25),
    ],
)
def test_invalid_field_is_named_with_its_value(field, value):
    with pytest.raises(ValueError) as error:
        shapes(FCN(**{field: value}))
    assert field in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("classes", "width"), [(1, 1 / 64), (21, 3 / 64), (4, 1.0)])
def test_model_of_reads_the_fields_from_parameters(variant, learned, classes, width):
    fields = dict(num_classes=classes, width=width, learn_upsampling=learned)
    model = FCN(variant, **fields)
    assert model_of(shapes(model)) == model


def test_model_of_takes_the_fields_that_parameters_do_not_tell():
    model = FCN(width=1 / 64, crop="corner", mean_rgb=(1.0, 2.0, 3.0))
    found = model_of(shapes(model), crop="corner", mean_rgb=(1.0, 2.0, 3.0))
    assert found == model
    assert found != model_of(shapes(model))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"conv1_1": {"kernel": np.zeros((3, 3, 3, 64)), "bias": np.zeros(64)}},
        {"body": {}, "head": {}},
        {"body": {}, "head": {"score_fr": {"bias": np.zeros(21)}}},
        {"body": {"conv1_1": {"bias": np.zeros(64)}}, "head": {"score_fr": None}},
        None,
        [1, 2],
        np.zeros(3),
    ],
    ids=[
        "empty",
        "body-alone",
        "bare",
        "no-body",
        "no-scores",
        "none",
        "list",
        "array",
    ],
)
def test_model_of_says_what_it_expected_of_other_parameters(params):
    with pytest.raises(ValueError, match="params.*expected.*body.*head"):
        model_of(params)


def test_model_of_refuses_pool3_without_pool4():
    bias = {"bias": np.zeros(2)}
    head = {"score_fr": bias, "score_pool3": bias}
    with pytest.raises(ValueError, match="params.*score_pool3|params.*pool3"):
        model_of({"body": {"conv1_1": {"bias": np.zeros(64)}}, "head": head})


def test_fields_of_are_those_that_make_the_model_again():
    model = FCN("fcn16s", 7, crop="corner", width=0.5, pool_scales=AT_ONCE)
    fields = fields_of(model)
    assert FCN(**fields) == model
    assert "dtype" not in fields
    assert {"mean_rgb", "variant", "num_classes", "geometry", "crop"} <= set(fields)
    assert not any(isinstance(value, nn.Module) for value in fields.values())
