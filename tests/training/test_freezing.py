import pytest

from fcn_jax.training.freezing import merge_params, split_params

PARAMS = {
    "body": {"conv1_1": 1, "conv1_2": 2, "conv2_1": 3, "fc6": 4},
    "head": {"score_fr": 5},
}


def test_prefixes_choose_layers_of_both_parts():
    trainable, frozen = split_params(PARAMS, ("conv1", "score"))
    assert trainable == {"body": {"conv2_1": 3, "fc6": 4}, "head": {}}
    assert frozen == {"body": {"conv1_1": 1, "conv1_2": 2}, "head": {"score_fr": 5}}
    assert merge_params(trainable, frozen) == PARAMS


def test_nothing_frozen_leaves_the_parameters_as_they_are():
    trainable, frozen = split_params(PARAMS, ())
    assert trainable is PARAMS
    assert merge_params(trainable, frozen) is PARAMS


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("conv1", "conv9"), "'conv9', and no .* conv1_1, conv1_2, conv2_1, fc6, sc"),
        (("conv", "fc", "score"), "leaves nothing to train: .* the layers conv1_1, "),
        (("",), "leaves nothing to train"),
        ("conv1", r"freeze = 'conv1' must be a tuple of prefixes"),
        ((1,), r"freeze = \(1,\) must be a tuple of prefixes"),
    ],
)
def test_freeze_that_does_not_suit_the_layers_is_refused(freeze, message):
    with pytest.raises(ValueError, match=message):
        split_params(PARAMS, freeze)
