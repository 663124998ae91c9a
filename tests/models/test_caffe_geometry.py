"""Geometry "caffe" against the authors' definition, restated in ONNX.

conv1_1 is padded by 100, pools round up, fc6 and the transposed convolutions are not
padded, and the crop offsets are the numbers of the release. The weights come to the
network through a .caffemodel, as those of the release do.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN
from fcn_jax.models.geometry import (
    CAFFE_PAD,
    IMAGE,
    Coordinates,
    caffe_coordinates,
)
from fcn_jax.models.upsampling import upsample_bilinear, upsample_learned
from fcn_jax.models.vgg import VGG16
from fcn_jax.weights.load import load

WIDTH, CLASSES = 1 / 16, 5
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
OFFSETS = {"fcn32s": (19,), "fcn16s": (5, 27), "fcn8s": (5, 9, 31)}

# (variant, learned upsampling, pool scales)
CASES = {
    "fcn32s": ("fcn32s", False, (1, 1)),
    "fcn16s": ("fcn16s", False, (1, 1)),
    "fcn8s": ("fcn8s", False, (1, 1)),
    "fcn32s-learned": ("fcn32s", True, (1, 1)),
    "fcn8s-at-once-learned": ("fcn8s", True, (0.01, 0.0001)),
}
# How the file of each case is written.
FORMS = {
    "fcn32s": {"v1": True, "legacy": True},
    "fcn16s": {"packed": False},
    "fcn8s": {"double": True},
    "fcn32s-learned": {"v1": True, "packed": False},
    "fcn8s-at-once-learned": {},
}


def run_onnx(reference, weights, image, cases):
    """The logits of each case, [B, H, W, C]."""
    graph, pools, found = reference.Graph(), {}, {}
    x = "image"
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convolutions + 1):
            name = f"conv{block}_{i}"
            pad = 100 if name == "conv1_1" else 1
            x = graph.add("Relu", graph.conv(x, *weights[name], pad=pad))
        x = pools[f"pool{block}"] = graph.add(
            "MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
        )
    for name in ("fc6", "fc7"):
        x = graph.add("Relu", graph.conv(x, *weights[name], pad=0))
    fc7 = x

    def upsample(x, name, factor, learned):
        kernel, group = weights[name], 1
        if not learned:
            bilinear = reference.bilinear(factor).astype(np.float32)
            kernel, group = np.stack([bilinear[None]] * CLASSES), CLASSES
        return graph.add(
            "ConvTranspose",
            x,
            graph.constant(kernel),
            strides=[factor, factor],
            group=group,
        )

    for case, (variant, learned, scales) in cases.items():
        x, side = graph.conv(fc7, *weights["score_fr"]), sides_of(image)
        *doublings, last = reference.UPSAMPLINGS[variant].items()
        *offsets, last_offset = OFFSETS[variant]
        for pool, scale, doubling, offset in zip(
            ("pool4", "pool3"), scales, doublings, offsets, strict=False
        ):
            skip = graph.add("Mul", pools[pool], graph.constant(np.float32(scale)))
            skip = graph.conv(skip, *weights[f"score_{pool}"])
            x = upsample(x, *doubling, learned)
            side = [2 * s + 2 for s in side]
            x = graph.add("Add", x, graph.crop(skip, offset, offset, *side))
        x = upsample(x, *last, learned)
        found[case] = graph.crop(x, last_offset, last_offset, *image.shape[1:3])

    feed = (image.astype(np.float64) - MEAN_BGR[::-1]).astype(np.float32)
    outputs = graph.run(feed.transpose(0, 3, 1, 2), list(found.values()))
    return dict(zip(found, outputs, strict=True))


def sides_of(image):
    """Height and width of fc7."""
    sides = [side + 198 for side in image.shape[1:3]]
    for _ in range(5):
        sides = [(side + 1) // 2 for side in sides]
    return [side - 6 for side in sides]


@pytest.fixture(scope="module")
def weights(reference):
    rng = np.random.default_rng(11)
    weights = reference.random_weights(rng, width=WIDTH, num_classes=CLASSES)
    for pool, scale in (("pool4", 100), ("pool3", 10000)):  # Lest a scale hide them.
        kernel, bias = weights[f"score_{pool}"]
        weights[f"score_{pool}"] = (kernel * np.float32(scale), bias)
    return weights


@pytest.fixture(scope="module", params=[(1, 1, 1), (2, 33, 47)], ids=str)
def results(request, reference, weights, tmp_path_factory):
    image = np.random.default_rng(0).uniform(0, 255, (*request.param, 3))
    image = image.astype(np.float32)

    path = tmp_path_factory.mktemp("caffe") / "net.caffemodel"
    networks = {}
    for case, parts in CASES.items():
        layers = caffe_layers(reference, weights, *parts)
        reference.write_caffemodel(path, layers, **FORMS[case])
        networks[case] = load(path)

    @jax.jit
    def apply(image):
        return {
            case: net.model.apply({"params": net.params}, image)
            for case, net in networks.items()
        }

    return networks, apply(image), run_onnx(reference, weights, image, CASES)


def caffe_layers(reference, weights, variant, learned, scales):
    """The blobs of a network as Caffe has them."""
    layers = {name: list(weights[name]) for name in reference.BODY}
    layers["conv1_1"][0] = layers["conv1_1"][0][:, ::-1]  # BGR
    for pool, scale in zip(("pool4", "pool3"), scales, strict=True):
        if scale != 1:
            layers[f"scale_{pool}"] = [np.full(512, scale)]
    upsamplings = reference.UPSAMPLINGS[variant]
    for name in list(reference.SCORES)[: len(upsamplings)]:
        layers[name] = weights[name]
    for name, factor in upsamplings.items():
        if learned:
            layers[name] = [weights[name]]
        else:
            identity = np.eye(CLASSES)[..., None, None]
            layers[name] = [identity * reference.bilinear(factor)]
    return layers


@pytest.mark.parametrize("case", CASES)
def test_caffemodel_tells_the_whole_network(results, case):
    variant, learned, scales = CASES[case]
    model = FCN(
        variant=variant,
        num_classes=CLASSES,
        geometry="caffe",
        mean=MEAN_BGR[::-1],
        width=WIDTH,
        pool_scales=scales,
        learn_upsampling=learned,
    )
    assert results[0][case].model == model


@pytest.mark.parametrize("case", CASES)
def test_caffe_logits_equal_onnx(results, case):
    logits, expected = (found[case] for found in results[1:])
    assert logits.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(logits - expected).max() <= 1e-4 * largest


# (side of the image; of pool1 .. pool5 and fc7; 32s; the three of 8s), as published for
# 1 and 500, the others by hand.
SIDES = [
    (1, (100, 50, 25, 13, 7, 1), 64, (4, 10, 88)),
    (224, (211, 106, 53, 27, 14, 8), 288, (18, 38, 312)),
    (375, (287, 144, 72, 36, 18, 12), 416, (26, 54, 440)),
    (500, (349, 175, 88, 44, 22, 16), 544, (34, 70, 568)),
    (512, (355, 178, 89, 45, 23, 17), 576, (36, 74, 600)),
]


@pytest.mark.parametrize(("side", "body", "at_32", "at_8"), SIDES)
def test_caffe_sides_are_those_of_the_release(side, body, at_32, at_8):
    vgg = VGG16(width=WIDTH, pad=CAFFE_PAD, fc6_padding="VALID")
    image = jnp.zeros([1, side, 1, 3])
    maps, _ = jax.eval_shape(lambda: vgg.init_with_output(jax.random.key(0), image))
    assert tuple(maps[f"pool{i}"].shape[1] for i in range(1, 6)) == body[:5]
    assert maps["fc7"].shape[1] == body[5]

    def upsampled(side, factor):
        x = jnp.zeros([1, side, 1, 1])
        bilinear = jax.eval_shape(lambda: upsample_bilinear(x, factor, "VALID"))
        kernel = jnp.zeros([2 * factor, 2 * factor, 1, 1])
        learned = jax.eval_shape(lambda: upsample_learned(x, kernel, factor, "VALID"))
        assert bilinear.shape == learned.shape
        return bilinear.shape[1]

    assert upsampled(body[5], 32) == at_32
    twice = upsampled(body[5], 2)
    four = upsampled(twice, 2)
    assert (twice, four, upsampled(four, 8)) == at_8


@pytest.mark.parametrize("variant", OFFSETS)
def test_caffe_output_has_the_side_of_the_input(variant):
    model = FCN(variant=variant, num_classes=2, width=WIDTH, geometry="caffe")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 1, 1, 3]))
    for height, width in [(1, 500), *((n, n + 31) for n in range(2, 70, 3))]:
        image = jax.ShapeDtypeStruct([1, height, width, 3], jnp.float32)
        logits = jax.eval_shape(model.apply, variables, image)
        assert logits.shape == (1, height, width, 2)


@pytest.mark.parametrize("variant", OFFSETS)
def test_crop_offsets_of_the_release_follow_from_strides_and_pads(variant):
    maps = caffe_coordinates()
    at, stride, found = maps["fc7"], 32, []
    for pool in ("pool4", "pool3")[: len(OFFSETS[variant]) - 1]:
        at, stride = at.upsampled(2), stride // 2
        found.append(maps[pool].offset(at))
    assert (*found, at.upsampled(stride).offset(IMAGE)) == OFFSETS[variant]


def test_coordinates_follow_the_centre_of_a_footprint():
    # Output row i of a 4-row stride-2 kernel sees rows 2i - 1 to 2i + 2 at pad 1, whose
    # centre is 2i + 1/2: row 0 of the input lies at -1/4 of the output.
    seen = IMAGE.convolved(4, stride=2, pad=1)
    assert seen == (Fraction(1, 2), Fraction(-1, 4))
    # Row i upsampled by 2 covers rows 2i to 2i + 3, whose centre is 2i + 3/2.
    assert IMAGE.upsampled(2) == (2, Fraction(3, 2))


@pytest.mark.parametrize("other", [(1, Fraction(1, 2)), (2, 0)])
def test_offset_between_maps_that_no_crop_aligns_is_refused(other):
    with pytest.raises(ValueError, match="no crop by whole rows"):
        IMAGE.offset(Coordinates(*map(Fraction, other)))
