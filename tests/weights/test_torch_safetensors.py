import numpy as np
import pytest

from fcn_jax.weights.torch import from_state_dict

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
    layers, _ = from_state_dict(state_dict(shapes))
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
        from_state_dict(torchvision)[0].values(),
        from_state_dict(timm)[0].values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one["kernel"], other["kernel"])
        np.testing.assert_array_equal(one["bias"], other["bias"])


def test_from_state_dict_all_thirteen_convolutions_are_found():
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    shapes = {f"features.{position}": (1, 3, 3, 3) for position in positions}
    layers, _ = from_state_dict(state_dict(shapes))
    assert (
        list(layers)
        == (
            "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 "
            "conv4_3 conv5_1 conv5_2 conv5_3"
        ).split()
    )


def test_from_state_dict_conv1_1_on_raw_rgb_equals_torch_on_normalised_rgb():
    tensors = state_dict(TORCHVISION)
    layers, mean_rgb = from_state_dict(tensors)
    image = np.random.default_rng(1).uniform(0, 255, (6, 5, 3))
    kernel = np.moveaxis(tensors["features.0.weight"], (2, 3, 1, 0), (0, 1, 2, 3))
    wanted = convolve_valid((image / 255 - MEAN) / STD, kernel)
    ours = convolve_valid(image - np.array(mean_rgb), layers["conv1_1"]["kernel"])
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean_rgb, (123.675, 116.28, 103.53), rtol=1e-12)


def test_from_state_dict_fc6_convolution_equals_dense_on_chw():
    tensors = state_dict(TORCHVISION)
    layers, _ = from_state_dict(tensors)
    features = np.random.default_rng(1).normal(size=(7, 7, 2))
    dense = tensors["classifier.0.weight"] @ features.transpose(2, 0, 1).reshape(-1)
    convolution = convolve_valid(features, layers["fc6"]["kernel"])[0, 0]
    np.testing.assert_allclose(convolution, dense, rtol=1e-6)


def test_from_state_dict_other_shapes_pass_unchanged():
    tensors = {"features.0.weight": np.ones(7), "features.0.bias": np.ones(7)}
    layers, _ = from_state_dict(tensors)
    assert layers["conv1_1"]["kernel"].shape == (7,)
