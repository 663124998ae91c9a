import logging

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
        saved, tx = checkpoints.newest(), optax.adam(1e-3)
        found = start_or_resume(config, tmp_path / "run", saved, tx, source)
        checkpoints.save(found[1], config={}, best=None, progress={}, log="")
        return found

    return run


def save_network(tmp_path, width, **fields):
    net = fcn_jax.init(jax.random.key(5), "fcn32s", width=width, **fields)
    fcn_jax.save(tmp_path / "net.safetensors", net)
    return net, str(tmp_path / "net.safetensors")


def test_weight_file_brings_its_body_and_its_mean(start, thin_config, tmp_path):
    mean = (1.0, 2.0, 3.0)
    net, path = save_network(tmp_path, 1 / 64, num_classes=2, mean=mean)
    config, state, trained = start(thin_config(init_from=path))
    assert config.model.mean == mean and not trained
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


# More input channels than RGB.


@pytest.fixture
def wide_source():
    """Images with two more channels: one of 16 bits, and one that is constant."""
    rng = np.random.default_rng(3)

    def draw(size):
        image = rng.integers(0, 256, (*size, 3)).astype(np.float32)
        depth = rng.integers(0, 65_536, size).astype(np.float32)
        image = np.dstack([image, depth, np.full(size, 9, np.float32)])
        return {"image": image, "label": np.zeros(size, np.int32), "name": "a"}

    return [draw(size) for size in ((3, 4), (5, 5), (1, 2))]


class Unread:
    """A source whose images must not be read."""

    def __len__(self):
        pytest.fail("the source is read")

    __getitem__ = __len__


def wide(config, **fields):
    for name, value in {"in_channels": 5, **fields}.items():
        setattr(config.model, name, value)
    return config


def test_further_channels_get_mean_and_scale_of_the_training_images(
    start, thin_config, tmp_path, wide_source, caplog
):
    with caplog.at_level(logging.INFO, "fcn_jax"):
        config, state, _ = start(wide(thin_config()), wide_source)
    depth = np.concatenate([e["image"][..., 3].ravel() for e in wide_source])
    depth = depth.astype(np.float64)
    mean = (123.68, 116.779, 103.939, depth.mean(), 9)
    assert config.model.mean == pytest.approx(mean, rel=1e-6)
    scale = (1, 1, 1, 64 / depth.std(), 1)
    assert config.model.scale == pytest.approx(scale, rel=1e-6)
    assert state.params["body"]["conv1_1"]["kernel"].shape == (3, 3, 5, 1)
    assert load_config(tmp_path / "run" / "config.json") == config
    options = (
        f'--config.model.mean="{config.model.mean}" '
        f'--config.model.scale="{config.model.scale}"'
    )
    assert options in caplog.text


def test_mean_and_scale_of_the_config_are_kept(start, thin_config, wide_source):
    mean, scale = (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 1.0, 1.0, 0.5, 2.0)
    config, *_ = start(wide(thin_config(), mean=mean, scale=scale), Unread())
    assert (config.model.mean, config.model.scale) == (mean, scale)


def test_scale_alone_is_kept_beside_the_mean_of_the_images(
    start, thin_config, wide_source
):
    scale = (1.0, 1.0, 1.0, 0.5, 2.0)
    config, *_ = start(wide(thin_config(), scale=scale), wide_source)
    assert config.model.scale == scale and config.model.mean[4] == 9


@pytest.mark.parametrize("extra_init", ["mean", "zero"])
def test_weights_for_rgb_start_a_network_of_further_channels(
    start, thin_config, tmp_path, wide_source, extra_init
):
    mean = (1.0, 2.0, 3.0)
    net, path = save_network(tmp_path, 1 / 64, num_classes=5, mean=mean)
    config = wide(thin_config(init_from=path), extra_init=extra_init)
    config, state, trained = start(config, wide_source)
    assert trained and config.model.mean[:3] == mean and config.model.mean[4] == 9
    assert config.model.scale[:3] == (1, 1, 1)
    kernel = np.asarray(net.params["body"]["conv1_1"]["kernel"])
    extra = kernel.mean(axis=2) if extra_init == "mean" else 0 * kernel[:, :, 0]
    expected = np.dstack([*np.moveaxis(kernel, 2, 0), extra, extra])
    found = np.squeeze(state.params["body"]["conv1_1"]["kernel"], 3)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_weights_of_as_many_channels_bring_their_mean_and_scale(
    start, thin_config, tmp_path
):
    fields = {"mean": (1.0, 2.0, 3.0, 4.0, 5.0), "scale": (1.0, 1.0, 1.0, 0.5, 2.0)}
    _, path = save_network(tmp_path, 1 / 64, num_classes=5, in_channels=5, **fields)
    config, *_ = start(wide(thin_config(init_from=path)), Unread())
    assert config.model.mean == fields["mean"]
    assert config.model.scale == fields["scale"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mean": (1.0, 2.0, 4.0)},
            r"config.model.mean = \(1.0, 2.0, 4.0\) differs from the mean "
            r"\(1.0, 2.0, 3.0\) of the weights.*leave it out or \(\)",
        ),
        ({"scale": (1.0, 1.0, 2.0)}, "config.model.scale = .* differs from the scale"),
        (
            {"in_channels": 5, "mean": (9.0, 2.0, 3.0, 4.0, 5.0)},
            "config.model.mean = .* differs from the mean",
        ),
    ],
)
def test_mean_or_scale_unlike_those_of_the_weights_is_refused(
    start, thin_config, tmp_path, fields, message
):
    mean = (1.0, 2.0, 3.0)
    _, path = save_network(tmp_path, 1 / 64, num_classes=2, mean=mean)
    config = thin_config(init_from=path)
    for name, value in fields.items():
        setattr(config.model, name, value)
    with pytest.raises(ValueError, match=message):
        start(config, Unread())


def test_weights_of_other_channels_are_refused_before_images_are_read(
    start, thin_config, tmp_path
):
    fields = {"in_channels": 4, "mean": (1.0, 2.0, 3.0, 4.0)}
    _, path = save_network(tmp_path, 1 / 64, num_classes=2, **fields)
    for channels in (3, 5):
        config = wide(thin_config(init_from=path), in_channels=channels)
        wanted = f"init_from = .*take 4 input channels, the network {channels}: set"
        with pytest.raises(ValueError, match=wanted):
            start(config, Unread())
