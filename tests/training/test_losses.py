import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.training.losses import (
    check_loss,
    cross_entropy,
    dice,
    dice_sums,
    focal,
)

WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.5)


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
    weights = WEIGHTS
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


def focal_by_hand(logits, label, weights):
    """The definition in float64, pixel by pixel."""
    total = 0.0
    for index in np.ndindex(label.shape):
        if label[index] != 255:
            p = scipy.special.softmax(logits[index])[label[index]]
            total -= weights[label[index]] * (1 - p) ** 2 * np.log(p)
    return total


def dice_by_hand(logits, label, weights):
    """The definition in float64, class by class."""
    probability = scipy.special.softmax(logits, axis=-1)[label != 255]
    true = label[label != 255]
    losses, divisor = 0.0, 0.0
    for c in np.unique(true):
        p, g = probability[:, c], true == c
        losses += weights[c] * (1 - 2 * (p * g).sum() / (p.sum() + g.sum()))
        divisor += weights[c]
    return losses / divisor


def cross_entropy_of(logits, label, weights):
    return cross_entropy(logits, jnp.asarray(label), class_weights=weights)[0]


def focal_of(logits, label, weights):
    return focal(logits, jnp.asarray(label), class_weights=weights)[0]


def dice_of(logits, label, weights):
    return dice(dice_sums(logits, jnp.asarray(label)), class_weights=weights)


DEFINITIONS = [(focal_of, focal_by_hand), (dice_of, dice_by_hand)]


@pytest.mark.parametrize(("loss", "by_hand"), DEFINITIONS)
def test_loss_and_its_gradient_equal_the_definition(loss, by_hand):
    logits, label = logits_and_label(5)
    label[label == 1] = 255  # A class that does not occur.
    value, grad = jax.value_and_grad(loss)(logits, label, WEIGHTS)
    exact = logits.astype(np.float64)
    assert value == pytest.approx(by_hand(exact, label, WEIGHTS), rel=1e-5)
    expected = np.empty_like(exact)
    for index in np.ndindex(exact.shape):
        step = np.zeros_like(exact)
        step[index] = 1e-5
        rise = by_hand(exact + step, label, WEIGHTS)
        expected[index] = (rise - by_hand(exact - step, label, WEIGHTS)) / 2e-5
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("loss", "by_hand"), DEFINITIONS)
def test_loss_without_class_weights_weighs_all_classes_alike(loss, by_hand):
    logits, label = logits_and_label(6)
    expected = by_hand(logits.astype(np.float64), label, (1,) * 7)
    assert loss(logits, label, ()) == pytest.approx(expected, rel=1e-5)


def test_focal_sums_the_weights_of_the_labelled_pixels():
    logits, label = logits_and_label(3)
    _, count = focal(logits, jnp.asarray(label), class_weights=WEIGHTS)
    expected = sum(WEIGHTS[x] for x in label[label != 255])
    assert count == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy_of, focal_of, dice_of])
def test_nan_in_void_pixels_reaches_neither_loss_nor_gradient(loss):
    logits, label = logits_and_label(1)
    void = label == 255
    changed = np.where(void[..., None], np.float32(np.nan), logits)
    value, grad = jax.value_and_grad(loss)(logits, label, ())
    changed_value, changed_grad = jax.value_and_grad(loss)(changed, label, ())
    assert value == changed_value
    np.testing.assert_array_equal(grad, changed_grad)
    assert not np.asarray(grad)[void].any()
    assert np.asarray(grad)[~void].any(axis=-1).all()


@pytest.mark.parametrize("loss", [cross_entropy_of, focal_of, dice_of])
def test_loss_without_labels_or_weights_is_zero_with_a_zero_gradient(loss):
    logits, label = logits_and_label(2)
    for found, weights in ((np.full_like(label, 255), ()), (label, (0.0,) * 7)):
        value, grad = jax.value_and_grad(loss)(logits, found, weights)
        assert value == 0
        assert not np.asarray(grad).any()


def test_dice_of_certain_scores_is_that_of_the_sets():
    label = np.array([0, 0, 0, 1, 255], np.int32)
    found = np.array([0, 0, 1, 1, 0])
    logits = 200 * np.eye(3, dtype=np.float32)[found]
    # 2 * 2 / (2 + 3) for class 0, 2 * 1 / (2 + 1) for class 1; class 2 is absent.
    assert dice_of(logits, label, ()) == pytest.approx(1 - (4 / 5 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("dise", "mean"), "loss = 'dise' is not one of cross_entropy, focal, dice"),
        (("dice", "median"), "loss_normalization = 'median' is not one of mean, sum"),
        (("cross_entropy+dice", "sum"), 'does not suit loss = .*Use "mean"'),
    ],
)
def test_loss_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_loss(*values)
