import json

import jax
import numpy as np
import pytest

import fcn_jax
from fcn_jax.training.log import Log, read_log
from fcn_jax.training.validation import Validation, read_best


@pytest.fixture
def validation(tmp_path):
    """A function that makes the validation of a run in ``tmp_path``."""
    logs = []

    def make(source, best=None):
        logs.append(Log(tmp_path, start_step=-1))
        return Validation(tmp_path, source, logs[-1], best)

    yield make
    for log in logs:
        log.close()


def test_better_network_is_kept_and_a_worse_one_leaves_it(
    reference, validation, tmp_path
):
    good = reference.network("fcn32s")
    bad = good.replace(params=jax.tree.map(np.zeros_like, good.params))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    labels = [fcn_jax.predict(good, image) for image in images]
    assert (np.array(labels) != 0).any()  # As "bad" says of all pixels.
    validate = validation(list(zip(images, labels, strict=True)))
    assert validate(bad, 1)
    assert read_best(tmp_path)["mean_iu"] == validate.best < 1
    assert validate(good, 2) and validate.best == 1
    assert not validate(bad, 3) and not validate(good, 4)
    best = read_best(tmp_path)
    assert best == json.loads((tmp_path / "metrics.json").read_text())
    assert (best["step"], best["mean_iu"]) == (2, 1)
    kept = fcn_jax.load(tmp_path)
    for a, b in zip(*map(jax.tree.leaves, (kept, good)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_network_that_is_worse_than_an_earlier_process_found_is_not_saved(
    reference, validation, tmp_path
):
    pair = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255)
    validate = validation([pair], best=0.5)  # Void alone scores nothing.
    assert not validate(reference.network("fcn32s"), 5)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("missing", ["metrics.json", "model.safetensors"])
def test_run_without_either_file_has_no_best_network(tmp_path, missing):
    for name in ("metrics.json", "model.safetensors"):
        (tmp_path / name).write_text('{"step": 1, "mean_iu": 0.5}')
    assert read_best(tmp_path) == {"step": 1, "mean_iu": 0.5}
    (tmp_path / missing).unlink()
    assert read_best(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"step": 3}', '{"step": "x"}'),
        '{"step": 1e999, "mean_iu": 1}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:9],
)
def test_damaged_figures_are_refused_with_the_way_out(tmp_path, content):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match="metrics.json is damaged .* delete it"):
        read_best(tmp_path)
