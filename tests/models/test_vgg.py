"""VGG-16 as a classifier, window by window, against its dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.vgg import VGG16


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
    classifier, size, padding, sides, assert_close, make_image
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
