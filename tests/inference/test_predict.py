import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.padding import bucket
from fcn_jax.inference import predict as predict_module
from fcn_jax.inference import tiles
from fcn_jax.inference.predict import (
    apply,
    classify_many,
    compile_ahead,
    predict,
    predict_many,
)
from fcn_jax.inference.programs import labels_of
from fcn_jax.inference.tiles import predict_tiled
from fcn_jax.models.fcn import FCN

MODEL = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_apply_equals_the_model(net):
    batch = np.stack([picture(seed=1), picture(seed=2)])
    logits = apply(net, batch)
    expected = jax.jit(MODEL.apply)({"params": net.params}, batch)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    assert logits.shape == (2, *SIZE, 5) and logits.dtype == jnp.float32


def test_single_image_gives_what_its_batch_of_one_gives(net):
    logits = apply(net, picture())
    assert logits.shape == (*SIZE, 5)
    np.testing.assert_array_equal(logits, apply(net, picture()[None])[0])
    np.testing.assert_array_equal(
        predict(net, picture()), predict(net, picture()[None])[0]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_dtype_of_the_image_does_not_matter(net, dtype):
    logits = apply(net, picture().astype(dtype))
    np.testing.assert_array_equal(logits, apply(net, picture()))


def test_predict_takes_the_highest_score(net):
    labels = predict(net, picture())
    assert labels.shape == SIZE and labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, np.argmax(apply(net, picture()), -1))


@pytest.fixture
def tile_shapes(monkeypatch):
    """Of the tiles that the network sees, where 20,000 pixels are the limit."""
    shapes = []

    def run(net, batch, size):
        shapes.append(batch.shape)
        return labels_of(net, batch, size)

    in_tiles = functools.partial(predict_tiled, tile=20_000)
    monkeypatch.setattr(predict_module, "needs_tiles", lambda s: s[0] * s[1] > 20_000)
    monkeypatch.setattr(predict_module, "predict_tiled", in_tiles)
    monkeypatch.setattr(tiles, "labels_of", run)
    return shapes


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_predict_of_large_images_sees_a_tile_at_once(net, tile_shapes, kind):
    batch = np.stack([picture(20, 1100, seed=1), picture(20, 1100, seed=2)])
    labels = predict(net, kind(batch))
    assert isinstance(labels, np.ndarray) and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.argmax(apply(net, batch), -1))
    assert len(tile_shapes) > 2
    assert all(b == 1 and h * w <= 20_000 for b, h, w, _ in tile_shapes)


def test_predict_inside_jit_sees_the_whole_of_a_large_image(net, tile_shapes):
    image = picture(20, 1100)
    labels = jax.jit(predict)(net, image)
    assert tile_shapes == []
    np.testing.assert_array_equal(labels, np.argmax(apply(net, image), -1))


def test_bare_parameters_are_refused_without_their_model(net):
    for function in (apply, predict):
        with pytest.raises(ValueError, match=r"pass the Network .* or model="):
            function(net.params, picture())
        with pytest.raises(ValueError, match="has its own model"):
            function(net, picture(), model=net.model)
        with pytest.raises(ValueError, match="net is a ndarray, not a Network"):
            function(picture(), net)
    with pytest.raises(ValueError, match="pass the Network"):
        predict_many(net.params, [(0, picture())])


def test_model_given_is_the_model_used(net):
    other = net.model.clone(mean=(0.0, 0.0, 0.0))
    expected = apply(net, picture() // 2 + np.float32(MODEL.mean))
    actual = apply(net.params, picture() // 2, model=other)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)
    labels = predict(net.params, picture() // 2, model=other)
    np.testing.assert_array_equal(labels, np.argmax(actual, -1))


def test_list_of_images_of_any_kind_and_size_gives_a_list(net, tmp_path):
    Image.fromarray(picture(30, 40)).save(tmp_path / "a.png")
    images = [picture(), Image.fromarray(picture(7, 70)), tmp_path / "a.png"]
    arrays = [picture(), picture(7, 70), picture(30, 40)]
    for function in (apply, predict):
        found = function(net, images)
        assert isinstance(found, list)
        for one, array in zip(found, arrays, strict=True):
            np.testing.assert_array_equal(one, function(net, array))
        assert function(net, []) == []
        with pytest.raises(ValueError, match="pass its images one by one"):
            function(net, [np.stack([picture()] * 2)])


def test_apply_and_predict_work_inside_jit(net):
    image = jnp.asarray(picture() // 2, jnp.float32) + 1
    # Whether the image is an argument or closed over.
    np.testing.assert_array_equal(jax.jit(apply)(net, image), apply(net, image))
    np.testing.assert_array_equal(
        jax.jit(lambda net: predict(net, image))(net), predict(net, image)
    )


def test_apply_has_gradients_in_params_and_image(net):
    def total(net, image):
        return apply(net, image).sum()

    grads = jax.grad(total, argnums=(0, 1))(net, picture().astype(np.float32))
    # Of each class, the bias reaches every pixel once, through kernels that sum to 1.
    bias = grads[0].params["head"]["score_fr"]["bias"]
    assert bias.shape == (5,) and (np.asarray(bias) > 0).all()
    assert grads[1].shape == (*SIZE, 3) and np.isfinite(grads[1]).all()


def alone(net, image):
    """Labels of an image in a program of its own size."""
    return np.argmax(apply(net, image), axis=-1)


SIZES = [(20, 33), (33, 20), (1, 1), (64, 64), (65, 3), (20, 33), (40, 40), (7, 70)]


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_many_images_of_any_size_get_the_labels_of_each_alone(net, batch_size):
    images = {i: picture(*size, seed=i) for i, size in enumerate(SIZES)}
    found = dict(predict_many(net, images.items(), batch_size=batch_size))
    assert found.keys() == images.keys()
    for key, image in images.items():
        assert found[key].dtype == np.int32
        np.testing.assert_array_equal(found[key], alone(net, image))


def test_images_of_many_sizes_compile_once_for_each_bucket(net, traced):
    rng = np.random.default_rng(0)
    sizes = {tuple(rng.integers(1, 129, 2).tolist()) for _ in range(40)}
    images = [(size, picture(*size)) for size in sorted(sizes)]
    net = net.replace(model=net.model.clone(dropout=0.2))
    assert len(list(predict_many(net, images, batch_size=1))) == len(sizes)
    assert len(traced) == len({bucket(size) for size in sizes}) == 4


@pytest.mark.parametrize("batch_size", [0, 2])
def test_program_that_was_compiled_ahead_is_the_one_that_runs(net, traced, batch_size):
    net = net.replace(model=net.model.clone(dropout=0.3 + batch_size / 10))
    compile_ahead(jax.eval_shape(lambda: net), (70, 50), batch_size=batch_size)
    assert len(traced) == 1
    compiled = []

    def note(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    net = jax.device_put(net)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        list(classify_many(net, [(0, picture(70, 50))], batch_size=batch_size))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(traced) == 1 and not compiled


def test_nothing_is_compiled_ahead_for_tiles_and_resized_images(net, traced):
    net = net.replace(model=net.model.clone(dropout=0.4))
    compile_ahead(net.replace(size=(8, 8)), (8, 8))
    compile_ahead(net, (2**11, 2**11 + 1))
    assert not traced


def test_few_images_wait_for_others_of_their_bucket(net):
    taken = []

    def images():
        for i in range(30):
            taken.append(i)
            yield i, picture(1 + 64 * (i % 2), 1 + 64 * (i // 10))

    results = predict_many(net, images(), batch_size=2)
    next(results)
    assert len(taken) <= 17


def test_size_resizes_the_image_and_then_the_scores(net):
    image = picture(40, 50)
    labels = predict(net.replace(size=SIZE), image)
    small = Image.fromarray(image).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    scores = np.asarray(apply(net, np.asarray(small)))
    # Pillow resizes float maps, one class at a time.
    large = [
        Image.fromarray(np.ascontiguousarray(scores[..., i])).resize(
            (50, 40), Image.Resampling.BILINEAR
        )
        for i in range(5)
    ]
    assert labels.dtype == np.int32
    assert (labels == np.argmax(large, axis=0)).mean() > 0.999


def test_new_size_of_an_image_does_not_compile_a_resizing_network_again(net, traced):
    net = net.replace(size=SIZE, model=net.model.clone(dropout=0.3))
    for size in ((40, 50), (10, 9), (33, 20)):
        labels = predict(net, picture(*size))
        np.testing.assert_array_equal(labels, np.argmax(apply(net, picture(*size)), -1))
    assert len(traced) == 1
