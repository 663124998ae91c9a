import numpy as np
import pytest

from fcn_jax.models.fcn import FCN
from fcn_jax.weights.layers import (
    WeightFile,
    from_chw,
    from_hwc,
    network_of,
    shapes_of,
)

MEAN = (1.0, 2.0, 3.0)


def test_from_chw_puts_channels_last():
    weight = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # O, I, H, W
    kernel = from_chw("conv1_2", weight)
    assert kernel.shape == (4, 5, 3, 2) and kernel[1, 2, 0, 1] == weight[1, 0, 1, 2]
    upsampling = from_chw("upscore2", weight)  # I, O, k, k
    assert upsampling.shape == (4, 5, 2, 3)
    assert upsampling[1, 2, 0, 1] == weight[0, 1, 1, 2]


def test_dense_fc6_sees_7x7_in_the_order_of_its_file():
    chw = np.arange(2 * 3 * 49).reshape(2, 3 * 49)  # columns in C, H, W order
    kernel = from_chw("fc6", chw)
    assert kernel.shape == (7, 7, 3, 2)
    assert kernel[2, 4, 1, 0] == chw[0, 1 * 49 + 2 * 7 + 4]
    hwc = np.arange(49 * 3 * 2).reshape(49 * 3, 2)  # rows in H, W, C order
    kernel = from_hwc("fc6", hwc)
    assert kernel.shape == (7, 7, 3, 2)
    assert kernel[2, 4, 1, 0] == hwc[(2 * 7 + 4) * 3 + 1, 0]


def test_only_the_first_layer_turns_its_colours_around():
    kernel = np.arange(3 * 3 * 3 * 2).reshape(3, 3, 3, 2)
    np.testing.assert_array_equal(from_hwc("conv1_1", kernel), kernel[:, :, ::-1])
    np.testing.assert_array_equal(from_hwc("conv1_2", kernel), kernel)


def layers_of(*scores):
    layer = {"kernel": np.zeros((1, 1, 8, 6)), "bias": np.zeros(6)}
    return {"conv1_1": {"bias": np.zeros(16)}} | {name: layer for name in scores}


def test_layers_tell_the_variant_the_classes_and_the_width():
    file = WeightFile(layers_of("score_fr", "score_pool4"), MEAN, "a test")
    assert network_of("a.pth", file) == FCN(
        "fcn16s", 6, geometry="caffe", mean=MEAN, width=1 / 4
    )
    assert network_of("a.pth", WeightFile(layers_of(), MEAN, "a test")) is None
    with pytest.raises(
        ValueError,
        match="a.pth holds no network: it has score_pool3 but no score_pool4",
    ):
        network_of(
            "a.pth", WeightFile(layers_of("score_fr", "score_pool3"), MEAN, "a test")
        )


def test_shapes_are_those_of_the_definition():
    shapes = shapes_of(FCN("fcn32s", 6, width=1 / 4))
    assert shapes["body/conv1_1/kernel"] == (3, 3, 3, 16)
    assert shapes["body/fc6/kernel"] == (7, 7, 128, 1024)
    assert shapes["head/score_fr/bias"] == (6,)
    assert len(shapes) == 2 * 16
