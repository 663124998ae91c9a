import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference import buckets, tiles
from fcn_jax.inference.image import as_batch
from fcn_jax.inference.predict import apply, predict
from fcn_jax.inference.programs import labels_of
from fcn_jax.inference.tiles import predict_tiled
from fcn_jax.models.fcn import FCN

MODEL = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_apply_equals_the_model(params):
    batch = np.stack([picture(seed=1), picture(seed=2)])
    logits = apply(params, batch)
    expected = jax.jit(MODEL.apply)({"params": params}, batch)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    assert logits.shape == (2, *SIZE, 5) and logits.dtype == jnp.float32


def test_single_image_gives_what_its_batch_of_one_gives(params):
    logits = apply(params, picture())
    assert logits.shape == (*SIZE, 5)
    np.testing.assert_array_equal(logits, apply(params, picture()[None])[0])
    np.testing.assert_array_equal(
        predict(params, picture()), predict(params, picture()[None])[0]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_dtype_of_the_image_does_not_matter(params, dtype):
    logits = apply(params, picture().astype(dtype))
    np.testing.assert_array_equal(logits, apply(params, picture()))


def test_predict_takes_the_highest_score(params):
    labels = predict(params, picture())
    assert labels.shape == SIZE and labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, np.argmax(apply(params, picture()), -1))


@pytest.fixture
def tile_shapes(monkeypatch):
    """Of the tiles that the network sees, where 20,000 pixels are the limit."""
    shapes = []

    def run(model, params, batch, size):
        shapes.append(batch.shape)
        return labels_of(model, params, batch, size)

    in_tiles = functools.partial(predict_tiled, tile=20_000)
    monkeypatch.setattr(buckets, "needs_tiles", lambda s: s[0] * s[1] > 20_000)
    monkeypatch.setattr(buckets, "predict_tiled", in_tiles)
    monkeypatch.setattr(tiles, "labels_of", run)
    return shapes


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_predict_of_large_images_sees_a_tile_at_once(params, tile_shapes, kind):
    batch = np.stack([picture(20, 1100, seed=1), picture(20, 1100, seed=2)])
    labels = predict(params, kind(batch))
    assert isinstance(labels, np.ndarray) and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.argmax(apply(params, batch), -1))
    assert len(tile_shapes) > 2
    assert all(b == 1 and h * w <= 20_000 for b, h, w, _ in tile_shapes)


def test_predict_inside_jit_sees_the_whole_of_a_large_image(params, tile_shapes):
    image = picture(20, 1100)
    labels = jax.jit(predict)(params, image)
    assert tile_shapes == []
    np.testing.assert_array_equal(labels, np.argmax(apply(params, image), -1))


def test_model_given_is_the_model_used(params):
    other = FCN(variant="fcn32s", num_classes=5, width=1 / 16, mean_rgb=(0, 0, 0))
    expected = apply(params, picture() + np.float32(MODEL.mean_rgb))
    actual = apply(params, picture(), model=other)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)


def test_apply_and_predict_work_inside_jit(params):
    image = jnp.asarray(picture(), jnp.float32) + 1
    # Whether the image is an argument or closed over.
    np.testing.assert_array_equal(jax.jit(apply)(params, image), apply(params, image))
    np.testing.assert_array_equal(
        jax.jit(lambda params: predict(params, image))(params), predict(params, image)
    )


def test_apply_has_gradients_in_params_and_image(params):
    def total(params, image):
        return apply(params, image).sum()

    grads = jax.grad(total, argnums=(0, 1))(params, picture().astype(np.float32))
    # Of each class, the bias reaches every pixel once, through kernels that sum to 1.
    bias = grads[0]["head"]["score_fr"]["bias"]
    assert bias.shape == (5,) and (np.asarray(bias) > 0).all()
    assert grads[1].shape == (*SIZE, 3) and np.isfinite(grads[1]).all()


def test_batch_of_an_image_says_that_it_was_single():
    batch, single = as_batch(picture())
    assert batch.shape == (1, *SIZE, 3) and single
    batch, single = as_batch(picture()[None])
    assert batch.shape == (1, *SIZE, 3) and not single


HINTS = [
    ((8, 9), "np.stack([image] * 3, axis=-1)"),
    ((8, 9, 1), "np.repeat(image, 3, axis=-1)"),
    ((8, 9, 4), "image[..., :3]"),
    ((2, 8, 9, 4), "image[..., :3]"),
    ((3, 8, 9), "np.moveaxis(image, -3, -1)"),
    ((2, 3, 8, 9), "np.moveaxis(image, -3, -1)"),
]


@pytest.mark.parametrize("shape, hint", HINTS)
def test_wrong_shape_gets_an_error_whose_advice_works(shape, hint):
    image = np.ones(shape, np.uint8)
    with pytest.raises(ValueError) as error:
        as_batch(image)
    assert f"got {list(shape)}: for " in str(error.value)
    assert str(error.value).endswith(f" pass {hint}")
    as_batch(eval(hint, {"np": np, "image": image}))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 4, 4, 3), (5,), (1,) * 5])
def test_empty_and_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\] with no empty side, got"):
        as_batch(np.ones(shape, np.uint8))


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_dtypes_that_hold_no_colors_are_refused(dtype):
    with pytest.raises(ValueError, match="uint8 or float"):
        as_batch(np.ones((4, 4, 3), dtype))


@pytest.mark.parametrize(
    "image", ["cat.jpg", Image.new("RGB", (4, 4)), [[[1, 2, 3]]], None]
)
def test_what_is_no_array_gets_an_error_with_the_way(image):
    with pytest.raises(ValueError, match=f"image is a {type(image).__name__}, not an"):
        as_batch(image)


@pytest.mark.parametrize("kind", [np.float32, jnp.bfloat16, jnp.asarray])
def test_images_scaled_to_one_or_normalized_get_a_warning(kind):
    for image in (picture() / 255, picture() / 127.5 - 1):
        image = kind(image) if kind is jnp.asarray else image.astype(kind)
        with pytest.warns(UserWarning, match=r"takes RGB in \[0, 255\]"):
            as_batch(image)


def test_warning_points_at_the_caller(params):
    with pytest.warns(UserWarning) as caught:
        apply(params, np.full((*SIZE, 3), 0.5, np.float32))
    assert caught[0].filename == __file__


def test_black_image_gets_no_warning():
    as_batch(np.zeros((4, 4, 3), np.float32))
    as_batch(np.ones((4, 4, 3), np.uint8))
