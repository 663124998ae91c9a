import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference import probabilities as module
from fcn_jax.inference.predict import apply, predict
from fcn_jax.inference.probabilities import probabilities, probabilities_many

SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def resized(x, size):
    """Maps resized by Pillow, one float channel at a time."""
    channels = [
        Image.fromarray(np.ascontiguousarray(x[..., i], np.float32)).resize(
            size[::-1], Image.Resampling.BILINEAR
        )
        for i in range(x.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def softmax_at(net, image, size):
    """Softmax of the scores of the image at ``size``, resized back."""
    scores = np.asarray(apply(net, resized(image, size)))
    return np.asarray(jax.nn.softmax(resized(scores, image.shape[:2])))


def test_scale_one_is_the_softmax_of_the_scores(net):
    image = picture(20, 33)
    expected = jax.nn.softmax(apply(net, image))
    np.testing.assert_allclose(probabilities(net, image), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 70), (64, 64), (21, 35)])
def test_scales_are_averaged_at_the_size_of_the_image(net, size):
    image = picture(*size)
    found = probabilities(net, image, scales=(0.5, 1.0, 1.5))
    expected = np.mean(
        [
            softmax_at(net, image, tuple(round(s * side) for side in size))
            for s in (0.5, 1.0, 1.5)
        ],
        axis=0,
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-4)


def test_flip_averages_with_the_mirror_image(net):
    image = picture(20, 33)
    mirrored = jax.nn.softmax(apply(net, image[:, ::-1].copy()))[:, ::-1]
    expected = (jax.nn.softmax(apply(net, image)) + mirrored) / 2
    found = probabilities(net, image, flip=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_size_is_that_of_scale_one(net):
    image = picture(50, 40)
    found = probabilities(net.replace(size=(20, 33)), image)
    expected = softmax_at(net, image, (20, 33))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    labels = predict(net.replace(size=(20, 33)), image)
    np.testing.assert_array_equal(found.argmax(axis=-1), labels)


def test_batches_lists_and_pairs_give_what_each_image_gives(net):
    batch = np.stack([picture(seed=1), picture(seed=2)])
    expected = [probabilities(net, image) for image in batch]
    np.testing.assert_array_equal(probabilities(net, batch), expected)
    np.testing.assert_array_equal(probabilities(net, list(batch)), expected)
    pairs = zip("ab", batch, strict=True)
    assert [key for key, _ in probabilities_many(net, pairs)] == ["a", "b"]


@pytest.mark.parametrize(
    "scales", [(), (0.0,), (1.0, -1.0), (float("inf"),), (float("nan"),)]
)
def test_scales_that_are_none_are_refused(net, scales):
    with pytest.raises(ValueError, match="scales = .* above 0"):
        probabilities(net, picture(), scales=scales)


@pytest.mark.parametrize("scale, size", [(1.0, ()), (0.5, (60, 50))])
def test_large_image_is_averaged_in_tiles_as_the_whole(net, monkeypatch, scale, size):
    net, image = net.replace(size=size), picture(20, 33)
    options = {"scales": (scale,), "flip": True}
    whole = probabilities(net, image, **options)
    monkeypatch.setattr(module, "needs_tiles", lambda shape: True)
    tiled = probabilities(net, image, **options)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


@pytest.mark.parametrize(
    "shape, scales", [((8000, 7000, 3), (1.0,)), ((80, 70, 3), (1.0, 100.0))]
)
def test_too_many_scores_are_refused_before_the_work(net, shape, scales):
    image = np.broadcast_to(np.uint8(7), shape)
    match = "at 8000x7000 pixels, .* of 5 classes take more .* up to 53687091 pixels"
    with pytest.raises(ValueError, match=match):
        probabilities(net, image, scales=scales)
