import errno
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from fcn_jax.files import WriteError
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.steps import init_state

TX = optax.adam(1e-3)


def state_at(step):
    state = init_state({"kernel": jnp.full([3, 2], step, jnp.float32)}, TX)
    return state._replace(step=jnp.asarray(step, jnp.int32))


def save(checkpoints, step, best=1):
    checkpoints.save(
        state_at(step),
        config={"steps": 9},
        best=best and {"step": best, "mean_iu": 0.5},
        progress={"steps": step},
        log="a digest",
    )


@pytest.mark.parametrize(
    ("best", "keep", "kept"),
    [
        ([1, 2, 2, 2], 1, [2, 4]),
        ([1, 2, 2, 2], 2, [2, 3, 4]),
        ([1, 2, 3], 1, [3]),
        ([1, 1, 1], 1, [1, 3]),
        ([None, None], 1, [2]),
    ],
)
def test_checkpoints_kept_are_the_latest_and_the_best(tmp_path, best, keep, kept):
    for step, best_step in enumerate(best, start=1):
        save(Checkpoints(tmp_path, keep=keep), step, best_step)
    assert Checkpoints(tmp_path, keep=keep).steps() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{step}.safetensors" for step in kept
    ]


def test_newest_checkpoint_gives_all_that_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    save(checkpoints, 9)
    save(checkpoints, 10)
    found = checkpoints.newest()
    assert (found.step, found.config) == (10, {"steps": 9})
    assert found.best == {"step": 1, "mean_iu": 0.5}
    assert (found.progress, found.log) == ({"steps": 10}, "a digest")
    restored = found.state(jax.eval_shape(lambda: state_at(0)))
    expected = state_at(10)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (restored, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_checkpoint_is_a_safetensors_file(tmp_path):
    save(Checkpoints(tmp_path, keep=1), 7)
    arrays = load_file(tmp_path / "7.safetensors")
    np.testing.assert_array_equal(arrays["params/kernel"], np.full([3, 2], 7))


def test_no_checkpoint_has_no_newest(tmp_path):
    assert Checkpoints(tmp_path / "c", keep=1).newest() is None


def damage(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        save(checkpoints, step)
    damage(checkpoints.path(3))
    checkpoints.path(2).write_bytes(checkpoints.path(2).read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest().step == 1
    assert f"{tmp_path}/3.safetensors is damaged" in caplog.text
    assert f"{tmp_path}/2.safetensors is not a readable" in caplog.text
    assert "going on from step 1" in caplog.text
    # What the run saved beyond the state it went back to is no longer its own.
    save(checkpoints, 2)
    assert checkpoints.steps() == [1, 2] and checkpoints.newest().step == 2


def test_run_with_damaged_checkpoints_alone_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    damage(checkpoints.path(1))
    with pytest.raises(ValueError, match=r"(?s)1.safetensors is damaged.*No checkpoin"):
        checkpoints.newest()


def test_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        Checkpoints(tmp_path, keep=1).newest()


def test_checkpoints_of_an_older_version_are_refused(tmp_path):
    (tmp_path / "40").mkdir()
    with pytest.raises(ValueError, match="older version .*config.init_from"):
        Checkpoints(tmp_path, keep=1).newest()


def test_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    other = state_at(1)._replace(params={"kernel": np.zeros([3, 3], np.float32)})
    with pytest.raises(ValueError, match="checkpoint of step 1 holds other arrays"):
        checkpoints.newest().state(other)


def test_failed_save_keeps_the_checkpoints_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(WriteError, match="cannot write .*/2.safetensors: No space"):
            save(checkpoints, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["1.safetensors"]
