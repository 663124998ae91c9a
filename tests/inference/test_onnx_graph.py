import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.inference import onnx_graph as module
from fcn_jax.inference.onnx_graph import onnx_model
from fcn_jax.inference.predict import apply
from fcn_jax.inference.programs import scores_of
from fcn_jax.weights.load import arrays_of

SIDE = 64  # Images are padded to it for JAX, which compiles each network once.
# (variant, geometry, crop, learned upsampling, pool scales)
CASES = {
    "32s-same-center": ("fcn32s", "same", "center", False, (1.0, 1.0)),
    "32s-caffe-learned": ("fcn32s", "caffe", "center", True, (1.0, 1.0)),
    "16s-same-corner-learned": ("fcn16s", "same", "corner", True, (0.5, 1.0)),
    "16s-caffe": ("fcn16s", "caffe", "center", False, (0.5, 1.0)),
    "8s-same-center-learned": ("fcn8s", "same", "center", True, (0.5, 0.25)),
    "8s-same-corner": ("fcn8s", "same", "corner", False, (1.0, 1.0)),
    "8s-caffe": ("fcn8s", "caffe", "center", False, (0.5, 0.25)),
}
FIELDS = ("variant", "geometry", "crop", "learn_upsampling", "pool_scales")
SIZES = ((1, 1), (1, 64), (31, 33), (32, 63), (37, 50))
DEPTH = {"in_channels": 4, "mean": (9.0, 8.0, 7.0, 3e3), "scale": (1.0, 1.1, 1.0, 0.05)}


def model_of(net, output="logits", dtype=np.uint8, **metadata):
    return onnx_model(net, arrays_of(net), output, dtype, metadata)


def runner(model):
    """A function of images that runs a model in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    return lambda image: session.run(None, {"image": image})[0]


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def scores(net, image):
    """The scores of JAX. Its sizes are those of padded images, computed at once."""
    b, h, w, _ = image.shape
    pads = ((0, 0), (0, SIDE - h), (0, SIDE - w), (0, 0))
    sizes = np.tile(np.int32([h, w]), (b, 1))
    return np.asarray(scores_of(net, np.pad(image, pads), sizes))[:, :h, :w]


def assert_close(found, logits):
    assert found.dtype == np.float32
    atol = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(found, logits, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_graph_gives_the_scores_of_jax_at_any_size(reference, case):
    net = reference.network(**dict(zip(FIELDS, CASES[case], strict=True)))
    run = runner(model_of(net))
    for size in SIZES:
        image = picture(1, *size)
        assert_close(run(image), scores(net, image))


@pytest.fixture(scope="module")
def fcn8s(reference):
    return reference.network("fcn8s")


@pytest.fixture(scope="module")
def run_fcn8s(fcn8s):
    return runner(model_of(fcn8s))


@given(height=st.integers(1, SIDE), width=st.integers(1, SIDE))
@settings(max_examples=25)
def test_centre_crops_follow_every_size(fcn8s, run_fcn8s, height, width):
    image = picture(1, height, width)
    assert_close(run_fcn8s(image), scores(fcn8s, image))


def test_centre_crops_are_those_computed_by_hand(reference, run_fcn8s):
    weights = reference.random_weights(
        np.random.default_rng(4), width=1 / 32, num_classes=4
    )
    graph, pools, x = reference.Graph(), [], "image"
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convolutions + 1):
            x = graph.add("Relu", graph.conv(x, *weights[f"conv{block}_{i}"]))
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
        pools.append(x)
    for name in ("fc6", "fc7"):
        x = graph.add("Relu", graph.conv(x, *weights[name]))

    def upsample(x, factor, top, left, height, width):
        kernel = np.float32([[reference.bilinear(factor)]] * 4)
        sides = {"strides": [factor] * 2, "pads": [factor // 2] * 4}
        x = graph.add("ConvTranspose", x, graph.constant(kernel), group=4, **sides)
        return graph.crop(x, top, left, height, width)

    # 74x101 is pooled to 37x51, 19x26, 10x13, 5x7, 3x4.
    x = graph.conv(x, *weights["score_fr"])
    x = upsample(x, 2, 0, 0, 5, 7)  # of 6x8
    x = graph.add("Add", x, graph.conv(pools[3], *weights["score_pool4"]))
    x = upsample(x, 2, 0, 0, 10, 13)  # of 10x14
    x = graph.add("Add", x, graph.conv(pools[2], *weights["score_pool3"]))
    x = upsample(x, 8, 3, 1, 74, 101)  # of 80x104
    image = picture(1, 74, 101)
    feed = (image - reference.network("fcn8s").model.mean).astype(np.float32)
    (expected,) = graph.run(feed.transpose(0, 3, 1, 2), [x])
    assert_close(run_fcn8s(image), expected)


def test_batch_gives_what_its_images_give(run_fcn8s):
    batch = picture(3, 20, 45)
    alone = np.concatenate([run_fcn8s(image[None]) for image in batch])
    np.testing.assert_allclose(run_fcn8s(batch), alone, rtol=1e-5, atol=1e-3)


def test_labels_are_the_classes_of_the_highest_scores(fcn8s, run_fcn8s):
    image = picture(2, 33, 47)
    labels = runner(model_of(fcn8s, "labels"))(image)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, run_fcn8s(image).argmax(-1))
    assert len(np.unique(labels)) > 1


def test_further_channels_are_floats_with_a_mean_and_a_scale(reference):
    rng = np.random.default_rng(0)
    net = reference.network("fcn16s", **DEPTH)
    kernel = rng.normal(size=(3, 3, 4, 2)).astype(np.float32)
    net.params["body"]["conv1_1"]["kernel"] = kernel
    image = rng.normal((100, 100, 100, 3000), (50, 50, 50, 900), (1, 40, 50, 4))
    image = image.astype(np.float32)
    assert_close(runner(model_of(net, dtype=np.float32))(image), scores(net, image))


@pytest.mark.parametrize("size", [(71, 20), (1, 1), (24, 130)])
def test_network_with_a_size_resizes_there_and_back(fcn8s, size):
    net = fcn8s.replace(size=(40, 56))
    image = picture(2, *size)
    assert_close(runner(model_of(net))(image), np.asarray(apply(net, image)))


def test_model_is_valid_and_tells_what_it_takes_and_gives(fcn8s):
    model = model_of(fcn8s, "labels", class_names='["sky"]')
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "class_names": json.dumps(["sky"])
    }
    tensors = [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]
    sides = ["batch", "height", "width"]
    assert tensors == [
        ("image", onnx.TensorProto.UINT8, [*sides, 3]),
        ("labels", onnx.TensorProto.INT32, sides),
    ]


def test_weights_keep_their_names(fcn8s):
    names = {tensor.name for tensor in model_of(fcn8s).graph.initializer}
    assert arrays_of(fcn8s).keys() <= names


def test_weights_above_the_limit_of_a_file_are_refused(fcn8s, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(fcn8s.params))
    monkeypatch.setattr(module, "_MOST_BYTES", size - 1)
    with pytest.raises(ValueError, match=rf"at most {size - 1:,}: export to \.npz"):
        model_of(fcn8s)
