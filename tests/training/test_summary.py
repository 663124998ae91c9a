import collections
import logging
import shutil

import jax
import jax.numpy as jnp
import pytest

from fcn_jax.training.config import Config, Data, Model
from fcn_jax.training.steps import TrainState
from fcn_jax.training.summary import check_room, describe_run, room_needed

# 1000 bytes of parameters and 2000 more of the optimiser.
STATE = TrainState(jnp.zeros([], jnp.int32), jnp.zeros(250), jnp.zeros(500))
Usage = collections.namedtuple("Usage", "free")


@pytest.fixture
def free(monkeypatch):
    """A function that sets the bytes that are free on any disk."""

    def set_free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(count))

    return set_free


def config(**fields):
    return Config(steps=100, eval_every=10, **fields)


def test_run_needs_room_for_what_it_keeps_and_what_replaces_it():
    # 3004 bytes a checkpoint: two kept, the best, and one that is being written.
    assert room_needed(config(), STATE) == (4004, 4 * 3004 + 2000)
    assert room_needed(config(keep_checkpoints=5), STATE)[1] == 7 * 3004 + 2000
    once = Config(steps=10, eval_every=10)
    assert room_needed(once, STATE)[1] == 3004 + 2000


def test_disk_without_room_for_one_checkpoint_is_refused(free, tmp_path):
    free(4003)
    with pytest.raises(OSError, match="take 4 kB, but .* has only 4 kB free: free"):
        check_room(config(), STATE, tmp_path)


def test_disk_that_may_become_full_is_a_warning(free, tmp_path, caplog):
    free(14_015)
    with caplog.at_level(logging.INFO):
        check_room(config(), STATE, tmp_path)
        free(14_016)
        check_room(config(), STATE, tmp_path)
    short, enough = caplog.records
    assert short.levelname == "WARNING" and "may become full" in short.getMessage()
    assert enough.levelname == "INFO" and "3 kB each" in enough.getMessage()


def test_files_of_an_earlier_process_count_as_room(free, tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "10.safetensors").write_bytes(bytes(13_016))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    free(0)
    check_room(config(), STATE, tmp_path)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_run_is_described_before_its_first_step(caplog):
    source = [{"image": jnp.zeros((1, 1, 3))}] * 40
    thin = Model(variant="fcn32s", width=1 / 64)
    free_size = config(model=thin, data=Data(num_classes=2), batch_size=8)
    cropped = config(model=thin, data=Data(num_classes=2, crop=(24, 48)))
    with caplog.at_level(logging.INFO):
        describe_run(free_size, STATE, source, jax.devices()[:1])
        describe_run(cropped, STATE, source, jax.devices()[:1])
    first, second, third, fourth, *_ = (r.getMessage() for r in caplog.records)
    assert first.startswith("fcn32s: 250 parameters; ") and "of 1x1," in first
    assert second.startswith("100 steps of 8 images; passes over the 40 images: 20;")
    assert third.startswith("1 device: ")
    assert "image of 24x48," in fourth
