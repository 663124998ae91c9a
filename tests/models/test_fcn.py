"""The network against its restatement in ONNX, hand counts and properties.

ONNX Runtime computes convolutions, pools and transposed convolutions with code of its
own; the graph here is written from the definition of the network, with every side and
offset spelt out.
"""

import functools
import math
from types import SimpleNamespace

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN, fields_of
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
    "64x96-float": (1, 64, 96, np.float32),
}
MAPS = ("pool1", "pool2", "pool3", "pool4", "pool5", "fc7", "fc8")


def with_depth(image, low=1000, high=5000):
    """The image with a fourth channel of 16 bits."""
    depth = np.random.default_rng(5).integers(low, high, (*image.shape[:3], 1))
    return np.concatenate([image, depth.astype(np.float32)], axis=-1)


def run_onnx(reference, weights, image, cases, mean=MEAN_RGB, sizes=1):
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

    feed = ((image.astype(np.float64) - mean) * sizes).astype(np.float32)
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
def results(request, reference, weights, ours, make_image):
    *shape, dtype = request.param
    image = make_image(shape, dtype)
    plain = {name: case for name, case in CASES.items() if case[3] == (1, 1)}
    expected = run_onnx(reference, weights, image, plain)
    scaled = {name: case for name, case in CASES.items() if case[3] == AT_ONCE}
    at_once = scaled_scores(weights, AT_ONCE)
    expected |= {n: run_onnx(reference, at_once, image, scaled)[n] for n in scaled}
    return ours.apply(ours.body, ours.heads, jnp.asarray(image)), expected


@pytest.mark.parametrize("name", MAPS)
def test_body_equals_onnx(results, name, assert_close):
    maps, expected = results
    assert_close(maps[name], expected[name])


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_onnx(results, case, assert_close):
    logits, expected = results
    assert logits[case].dtype == jnp.float32
    assert_close(logits[case], expected[case])


DEPTH = {"in_channels": 4, "mean": (*MEAN_RGB, 3000.0), "scale": (1, 1, 1, 0.05)}


def test_four_channels_equal_onnx(reference, weights, assert_close, make_image):
    variant = "fcn8s"
    rng, filters = np.random.default_rng(2), int(64 * WIDTH)
    kernel = rng.normal(0, 0.2, (filters, 4, 3, 3)).astype(np.float32)
    weights = weights | {"conv1_1": (kernel, weights["conv1_1"][1])}
    model = FCN(variant, num_classes=CLASSES, width=WIDTH, **DEPTH)
    head = reference.head_params(weights, variant)
    params = {"body": reference.body_params(weights), "head": head}
    image = with_depth(make_image((2, 33, 47), np.uint8))
    found = jax.jit(model.apply)({"params": params}, image)
    case = {variant: (variant, "center", False, (1, 1))}
    mean, scale = DEPTH["mean"], DEPTH["scale"]
    expected = run_onnx(reference, weights, image, case, mean, scale)[variant]
    assert_close(found, expected)


@pytest.mark.parametrize("geometry", ["same", "caffe"])
def test_channel_without_weights_changes_no_bit(reference, geometry, make_image):
    """At a width of 2 filters or more: on a CPU, XLA computes a single filter as dot
    products of vectors, whose partial sums depend on the number of channels."""
    nets = {v: reference.network(v, geometry=geometry) for v in VARIANTS}
    conv1_1 = nets["fcn8s"].params["body"]["conv1_1"]
    kernel = np.pad(conv1_1["kernel"], ((0, 0), (0, 0), (0, 1), (0, 0)))
    wide = {"conv1_1": conv1_1 | {"kernel": kernel}}
    image = make_image((2, 33, 47), np.uint8)
    size = jnp.array([[33, 47], [20, 31]])

    @jax.jit
    def run(body, image):  # All variants in one program, which share the body.
        fields = {} if image.shape[-1] == 3 else DEPTH
        inputs = [[image], [image, size]] if geometry == "same" else [[image]]
        return [
            net.model.clone(**fields).apply({"params": net.params | {"body": body}}, *x)
            for net in nets.values()
            for x in inputs
        ]

    body = nets["fcn8s"].params["body"]
    expected = run(body, image)
    for depth in (np.zeros((2, 33, 47, 1), np.uint8), image[..., :1]):
        found = run(body | wide, np.concatenate([image, depth], axis=-1))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_fcn16s_with_zero_skip_is_fcn32s_upsampled_in_two_stages(
    reference, weights, ours, assert_close, make_image
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
    assert FCN().mean == MEAN_RGB


def initial(model, *path):
    """What ``model`` starts with at a path; the rest is never computed."""

    def init(key):
        params = model.init(key, jnp.zeros((1, 1, 1, 3)))["params"]
        for name in path:
            params = params[name]
        return params

    return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def small(reference, weights, make_image):
    """A thin FCN-8s with random parameters, an image for it, and its logits."""
    model = FCN(num_classes=CLASSES, width=WIDTH)
    head = reference.head_params(weights, "fcn8s")
    params = {"body": reference.body_params(weights), "head": head}
    image = jnp.asarray(make_image((1, 32, 32), np.float32))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, image))
    return SimpleNamespace(model=model, params=params, image=image, logits=logits)


def test_score_layers_start_within_the_xavier_bound():
    head = initial(FCN(num_classes=3, width=1 / 16, score_init="xavier"), "head")
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


def test_scores_start_at_zero_and_give_zero_logits(small):
    models = [FCN(variant, num_classes=CLASSES, width=WIDTH) for variant in VARIANTS]
    heads = [initial(model, "head") for model in models]

    @jax.jit
    def apply(body, heads, image):
        return [
            model.apply({"params": {"body": body, "head": head}}, image)
            for model, head in zip(models, heads, strict=True)
        ]

    for logits in apply(small.params["body"], heads, small.image):
        np.testing.assert_array_equal(logits, np.zeros((1, 32, 32, CLASSES)))


# Behaviour.


def test_mean_is_subtracted_from_the_image(small, assert_close):
    without = jax.jit(small.model.clone(mean=(0.0, 0.0, 0.0)).apply)
    mean, variables = np.array(MEAN_RGB), {"params": small.params}
    assert_close(small.logits, np.asarray(without(variables, small.image - mean)), 1e-5)
    other = without(variables, small.image - mean[::-1])
    assert np.abs(other - small.logits).max() > 1e-3 * np.abs(small.logits).max()


def test_dropout_acts_in_training_only_and_needs_a_key(small):
    apply = jax.jit(functools.partial(small.model.apply, train=True))

    def train(key):
        rngs = {"dropout": jax.random.key(key)}
        return apply({"params": small.params}, small.image, rngs=rngs)

    first = train(1)
    np.testing.assert_array_equal(first, train(1))
    assert np.abs(first - train(2)).max() > 1e-3
    assert np.abs(first - small.logits).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(apply, {"params": small.params}, small.image)


def test_dropout_zeroes_single_elements_after_fc6_and_fc7_and_scales_the_others():
    model = VGG16(width=1 / 16, dropout=0.25)
    x = np.zeros((4, 64, 64, 3), np.float32)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes(model, x.shape))
    bias = jnp.linspace(1, 2, 256)
    params["fc6"]["bias"] = bias  # fc6 gives its bias everywhere, fc7 hands it on
    params["fc7"]["kernel"] = jnp.eye(256)[None, None]

    apply = jax.jit(functools.partial(model.apply, train=True))
    rngs = {"dropout": jax.random.key(3)}
    y = np.asarray(apply({"params": params}, x, rngs=rngs)["fc7"])
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


def test_bfloat16_gives_float32_logits_close_to_those_of_float32(small, assert_close):
    half = small.model.clone(dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)({"params": small.params}, small.image)
    assert logits.dtype == jnp.float32
    assert_close(logits, small.logits, 2e-2)
    # It is bfloat16 that was computed with: float32 would be far closer.
    assert np.abs(logits - small.logits).max() > 1e-4 * np.abs(small.logits).max()
    assert {p.dtype for p in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}


def test_bfloat16_body_computes_in_bfloat16():
    model = VGG16(width=1 / 64, dtype=jnp.bfloat16)
    maps, _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((1, 9, 9, 3))
    )
    assert {x.dtype for x in maps.values()} == {jnp.dtype("bfloat16")}


# Memory.


def test_remat_changes_the_memory_of_a_gradient_and_nothing_else(reference, make_image):
    net = reference.network("fcn8s")
    image = make_image((1, 96, 96), np.float32)

    def gradient_of(model):
        def loss(params, image):
            return (model.apply({"params": params}, image) ** 2).sum()

        # On a CPU this pass lets XLA undo it.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return jax.jit(jax.grad(loss)).lower(net.params, image).compile(options)

    kept = gradient_of(net.model)
    again = gradient_of(net.model.clone(remat="blocks"))
    memory = [f.memory_analysis().temp_size_in_bytes for f in (again, kept)]
    assert memory[0] < 0.7 * memory[1]
    found, expected = again(net.params, image), kept(net.params, image)
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
        ("width", float("inf")),
        ("width", 1e300),
        ("width", "1"),
        ("num_classes", 2.0),
        ("num_classes", True),
        ("num_classes", 2**31),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("mean", (1.0, 2.0)),
        ("mean", [1.0, 2.0, 3.0]),
        ("mean", (1.0, 2.0, float("nan"))),
        ("mean", (1.0, 2.0, 1e39)),
        ("scale", (1.0, 2.0)),
        ("scale", (1.0, 0.0, 2.0)),
        ("scale", (1.0, 1e-50, 2.0)),
        ("scale", [1.0, 1.0, 1.0]),
        ("scale", None),
        ("in_channels", 4.0),
        ("pool_scales", (1.0, float("inf"))),
        ("pool_scales", (1.0, True)),
        ("learn_upsampling", "yes"),
    ],
)
def test_invalid_field_is_named_with_its_value(field, value):
    with pytest.raises(ValueError) as error:
        shapes(FCN(**{field: value}))
    assert field in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("channels", [0, 1, 2, -4])
def test_fewer_channels_than_rgb_are_refused_with_the_way_out(channels):
    wanted = f"in_channels = {channels} must be .* from 3 to 10,000: grey images are"
    with pytest.raises(ValueError, match=wanted):
        FCN(in_channels=channels)


def test_more_channels_want_a_mean_for_each():
    with pytest.raises(ValueError, match="mean = .* 4 finite numbers, one for each"):
        FCN(in_channels=4)


@pytest.mark.parametrize(("model", "channels"), [(FCN(), 4), (FCN(**DEPTH), 3)])
def test_image_of_other_channels_is_refused(model, channels):
    wanted = rf"image is \[1, 4, 5, {channels}\], .* takes {7 - channels} channels"
    with pytest.raises(ValueError, match=wanted):
        shapes(model, (1, 4, 5, channels))


def test_fields_of_are_those_that_make_the_model_again():
    model = FCN("fcn16s", 7, crop="corner", width=0.5, pool_scales=AT_ONCE, **DEPTH)
    fields = fields_of(model)
    assert FCN(**fields) == model
    assert "dtype" not in fields
    assert {"mean", "variant", "num_classes", "geometry", "crop"} <= set(fields)
    assert not any(isinstance(value, nn.Module) for value in fields.values())
