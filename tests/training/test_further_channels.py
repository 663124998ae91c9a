"""A task that no network can solve from red, green and blue."""

import numpy as np
import pytest

import fcn_jax
from fcn_jax.training.config import Config, Data, Model, Optim

pytestmark = pytest.mark.usefixtures("quick")


def example(seed):
    """Random colours, and a depth in metres that is small on one side: class 1."""
    rng = np.random.default_rng(seed)
    label = np.zeros((32, 32), np.int32)
    label[:, 16:] = 1
    label = label if seed % 2 else label[:, ::-1]
    colours = rng.integers(0, 256, (32, 32, 3))
    depth = np.where(label, 2.0, 5.0) + rng.normal(0, 0.3, label.shape)
    return np.float32(np.dstack([colours, depth])), label


def blinded(image):
    """The image with the same depth everywhere."""
    return np.dstack([image[..., :3], np.full_like(image[..., 3], 3.5)])


def test_task_that_only_the_fourth_channel_can_solve_is_solved(tmp_path):
    config = Config(
        model=Model(
            "fcn16s", in_channels=4, width=1 / 32, dropout=0.0, score_init="xavier"
        ),
        data=Data(num_classes=2, channels=("red", "green", "blue", "depth")),
        optim=Optim(learning_rate=4e-3, schedule="constant"),
        steps=50,
        eval_every=50,
        batch_size=4,
    )
    train, val = map(example, range(8)), map(example, range(100, 104))
    figures = fcn_jax.train(config, tmp_path, list(train), list(val))
    assert figures["mean_iu"] > 0.95
    net = fcn_jax.load(tmp_path)
    assert net.channels == config.data.channels and net.model.in_channels == 4
    # The scale gives the depth the size of colours: 64 / its standard deviation.
    depths = np.concatenate(
        [image[..., 3].ravel() for image, _ in map(example, range(8))]
    )
    assert net.model.mean[3] == pytest.approx(depths.mean(), rel=1e-5)
    assert net.model.scale[3] == pytest.approx(64 / depths.std(), rel=1e-5)
    blind = [(blinded(image), label) for image, label in map(example, (100, 101))]
    assert fcn_jax.evaluate(net, blind, progress=False).figures["mean_iu"] < 0.7
