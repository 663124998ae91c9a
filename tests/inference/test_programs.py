import jax
import numpy as np

from fcn_jax.inference.programs import (
    classes_of,
    labels_of,
    resized_scores,
    scores_of,
    surest,
)

SIZES = np.array([[20, 33], [9, 30]], np.int32)


def batch():
    return np.random.default_rng(0).integers(0, 256, (2, 20, 33, 3), np.uint8)


def test_scores_are_those_of_the_model_with_and_without_sizes(net):
    for size in (None, SIZES):
        expected = jax.jit(net.model.apply)({"params": net.params}, batch(), size)
        found = scores_of(net.replace(size=(8, 8)), batch(), size)  # Not resized.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
        labels = labels_of(net, batch(), size)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, np.argmax(found, axis=-1))


def test_resized_scores_have_the_size_of_the_image(net):
    scores = resized_scores(net.replace(size=(24, 17)), batch())
    assert scores.shape == (2, 20, 33, 5)
    plain = resized_scores(net, batch())
    np.testing.assert_array_equal(plain, scores_of(net, batch()))
    assert not np.allclose(scores, plain)


def test_surest_class_and_its_softmax_by_hand():
    labels, confidence = surest(np.log(np.array([[1.0, 3.0, 4.0], [8.0, 1.0, 1.0]])))
    np.testing.assert_array_equal(labels, [2, 0])
    np.testing.assert_allclose(confidence, [0.5, 0.8], rtol=1e-6)
    labels, confidence = surest(np.array([1e30, -1e30, 1e4]))  # No overflow.
    assert labels == 0 and confidence == 1


def test_classes_are_the_labels_and_their_softmax(net):
    labels, confidence = classes_of(net, batch(), SIZES)
    np.testing.assert_array_equal(labels, labels_of(net, batch(), SIZES))
    expected = jax.nn.softmax(scores_of(net, batch(), SIZES)).max(-1)
    np.testing.assert_allclose(confidence, expected, rtol=1e-4)
