import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.training.losses import cross_entropy


def logits_and_label(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, [2, 4, 5, 7]).astype(np.float32)
    label = rng.integers(0, 7, [2, 4, 5]).astype(np.int32)
    label[rng.random(label.shape) < 0.3] = 255
    return logits, label


@given(st.integers(0, 1000))
def test_cross_entropy_equals_the_definition_pixel_by_pixel(seed):
    logits, label = logits_and_label(seed)
    log_probability = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    losses = [
        -log_probability[index][label[index]]
        for index in np.ndindex(label.shape)
        if label[index] != 255
    ]
    loss, count = cross_entropy(logits, jnp.asarray(label))
    assert count == len(losses)
    assert loss == pytest.approx(sum(losses), rel=1e-5)


def test_class_weights_multiply_each_pixel_by_that_of_its_class():
    logits, label = logits_and_label(3)
    weights = (0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.5)
    log_probability = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    labelled = [index for index in np.ndindex(label.shape) if label[index] != 255]
    losses = [weights[label[i]] * -log_probability[i][label[i]] for i in labelled]
    loss, count = cross_entropy(logits, jnp.asarray(label), class_weights=weights)
    assert loss == pytest.approx(sum(losses), rel=1e-5)
    assert count == pytest.approx(sum(weights[label[i]] for i in labelled), rel=1e-6)


def test_zero_logits_cost_the_log_of_the_classes_per_labelled_pixel():
    _, label = logits_and_label(0)
    loss, count = cross_entropy(jnp.zeros([2, 4, 5, 21]), jnp.asarray(label))
    assert loss / count == pytest.approx(np.log(21), rel=1e-6)


def test_void_pixels_change_neither_loss_nor_gradient():
    logits, label = logits_and_label(1)
    void = label == 255
    changed = np.where(void[..., None], 1e4 * np.arange(7, dtype=np.float32), logits)

    def loss(logits):
        return cross_entropy(logits, jnp.asarray(label))[0]

    value, grad = jax.value_and_grad(loss)(logits)
    changed_value, changed_grad = jax.value_and_grad(loss)(changed)
    assert value == changed_value
    np.testing.assert_array_equal(grad, changed_grad)
    assert not np.asarray(grad)[void].any()
    assert np.asarray(grad)[~void].any(axis=-1).all()


def test_all_void_batch_gives_zero_loss_and_zero_gradient():
    logits, label = logits_and_label(2)
    label = jnp.full_like(jnp.asarray(label), 255)
    value, grad = jax.value_and_grad(lambda x: cross_entropy(x, label)[0])(logits)
    assert value == 0
    assert not np.asarray(grad).any()
