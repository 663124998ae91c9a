import json

import jax
import numpy as np
import pytest

import fcn_jax
from fcn_jax.evaluation.summary import read_summary
from fcn_jax.training.log import Log, read_log
from fcn_jax.training.validation import Validation
from fcn_jax.weights.safetensors_file import read_metrics


@pytest.fixture
def validation(tmp_path):
    """A function that makes the validation of a run in ``tmp_path``."""
    logs = []

    def make(source, best=None):
        logs.append(Log(tmp_path, start_step=-1))
        return Validation(tmp_path, source, "val", logs[-1], best)

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
    validate(bad, 1)
    first = validate.best
    assert first["step"] == 1 and first["mean_iu"] < 1
    assert first == json.loads((tmp_path / "metrics.json").read_text())
    for step, net in ((2, good), (3, bad), (4, good)):
        validate(net, step)
    best = validate.best
    assert (best["step"], best["mean_iu"]) == (2, 1)
    assert best == json.loads((tmp_path / "metrics.json").read_text())
    assert best == read_metrics(tmp_path / "model.safetensors")
    assert {"step": 2, **read_summary(tmp_path / "evaluation.json").figures} == best
    kept = fcn_jax.load(tmp_path)
    for a, b in zip(*map(jax.tree.leaves, (kept, good)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def void(count):
    return [(np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255))] * count


def test_network_that_is_worse_than_an_earlier_process_found_is_not_saved(
    reference, validation, tmp_path
):
    best = {"step": 1, "mean_iu": 0.5}
    validate = validation(void(1), best=best)  # Void alone scores nothing.
    validate(reference.network("fcn32s"), 5)
    assert validate.best is best
    assert not (tmp_path / "model.safetensors").exists()


def test_images_of_void_alone_keep_the_last_network_with_a_warning(
    reference, validation, tmp_path, caplog
):
    validate = validation(void(2))
    for step in (1, 2):
        validate(reference.network("fcn32s"), step)
    assert read_metrics(tmp_path / "model.safetensors")["step"] == 2
    assert "all pixels of the validation images are void" in caplog.text


def test_picture_that_cannot_be_written_is_a_warning_once(
    reference, validation, tmp_path, caplog
):
    (tmp_path / "results.png" / "in the way").mkdir(parents=True)
    validate = validation(void(2))
    for step in (1, 2):
        validate(reference.network("fcn32s"), step)
    assert caplog.text.count("cannot write") == 1
    assert f"cannot write {tmp_path / 'results.png'}: " in caplog.text
    assert read_metrics(tmp_path / "model.safetensors")["step"] == 2


def test_line_of_an_evaluation_tells_the_score_and_the_best(
    reference, validation, capsys
):
    net = reference.network("fcn32s")
    image = np.zeros((32, 32, 3), np.uint8)
    validate = validation([(image, fcn_jax.predict(net, image))])
    for step in (2, 4):
        validate(net, step)
    assert capsys.readouterr().err.splitlines() == [
        "step 2: validation mean IU 1.0000, pixel accuracy 1.0000; the best so far",
        "step 4: validation mean IU 1.0000, pixel accuracy 1.0000; the best is step 2",
    ]


def test_pictures_for_tensorboard_are_small(reference, validation, monkeypatch):
    seen = []
    monkeypatch.setattr(Log, "image", lambda self, *arguments: seen.append(arguments))
    image = np.zeros((330, 200, 3), np.uint8)
    validation([(image, np.zeros((330, 200), int))])(reference.network("fcn32s"), 3)
    [(step, name, picture)] = seen
    assert (step, name[:5], picture.shape) == (3, "eval/", (320, 3 * 194, 3))
