import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.steps import TrainState, init_state

TX = optax.adam(1e-3)


def state_at(step):
    state = init_state({"kernel": jnp.full([3, 2], step, jnp.float32)}, TX)
    return state._replace(step=jnp.asarray(step, jnp.int32))


def save_all(directory, best, keep):
    checkpoints = Checkpoints(directory, keep=keep)
    for step, is_best in enumerate(best, start=1):
        checkpoints.save(state_at(step), best=is_best)
    checkpoints.close()


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.mark.parametrize(
    ("best", "keep", "kept"),
    [
        ([True, True, False, False], 1, [2, 4]),
        ([True, True, False, False], 2, [2, 3, 4]),
        ([True, True, True], 1, [3]),
        ([True, False, False], 1, [1, 3]),
        ([False, False], 1, [2]),
    ],
)
def test_checkpoints_kept_are_the_latest_and_the_best(tmp_path, best, keep, kept):
    save_all(tmp_path / "c", best, keep)
    assert steps_in(tmp_path / "c") == kept


def test_best_of_an_earlier_process_is_kept(tmp_path):
    save_all(tmp_path / "c", [True, False], keep=1)
    checkpoints = Checkpoints(tmp_path / "c", keep=1, best_step=1)
    checkpoints.save(state_at(3))
    checkpoints.close()
    assert steps_in(tmp_path / "c") == [1, 3]


def test_restored_state_is_the_latest_one_saved(tmp_path):
    save_all(tmp_path / "c", [True, False], keep=1)
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert checkpoints.latest_step() == 2
    restored = checkpoints.restore(jax.eval_shape(lambda: state_at(0)))
    checkpoints.close()
    expected = state_at(2)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (restored, expected)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_state_may_be_donated_as_soon_as_its_save_has_begun(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def next_state(state):
        params = jax.tree.map(lambda leaf: leaf + 1, state.params)
        return TrainState(state.step + 1, params, state.opt_state)

    state = TrainState(jnp.asarray(0), {"kernel": jnp.zeros([1000, 1000])}, ())
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    for _ in range(2):
        state = next_state(state)
    checkpoints.save(state)
    for _ in range(5):
        state = next_state(state)
    jax.block_until_ready(state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    restored = checkpoints.restore(jax.eval_shape(lambda: state))
    checkpoints.close()
    assert restored.step == 2
    assert np.unique(restored.params["kernel"]).tolist() == [2.0]


def test_no_checkpoint_has_no_latest_step(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert checkpoints.latest_step() is None
    checkpoints.close()
