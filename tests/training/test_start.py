import jax
import numpy as np
import optax
import pytest

import fcn_jax
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import load_config, make_source
from fcn_jax.training.start import start_or_resume

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def start(tmp_path):
    """A function that starts or resumes a run with a config, and saves its state."""

    def run(config, source=None):
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
        try:
            tx = optax.adam(1e-3)
            found = start_or_resume(config, tmp_path / "run", checkpoints, tx, source)
            checkpoints.save(found[1])
        finally:
            checkpoints.close()
        return found

    return run


def save_network(tmp_path, width, **fields):
    net = fcn_jax.init(jax.random.key(5), "fcn32s", width=width, **fields)
    fcn_jax.save(tmp_path / "net.safetensors", net)
    return net, str(tmp_path / "net.safetensors")


def test_weight_file_brings_its_body_and_its_mean(start, thin_config, tmp_path):
    mean = (1.0, 2.0, 3.0)
    net, path = save_network(tmp_path, 1 / 64, num_classes=2, mean_rgb=mean)
    config, state, trained = start(thin_config(init_from=path))
    assert config.model.mean_rgb == mean and not trained
    for name, layer in net.params["body"].items():
        kernel = state.params["body"][name]["kernel"]
        np.testing.assert_array_equal(kernel, layer["kernel"])


def test_network_of_as_many_classes_is_a_trained_one(start, thin_config, tmp_path):
    net, path = save_network(tmp_path, 1 / 64, num_classes=5, score_init="xavier")
    _, state, trained = start(thin_config(init_from=path))
    assert trained
    for a, b in zip(*map(jax.tree.leaves, (net.params, state.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_width_are_refused(start, thin_config, tmp_path):
    _, path = save_network(tmp_path, 1 / 32, num_classes=2)
    wanted = "config.init_from = .* 2 filters in conv1_1, the network 1"
    with pytest.raises(ValueError, match=wanted):
        start(thin_config(init_from=path))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("balance", ["median_frequency", "inverse_log"])
def test_class_balance_is_that_of_the_training_labels(
    start, thin_config, tmp_path, balance
):
    config = thin_config(class_balance=balance)
    source = make_source(config, "train")
    labels = [example["label"] for example in source]
    count = np.bincount(np.concatenate([x[x != 255] for x in labels]), minlength=5)
    inside = [sum(x.size for x in labels if (x == c).any()) for c in range(5)]
    if balance == "median_frequency":
        frequency = count[count > 0] / np.array(inside)[count > 0]
        expected = np.zeros(5)
        expected[count > 0] = np.median(frequency) / frequency
    else:
        expected = 1 / np.log(1.02 + count / count.sum())
    found, _, _ = start(config, source)
    assert found.class_weights == pytest.approx(tuple(expected))
    assert load_config(tmp_path / "run" / "config.json") == found


def test_class_balance_of_a_broken_source_is_refused(start, thin_config):
    pair = (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 7))
    with pytest.raises(ValueError, match="example 0: label values 7"):
        start(thin_config(class_balance="inverse_log"), [pair])
