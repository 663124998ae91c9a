import functools

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.padding import bucket, fill_up
from fcn_jax.evaluation.evaluate import evaluate
from fcn_jax.inference.buckets import predict_many
from fcn_jax.inference.predict import apply, predict
from fcn_jax.inference.programs import labels_of
from fcn_jax.models.fcn import FCN

MODEL = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
SIZE = (20, 33)


def picture(height=SIZE[0], width=SIZE[1], seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def alone(params, image):
    """Labels of an image in a program of its own size."""
    return np.argmax(apply(params, image), axis=-1)


SIZES = [(20, 33), (33, 20), (1, 1), (64, 64), (65, 3), (20, 33), (40, 40), (7, 70)]


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_many_images_of_any_size_get_the_labels_of_each_alone(params, batch_size):
    images = {i: picture(*size, seed=i) for i, size in enumerate(SIZES)}
    found = dict(predict_many(MODEL, params, images.items(), batch_size=batch_size))
    assert found.keys() == images.keys()
    for key, image in images.items():
        assert found[key].dtype == np.int32
        np.testing.assert_array_equal(found[key], alone(params, image))


def test_images_of_many_sizes_compile_once_for_each_bucket(params):
    rng = np.random.default_rng(0)
    sizes = {tuple(rng.integers(1, 129, 2).tolist()) for _ in range(40)}
    images = [(size, picture(*size)) for size in sorted(sizes)]
    labels_of.clear_cache()
    assert len(list(predict_many(MODEL, params, images, batch_size=1))) == len(sizes)
    assert labels_of._cache_size() == len({bucket(size) for size in sizes}) == 4


def test_few_images_wait_for_others_of_their_bucket(params):
    taken = []

    def images():
        for i in range(30):
            taken.append(i)
            yield i, picture(1 + 64 * (i % 2), 1 + 64 * (i // 10))

    results = predict_many(MODEL, params, images(), batch_size=2)
    next(results)
    assert len(taken) <= 17


def test_bucket_is_the_next_multiple():
    assert bucket((1, 64)) == (64, 64)
    assert bucket((65, 129), 32) == (96, 160)


def test_fill_up_puts_images_top_left_and_makes_up_what_lacks():
    images = [picture(2, 3), picture(4, 1, seed=1)]
    batch, size = fill_up(images, (4, 5), 3)
    assert batch.shape == (3, 4, 5, 3) and batch.dtype == np.uint8
    np.testing.assert_array_equal(size, [[2, 3], [4, 1], [1, 1]])
    for i, image in enumerate(images):
        h, w = image.shape[:2]
        np.testing.assert_array_equal(batch[i, :h, :w], image)
        assert batch[i].sum() == image.sum()


def test_size_resizes_the_image_and_then_the_scores(params):
    image = picture(40, 50)
    [(key, labels)] = predict_many(MODEL, params, [("a", image)], size=SIZE)
    small = Image.fromarray(image).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    scores = np.asarray(apply(params, np.asarray(small)))
    # Pillow resizes float maps, one class at a time.
    large = [
        Image.fromarray(scores[..., i]).resize((50, 40), Image.Resampling.BILINEAR)
        for i in range(5)
    ]
    assert key == "a" and labels.dtype == np.int32
    assert (labels == np.argmax(large, axis=0)).mean() > 0.999


def test_predict_of_another_size_in_the_bucket_compiles_nothing(params):
    predict(params, picture(40, 50))
    before = labels_of._cache_size()
    for size in ((1, 1), (64, 64), (33, 20)):
        labels = predict(params, picture(*size))
        np.testing.assert_array_equal(labels, alone(params, picture(*size)))
    assert labels_of._cache_size() == before


def test_evaluation_in_batches_equals_that_of_each_image_alone(params):
    class Source:
        def __len__(self):
            return len(SIZES)

        def __getitem__(self, i):
            label = np.random.default_rng(i).integers(0, 5, SIZES[i]).astype(np.int32)
            return {"image": picture(*SIZES[i], seed=i), "label": label, "name": f"{i}"}

    def each_alone(images):
        return ((i, alone(params, image)) for i, image in images)

    options = {"num_classes": 5, "progress": False, "keep": [1, 4]}
    in_batches = functools.partial(predict_many, MODEL, params, batch_size=8)
    confusion, kept = evaluate(in_batches, Source(), **options)
    expected, expected_kept = evaluate(each_alone, Source(), **options)
    np.testing.assert_array_equal(confusion, expected)
    assert [name for name, *_ in kept] == [name for name, *_ in expected_kept]
