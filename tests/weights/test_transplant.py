import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN
from fcn_jax.models.vgg import VGG16
from fcn_jax.network import Network, VGG16Weights
from fcn_jax.weights.transplant import init, transplant

WIDTH, CLASSES = 1 / 32, 3
MEAN = (120.0, 110.0, 100.0)
SHAPE = (1, 37, 70, 3)


def network(variant, **fields):
    fields = {"num_classes": CLASSES, "width": WIDTH, "mean": MEAN} | fields
    return FCN(variant=variant, **fields)


@pytest.fixture(scope="module")
def weights(reference):
    rng = np.random.default_rng(3)
    return reference.random_weights(rng, width=WIDTH, num_classes=CLASSES)


@pytest.fixture
def trained(reference, weights):
    """A trained network of a variant."""

    def make(variant, **fields):
        model = network(variant, **fields)
        learned = model.learn_upsampling
        params = {
            "body": reference.body_params(weights),
            "head": reference.head_params(weights, variant, learned),
        }
        return Network(params, model)

    return make


def image():
    return np.random.default_rng(0).uniform(0, 255, SHAPE).astype(np.float32)


def logits(model, params):
    return np.asarray(jax.jit(model.apply)({"params": params}, image()))


def center(x, height, width):
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def upsampled(reference, x, factor):
    kernel = reference.bilinear(factor)[..., None, None] * np.eye(CLASSES)
    return reference.scatter(x, kernel, factor)


@pytest.fixture(scope="module")
def maps(reference, weights):
    """The body's maps of the image, which every network here shares."""
    apply = jax.jit(VGG16(width=WIDTH).apply)
    body = {"params": reference.body_params(weights)}
    return jax.tree.map(np.asarray, apply(body, image() - np.float32(MEAN)))


def score(maps, head, name, pool):
    layer = head[name]
    return maps[pool] @ layer["kernel"][0, 0] + layer["bias"]


def test_fcn16s_starts_as_fcn32s_in_more_steps(reference, trained, maps):
    coarse = trained("fcn32s")
    model = network("fcn16s")
    params, notes = transplant(coarse, model)
    assert notes == ["score_pool4 is new and starts at zero"]
    x = score(maps, coarse.params["head"], "score_fr", "fc7")
    x = center(upsampled(reference, x, 2), *maps["pool4"].shape[1:3])
    expected = center(upsampled(reference, x, 16), *SHAPE[1:3])
    np.testing.assert_allclose(
        logits(model, params), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def test_fcn8s_starts_as_fcn16s_in_more_steps(reference, trained, maps):
    coarse = trained("fcn16s", pool_scales=(0.5, 1.0))
    model = network("fcn8s", pool_scales=(0.5, 1.0))
    params, notes = transplant(coarse, model)
    assert notes == ["score_pool3 is new and starts at zero"]
    head = coarse.params["head"]
    fused = score({"pool4": 0.5 * maps["pool4"]}, head, "score_pool4", "pool4")
    x = score(maps, head, "score_fr", "fc7")
    fused += center(upsampled(reference, x, 2), *fused.shape[1:3])
    x = center(upsampled(reference, fused, 2), *maps["pool3"].shape[1:3])
    expected = center(upsampled(reference, x, 8), *SHAPE[1:3])
    np.testing.assert_allclose(
        logits(model, params), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("variant", ["fcn32s", "fcn16s", "fcn8s"])
def test_same_network_is_taken_whole(trained, variant):
    source = trained(variant, learn_upsampling=True)
    params, notes = transplant(source, source.model)
    assert notes == []
    assert jax.tree.structure(params) == jax.tree.structure(source.params)
    jax.tree.map(np.testing.assert_array_equal, params, source.params)


def test_other_pool_scales_give_the_same_scores(trained, maps):
    source = trained("fcn8s", pool_scales=(0.01, 0.0001))
    model = network("fcn8s", pool_scales=(1.0, 0.5))
    params, notes = transplant(source, model)
    assert notes == []
    for pool, before, now in (("pool4", 0.01, 1.0), ("pool3", 0.0001, 0.5)):
        name = f"score_{pool}"
        expected = score({pool: before * maps[pool]}, source.params["head"], name, pool)
        found = score({pool: now * maps[pool]}, params["head"], name, pool)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_vgg16_gives_its_body_alone(reference, weights):
    body = reference.body_params(weights)
    fc8 = reference.conv_params(*weights["fc8"])
    source = VGG16Weights({**body, "fc8": fc8}, MEAN)
    params, notes = transplant(source, network("fcn8s"))
    assert (params["body"].keys(), params["head"], notes) == (body.keys(), {}, [])


def test_other_number_of_classes_keeps_the_body_and_says_so(trained):
    source = trained("fcn8s")
    model = network("fcn8s", num_classes=CLASSES + 1)
    params, (note,) = transplant(source, model)
    assert params == {"body": source.params["body"], "head": {}}
    assert note.startswith("3 classes there, 4 here: the body is taken")


def test_learned_upsampling_of_another_variant_starts_bilinear(trained):
    source = trained("fcn32s", learn_upsampling=True)
    model = network("fcn16s", learn_upsampling=True)
    params, _ = transplant(source, model)
    assert set(params["head"]) == {"score_fr", "score_pool4"}


def test_learned_upsampling_that_is_dropped_is_named(trained):
    params, notes = transplant(
        trained("fcn8s", learn_upsampling=True), network("fcn8s")
    )
    assert "upscore8" not in params["head"]
    assert notes == ["the learned upsampling is replaced by the bilinear one"]


def test_other_width_is_refused_with_the_way_out(trained):
    model = FCN(num_classes=CLASSES, width=1 / 16)
    with pytest.raises(ValueError, match="2 filters in conv1_1, the network 4: set"):
        transplant(trained("fcn8s"), model)


def test_new_skip_has_the_shapes_of_the_network(trained):
    model = network("fcn8s")
    params, _ = transplant(trained("fcn32s"), model)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 1, 1, 3]))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted["params"])


def test_init_takes_body_and_mean_of_the_vgg16_it_is_given(reference, weights):
    body = reference.body_params(weights)
    vgg16 = VGG16Weights({k: v for k, v in body.items() if k[:2] != "fc"}, MEAN)
    options = {"width": WIDTH, "pool_scales": (0.1, 0.01), "class_names": "abc"}
    net = init(jax.random.key(1), "fcn16s", CLASSES, vgg16=vgg16, **options)
    assert net.model == network("fcn16s", pool_scales=(0.1, 0.01))
    assert net.class_names == ("a", "b", "c")
    jax.tree.map(
        np.testing.assert_array_equal,
        vgg16.params,
        {name: net.params["body"][name] for name in vgg16.params},
    )
    assert np.std(net.params["body"]["fc6"]["kernel"]) > 0  # The file lacks it.
    wanted = jax.eval_shape(net.model.init, jax.random.key(0), jnp.zeros([1, 1, 1, 3]))
    shapes = jax.tree.map(np.shape, wanted["params"])
    assert jax.tree.map(np.shape, net.params) == shapes


def test_init_refuses_another_mean_or_scale_than_a_vgg16_and_another_width(
    reference, weights
):
    vgg16 = VGG16Weights(reference.body_params(weights), MEAN)
    key = jax.random.key(1)
    wanted = r"mean = \(1.0, 2.0, 3.0\) differs from the mean \(120.0, 110.0, 100.0\)"
    with pytest.raises(ValueError, match=wanted):
        init(key, vgg16=vgg16, width=WIDTH, mean=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="scale = .* differs from the scale"):
        init(key, vgg16=vgg16, width=WIDTH, scale=(1.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="mean = .* must be a tuple of 4"):
        init(key, vgg16=vgg16, width=WIDTH, in_channels=4)
    with pytest.raises(ValueError, match="2 filters in conv1_1, the network 4"):
        init(key, vgg16=vgg16, width=1 / 16)


# More input channels than RGB.

FIVE = {"in_channels": 5, "mean": (*MEAN, 7.0, -2.0), "scale": (1, 1, 1, 0.5, 3.0)}


@pytest.mark.parametrize("kind", ["vgg16", "network"])
@pytest.mark.parametrize("extra_init", ["mean", "zero"])
def test_further_channels_start_as_the_mean_of_rgb_or_as_zero(
    reference, weights, trained, kind, extra_init
):
    source = trained("fcn8s")
    if kind == "vgg16":
        source = VGG16Weights(source.params["body"], MEAN)
    model = network("fcn8s", **FIVE)
    params, _ = transplant(source, model, extra_init=extra_init)
    kernel, bias = weights["conv1_1"]  # [O, I, H, W]
    red, green, blue = kernel.transpose(1, 2, 3, 0)  # [H, W, O] each
    extra = (red + green + blue) / 3 if extra_init == "mean" else 0 * red
    expected = np.stack([red, green, blue, extra, extra], axis=2)
    found = params["body"]["conv1_1"]
    np.testing.assert_array_equal(found["kernel"][:, :, :3], expected[:, :, :3])
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(found["bias"], bias)
    for name, layer in reference.body_params(weights).items():
        if name != "conv1_1":
            np.testing.assert_array_equal(
                params["body"][name]["kernel"], layer["kernel"]
            )


def test_network_of_as_many_channels_is_taken_whole(trained):
    coarse, model = trained("fcn32s"), network("fcn32s", **FIVE)
    params, _ = transplant(coarse, model)
    source = Network(params, model)
    again, notes = transplant(source, network("fcn32s", **FIVE), extra_init="zero")
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"in_channels": 4, "mean": FIVE["mean"][:4], "scale": FIVE["scale"][:4]},
            "take 5 input channels, the network 4: set in_channels = 5, or start from",
        ),
        ({}, "the weights take 5 input channels, the network 3"),
        (
            FIVE | {"mean": (*MEAN, 7.0, 2.0)},
            r"mean = \(.*, 2.0\) differs from the mean",
        ),
        (
            FIVE | {"scale": ()},
            r"scale = \(1.0, .* differs from the scale \(1, ",
        ),
    ],
)
def test_network_of_other_channels_is_refused(trained, fields, message):
    model = network("fcn32s", **FIVE)
    source = Network(transplant(trained("fcn32s"), model)[0], model)
    with pytest.raises(ValueError, match=message):
        transplant(source, network("fcn32s", **fields))


def test_unknown_extra_init_is_refused(trained):
    with pytest.raises(ValueError, match="extra_init = 'random' is not one of mean"):
        transplant(trained("fcn32s"), network("fcn32s"), extra_init="random")


def test_init_with_further_channels_names_and_fills_them(reference, weights):
    vgg16 = VGG16Weights(reference.body_params(weights), MEAN)
    names = ("red", "green", "blue", "depth", "height")
    net = init(
        jax.random.key(1),
        vgg16=vgg16,
        width=WIDTH,
        extra_init="zero",
        channels=names,
        shown=(3, 1, 4),
        **FIVE,
    )
    assert (net.model.mean, net.model.scale) == (FIVE["mean"], FIVE["scale"])
    assert (net.channels, net.shown) == (names, (3, 1, 4))
    assert not np.any(net.params["body"]["conv1_1"]["kernel"][:, :, 3:])
    drawn = init(jax.random.key(1), width=WIDTH, **FIVE)
    assert np.all(np.std(drawn.params["body"]["conv1_1"]["kernel"], axis=(0, 1, 3)) > 0)
