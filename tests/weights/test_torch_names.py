import logging

import ml_dtypes
import numpy as np
import pytest

from fcn_jax.weights.torch_names import from_state_dict

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TORCHVISION = {
    "features.0": (4, 3, 3, 3),
    "features.28": (2, 4, 3, 3),
    "classifier.0": (5, 2 * 7 * 7),
    "classifier.3": (5, 5),
    "classifier.6": (6, 5),
}
TIMM = {
    "features.0": (4, 3, 3, 3),
    "features.28": (2, 4, 3, 3),
    "pre_logits.fc1": (5, 2, 7, 7),
    "pre_logits.fc2": (5, 5, 1, 1),
    "head.fc": (6, 5),
}
FCN8S = {
    "conv1_1": (4, 3, 3, 3),
    "conv5_3": (2, 4, 3, 3),
    "fc6": (5, 2, 7, 7),
    "fc7": (5, 5, 1, 1),
    "score_fr": (3, 5, 1, 1),
    "score_pool4": (3, 2, 1, 1),
    "score_pool3": (3, 2, 1, 1),
}
UPSAMPLINGS = {
    "upscore2": (3, 3, 4, 4),
    "upscore_pool4": (3, 3, 4, 4),
    "upscore8": (3, 3, 16, 16),
}

# The first two filters of conv1_1 of Caffe's VGG-16, [H, W, RGB]. The first sees all
# colours nearly alike, the second sees blue against red.
CAFFE_FILTERS = """
     0.4800  0.5504  0.4295  0.4085  0.4401  0.3735 -0.0651 -0.0814 -0.0614
     0.3105  0.3457  0.2748  0.0502  0.0406  0.0387 -0.4034 -0.4535 -0.3672
    -0.0509 -0.0586 -0.0575 -0.2852 -0.3307 -0.2622 -0.4185 -0.4850 -0.3501
    -0.1727  0.0209  0.1173 -0.1704  0.0473  0.1621 -0.1544  0.0419  0.1357
    -0.1876  0.0310  0.1484 -0.1776  0.0658  0.2023 -0.1744  0.0463  0.1617
    -0.1660  0.0317  0.1293 -0.1667  0.0547  0.1716 -0.1570  0.0423  0.1387
"""
CAFFE_FILTERS = np.array(CAFFE_FILTERS.split(), float).reshape(2, 3, 3, 3)


def state_dict(shapes):
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    return tensors


def convolve_valid(image, kernel):
    """[H, W, I] by [h, w, I, O], tap by tap."""
    height, width = (image.shape[i] - kernel.shape[i] + 1 for i in (0, 1))
    return sum(
        image[y : y + height, x : x + width] @ kernel[y, x]
        for y in range(kernel.shape[0])
        for x in range(kernel.shape[1])
    )


@pytest.mark.parametrize("shapes", [TORCHVISION, TIMM], ids=["torchvision", "timm"])
def test_from_state_dict_names_and_shapes_are_the_original_ones(shapes):
    layers = from_state_dict(state_dict(shapes)).layers
    assert {name: layer["kernel"].shape for name, layer in layers.items()} == {
        "conv1_1": (3, 3, 3, 4),
        "conv5_3": (3, 3, 4, 2),
        "fc6": (7, 7, 2, 5),
        "fc7": (1, 1, 5, 5),
        "fc8": (1, 1, 5, 6),
    }
    assert all(
        layer["bias"].shape == layer["kernel"].shape[-1:] for layer in layers.values()
    )


def test_from_state_dict_torchvision_equals_timm():
    torchvision = state_dict(TORCHVISION)
    renamed = dict(zip(TORCHVISION, TIMM, strict=True))
    timm = {}
    for name, tensor in torchvision.items():
        layer, part = name.rsplit(".", 1)
        shape = TIMM[renamed[layer]] if part == "weight" else tensor.shape
        timm[f"{renamed[layer]}.{part}"] = tensor.reshape(shape)
    for one, other in zip(
        from_state_dict(torchvision).layers.values(),
        from_state_dict(timm).layers.values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one["kernel"], other["kernel"])
        np.testing.assert_array_equal(one["bias"], other["bias"])


def test_from_state_dict_all_thirteen_convolutions_are_found():
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    shapes = {f"features.{position}": (1, 3, 3, 3) for position in positions}
    layers = from_state_dict(state_dict(shapes)).layers
    assert (
        list(layers)
        == (
            "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 "
            "conv4_3 conv5_1 conv5_2 conv5_3"
        ).split()
    )


def test_from_state_dict_conv1_1_on_raw_rgb_equals_torch_on_normalised_rgb():
    tensors = {name: np.float64(a) for name, a in state_dict(TORCHVISION).items()}
    layers, mean_rgb, source, *_ = from_state_dict(tensors)
    image = np.random.default_rng(1).uniform(0, 255, (6, 5, 3))
    kernel = np.moveaxis(tensors["features.0.weight"], (2, 3, 1, 0), (0, 1, 2, 3))
    wanted = convolve_valid((image / 255 - MEAN) / STD, kernel)
    ours = convolve_valid(image - np.array(mean_rgb), layers["conv1_1"]["kernel"])
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean_rgb, (123.675, 116.28, 103.53), rtol=1e-12)
    assert source == "PyTorch state dict, RGB, O, I, H, W"


def test_from_state_dict_fc6_convolution_equals_dense_on_chw():
    tensors = state_dict(TORCHVISION)
    layers = from_state_dict(tensors).layers
    features = np.random.default_rng(1).normal(size=(7, 7, 2))
    dense = tensors["classifier.0.weight"] @ features.transpose(2, 0, 1).reshape(-1)
    convolution = convolve_valid(features, layers["fc6"]["kernel"])[0, 0]
    np.testing.assert_allclose(convolution, dense, rtol=1e-6)


def test_from_state_dict_other_shapes_pass_unchanged():
    tensors = {"features.0.weight": np.ones(7), "features.0.bias": np.ones(7)}
    layers = from_state_dict(tensors).layers
    assert layers["conv1_1"]["kernel"].shape == (7,)


def caffe_state_dict(filters, dtype=np.float32):
    """Caffe's weights under torchvision's names, as vgg16_from_caffe.pth has them."""
    tensors = state_dict(TORCHVISION)
    tensors["features.0.weight"] = filters.transpose(0, 3, 1, 2).astype(dtype)
    tensors["features.0.bias"] = tensors["features.0.bias"][: len(filters)]
    return tensors


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_from_state_dict_of_caffes_numbers_wants_caffes_pixels(order, dtype):
    rng = np.random.default_rng(2)
    tuned = CAFFE_FILTERS + rng.uniform(-0.01, 0.01, CAFFE_FILTERS.shape)
    in_file = tuned[..., ::-1] if order == "BGR" else tuned
    content = from_state_dict(caffe_state_dict(in_file, dtype))
    kernel = content.layers["conv1_1"]["kernel"].astype(np.float64)
    np.testing.assert_allclose(kernel, tuned.transpose(1, 2, 3, 0), rtol=2**-8)
    assert content.mean_rgb == (123.68, 116.779, 103.939)
    assert content.source == (
        f"PyTorch state dict of Caffe's weights, {order}, O, I, H, W"
    )
    assert set(content.layers) == {"conv1_1", "conv5_3", "fc6", "fc7", "fc8"}


@pytest.mark.parametrize(
    "filters",
    [
        CAFFE_FILTERS[[1, 0]],
        CAFFE_FILTERS[:1],
        CAFFE_FILTERS * 255 * STD,  # made for torchvision's pixels
        CAFFE_FILTERS[..., [1, 0, 2]],
        np.full_like(CAFFE_FILTERS, np.nan),
        np.full_like(CAFFE_FILTERS, np.inf),
        np.zeros_like(CAFFE_FILTERS),
    ],
)
def test_from_state_dict_of_other_numbers_wants_torchvisions_pixels(filters):
    content = from_state_dict(caffe_state_dict(filters, np.float64))
    kernel = content.layers["conv1_1"]["kernel"]
    np.testing.assert_allclose(
        kernel, (filters / (255 * STD)).transpose(1, 2, 3, 0), rtol=1e-12
    )
    np.testing.assert_allclose(content.mean_rgb, 255 * MEAN, rtol=1e-12)


def test_from_state_dict_of_an_fcn_takes_bgr_less_its_mean():
    tensors = state_dict(FCN8S)
    content = from_state_dict(tensors)
    image = np.random.default_rng(1).uniform(0, 255, (6, 5, 3))
    mean_bgr = (104.00698793, 116.66876762, 122.67891434)
    kernel = tensors["conv1_1.weight"].transpose(2, 3, 1, 0)
    wanted = convolve_valid(image[..., ::-1] - mean_bgr, kernel)
    ours = convolve_valid(
        image - np.array(content.mean_rgb), content.layers["conv1_1"]["kernel"]
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    assert content.layers["score_pool4"]["kernel"].shape == (1, 1, 2, 3)
    assert content.source == "PyTorch state dict of Caffe's weights, BGR, O, I, H, W"


def test_from_state_dict_of_an_fcn_upsamples_from_in_to_out():
    tensors = state_dict(FCN8S)
    rng = np.random.default_rng(3)
    for name, shape in UPSAMPLINGS.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape)  # [in, out, k, k]
    content = from_state_dict(tensors)
    assert not content.unused
    for name, shape in UPSAMPLINGS.items():
        assert list(content.layers[name]) == ["kernel"]
        kernel = content.layers[name]["kernel"]
        assert kernel.shape == (*shape[2:], 3, 3)
        assert kernel[1, 2, 0, 2] == tensors[f"{name}.weight"][0, 2, 1, 2]


def test_from_state_dict_of_fcn8s_warns_of_the_scales_that_files_lack(caplog):
    tensors = state_dict(FCN8S)
    with caplog.at_level(logging.WARNING, "fcn_jax"):
        from_state_dict(tensors)
        assert "model.clone(pool_scales=(0.01, 0.0001))" in caplog.text
        caplog.clear()
        from_state_dict({k: v for k, v in tensors.items() if "pool3" not in k})
        assert not caplog.messages


def test_from_state_dict_of_the_original_names_without_scores_is_a_caffe_vgg16():
    tensors = state_dict({"conv1_1": (4, 3, 3, 3), "fc8": (6, 5, 1, 1)})
    content = from_state_dict(tensors)
    assert content.mean_rgb == (123.68, 116.779, 103.939)
    np.testing.assert_array_equal(
        content.layers["conv1_1"]["kernel"],
        tensors["conv1_1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1],
    )


def test_from_state_dict_of_data_parallel_is_the_same():
    tensors = state_dict(TORCHVISION)
    content = from_state_dict({f"module.{key}": v for key, v in tensors.items()})
    for name, layer in from_state_dict(tensors).layers.items():
        np.testing.assert_array_equal(content.layers[name]["kernel"], layer["kernel"])
        np.testing.assert_array_equal(content.layers[name]["bias"], layer["bias"])
    assert not content.unused


def test_from_state_dict_lists_what_it_does_not_use():
    tensors = state_dict(TORCHVISION)
    tensors["module.features.1.running_mean"] = np.ones(4)
    del tensors["features.28.bias"]
    content = from_state_dict(tensors)
    assert content.unused == ("features.28.weight", "module.features.1.running_mean")
    assert "conv5_3" not in content.layers


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_from_state_dict_divides_once_and_rounds_once(dtype):
    tensors = {name: a.astype(dtype) for name, a in state_dict(TORCHVISION).items()}
    kernel = from_state_dict(tensors).layers["conv1_1"]["kernel"]
    wanted = tensors["features.0.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    wanted = np.float32(wanted / (255 * STD[:, None]))
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, wanted)


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, bool, np.complex64])
def test_from_state_dict_leaves_other_types_than_floats_unused(dtype):
    tensors = state_dict(TORCHVISION)
    for name in ("features.0.weight", "classifier.6.bias"):
        tensors[name] = np.ones(tensors[name].shape, dtype)
    content = from_state_dict(tensors)
    assert set(content.layers) == {"conv5_3", "fc6", "fc7"}
    assert set(content.unused) == {
        f"{layer}.{part}"
        for layer in ("features.0", "classifier.6")
        for part in ("weight", "bias")
    }


def test_from_state_dict_of_another_network_has_no_layers():
    content = from_state_dict({"layer1.0.conv1.weight": np.ones([4, 3, 3, 3])})
    assert content.layers == {}
    assert content.unused == ("layer1.0.conv1.weight",)
