import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference.predict import apply
from fcn_jax.inference.probabilities import predict_scales
from fcn_jax.models.fcn import FCN

MODEL = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def softmax_at(params, image, size):
    """Of the image resized to ``size``, resized back, class by class, by Pillow."""
    seen = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    scores = np.asarray(jax.nn.softmax(apply(params, np.asarray(seen))))
    shape = image.shape[1::-1]
    maps = [
        Image.fromarray(np.ascontiguousarray(scores[..., i])).resize(
            shape, Image.Resampling.BILINEAR
        )
        for i in range(scores.shape[-1])
    ]
    return np.stack([np.asarray(map) for map in maps], axis=-1)


def probabilities(params, image, **options):
    [(key, found)] = predict_scales(MODEL, params, [("a", image)], **options)
    assert key == "a" and found.shape == (*image.shape[:2], 5)
    return found


def test_scale_one_is_the_softmax_of_the_scores(params):
    image = picture(20, 33)
    expected = jax.nn.softmax(apply(params, image))
    np.testing.assert_allclose(probabilities(params, image), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 70), (64, 64), (21, 35)])
def test_scales_are_averaged_at_the_size_of_the_image(params, size):
    image = picture(*size)
    found = probabilities(params, image, scales=(0.5, 1.0, 1.5))
    expected = np.mean(
        [
            softmax_at(params, image, tuple(round(s * side) for side in size))
            for s in (0.5, 1.0, 1.5)
        ],
        axis=0,
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-4)


def test_flip_averages_with_the_mirror_image(params):
    image = picture(20, 33)
    mirrored = jax.nn.softmax(apply(params, image[:, ::-1].copy()))[:, ::-1]
    expected = (jax.nn.softmax(apply(params, image)) + mirrored) / 2
    found = probabilities(params, image, flip=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_size_is_that_of_scale_one(params):
    image = picture(50, 40)
    found = probabilities(params, image, size=(20, 33))
    expected = softmax_at(params, image, (20, 33))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0)])
def test_scales_that_are_none_are_refused(params, scales):
    with pytest.raises(ValueError, match="scales = .* must be above 0"):
        probabilities(params, picture(), scales=scales)
