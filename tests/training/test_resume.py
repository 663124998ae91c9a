import dataclasses
import json
import re
import shutil

import pytest

import fcn_jax
from fcn_jax.training import loop
from fcn_jax.training.config import config_of, load_config, save_config
from fcn_jax.training.log import read_log
from fcn_jax.weights import tensors

pytestmark = pytest.mark.usefixtures("quick")

# Changes that a finished run of 6 steps is asked to go on with: field, new value.
FIXED = [
    ("model.variant", "fcn16s"),
    ("model.crop", "corner"),
    ("model.score_init", "xavier"),
    ("model.mean", (1.0, 2.0, 3.0)),
    ("model.scale", (1.0, 1.0, 0.5)),
    ("data.num_classes", 6),
    ("optim.name", "sgd"),
    ("optim.freeze", ("conv1",)),
    ("init_from", "vgg16"),
]
ALTERING = [
    ("batch_size", 3),
    ("accumulate", 2),
    ("loss", "focal"),
    ("optim.rates", (0.1, 1.0)),
    ("optim.clip_norm", 1.0),
    ("seed", 1),
    ("class_balance", "inverse_log"),
    ("data.flip", False),
    ("data.rotation", 10.0),
    ("data.crop", (16, 16)),
    ("data.ignore_label", 254),
    ("optim.learning_rate", 2e-3),
    ("optim.schedule", "poly"),
    ("model.dropout", 0.25),
    ("model.dtype", "bfloat16"),
]
NEUTRAL = [
    ("log_every", 3),
    ("eval_every", 3),
    ("keep_checkpoints", 3),
    ("parallel", "none"),
    ("data.threads", 1),
    ("data.root", "elsewhere"),
    ("data.help", "Ask."),
    ("data.class_names", ("a", "b", "c", "d", "e")),
    ("data.channels", ("red", "green", "blue")),
    ("data.shown", (2, 1, 0)),
    ("model.remat", "blocks"),
]


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of the directory of a finished run, to be resumed."""
    return shutil.copytree(whole_run[0], tmp_path / "run")


def changed(config, **values):
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        setattr(getattr(config, part) if part else config, field, value)
    return config


@pytest.fixture
def pretend(run):
    """A function that makes the run one that had these values in its config."""
    path = run / "checkpoints" / "6.safetensors"

    def change(**values):
        arrays, metadata = tensors.read(path)
        config = changed(config_of(json.loads(metadata["config"])), **values)
        metadata["config"] = json.dumps(dataclasses.asdict(config))
        del metadata["sha256"]
        tensors.write(path, arrays, metadata)
        save_config(run / "config.json", config)

    return change


@pytest.mark.parametrize(("field", "value"), FIXED)
def test_field_that_the_saved_state_depends_on_is_refused(
    run, thin_config, field, value
):
    config = changed(thin_config(), **{field: value})
    with pytest.raises(
        ValueError, match=rf"config.{field} was .* and is {re.escape(repr(value))}\n"
    ):
        loop.train(config, run, allow_changes=True)


@pytest.mark.parametrize(("field", "value"), ALTERING)
def test_field_that_alters_the_run_is_refused_with_two_ways_out(
    run, thin_config, field, value
):
    before = (run / "config.json").read_bytes()
    config = changed(thin_config(), **{field: value})
    with pytest.raises(ValueError) as raised:
        loop.train(config, run)
    text = str(raised.value)
    assert f"config.{field} was " in text and f" and is {value!r}\n" in text
    assert "another workdir" in text and "--allow_changes" in text
    assert (run / "config.json").read_bytes() == before


def test_all_changes_are_listed_at_once(run, thin_config):
    config = changed(thin_config(), seed=1, batch_size=1)
    with pytest.raises(ValueError, match=r"(?s)config.batch_size .*config.seed was 0"):
        loop.train(config, run)


@pytest.mark.parametrize(("field", "value"), NEUTRAL)
def test_field_that_the_run_does_not_learn_from_is_taken(
    whole_run, run, thin_config, field, value
):
    config = changed(thin_config(), **{field: value})
    assert loop.train(config, run) == whole_run[1]
    part, _, name = field.rpartition(".")
    saved = load_config(run / "config.json")
    assert getattr(getattr(saved, part) if part else saved, name) == value
    assert read_log(run / "log.jsonl")[-1]["changes"].keys() == {field}


def test_allowed_change_is_kept_and_logged_with_its_step(run, thin_config):
    config = changed(thin_config(steps=8), seed=1)
    loop.train(config, run, allow_changes=True)
    assert load_config(run / "config.json").seed == 1
    log = read_log(run / "log.jsonl")
    [record] = [r for r in log if "changes" in r]
    assert record == {"step": 6, "changes": {"seed": [0, 1], "steps": [6, 8]}}
    assert [r["step"] for r in log if "loss" in r] == list(range(1, 9))
    assert json.loads((run / "config.json").read_text())["steps"] == 8


def test_same_command_on_a_finished_run_trains_nothing(
    whole_run, run, thin_config, caplog, monkeypatch
):
    def fail(*_):
        raise AssertionError("restored")

    monkeypatch.setattr(loop, "start_or_resume", fail)
    with caplog.at_level("INFO", "fcn_jax"):
        assert loop.train(thin_config(), run) == whole_run[1]
    assert "finished at step 6: nothing to train" in caplog.text


def test_finished_run_goes_on_with_more_steps_under_any_schedule(
    run, pretend, thin_config
):
    pretend(**{"optim.schedule": "poly"})
    config = changed(thin_config(steps=7), **{"optim.schedule": "poly"})
    loop.train(config, run)
    assert load_config(run / "config.json").steps == 7


def test_change_that_no_step_would_use_is_refused_even_if_allowed(run, thin_config):
    with pytest.raises(ValueError, match="config.seed was 0 and is 1"):
        loop.train(thin_config(seed=1), run, allow_changes=True)


def test_weights_that_a_run_began_with_may_be_gone(
    whole_run, run, pretend, thin_config
):
    pretend(init_from="gone.npy")
    assert loop.train(thin_config(init_from="gone.npy"), run) == whole_run[1]


def test_fewer_steps_than_taken_are_refused(run, thin_config):
    with pytest.raises(ValueError, match="config.steps = 4, and .* has taken 6 steps"):
        loop.train(thin_config(steps=4), run, allow_changes=True)


@pytest.mark.parametrize(("schedule", "refused"), [("poly", True), ("constant", False)])
def test_other_length_of_an_unfinished_run_alters_its_schedule(
    run, pretend, thin_config, schedule, refused
):
    pretend(**{"steps": 9, "optim.schedule": schedule})
    config = changed(thin_config(steps=7), **{"optim.schedule": schedule})
    if refused:
        with pytest.raises(ValueError, match="config.steps was 9 and is 7"):
            loop.train(config, run)
    else:
        loop.train(config, run)


def test_values_computed_at_the_start_are_no_changes(run, pretend, thin_config):
    pretend(
        **{"model.mean": (1.0, 2.0, 3.0), "model.scale": (1.0, 1.0, 0.5)},
        class_balance="inverse_log",
        class_weights=(1, 2, 3, 4, 5),
    )
    loop.train(thin_config(class_balance="inverse_log"), run)
    saved = load_config(run / "config.json")
    assert saved.model.mean == (1, 2, 3) and saved.model.scale == (1, 1, 0.5)
    assert saved.class_weights == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("content", [None, "", "{}", '{"seed": 5}', "[" * 10**5])
def test_config_file_that_is_lost_is_written_anew(whole_run, run, thin_config, content):
    file = run / "config.json"
    file.unlink() if content is None else file.write_text(content)
    assert loop.train(thin_config(), run) == whole_run[1]
    assert file.read_bytes() == (whole_run[0] / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "flipped", "cut", "old"])
def test_best_network_that_is_lost_is_written_anew(
    whole_run, run, thin_config, name, how, caplog
):
    whole = (whole_run[0] / name).read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 4
    path = run / name
    content = {"flipped": flipped, "cut": whole[:-9]}.get(how, b"")
    path.write_bytes(content)
    if how == "old":
        net, metrics = fcn_jax.load(whole_run[0]), {"step": 1, "mean_iu": 0.1}
        fcn_jax.save(run / "model.safetensors", net, metrics=metrics)
        path.write_text(json.dumps(metrics)) if name == "metrics.json" else None
    elif how == "missing":
        path.unlink()
    assert loop.train(thin_config(), run) == whole_run[1]
    assert path.read_bytes() == whole
    assert ("written anew from its checkpoint" in caplog.text) == (
        name == "model.safetensors" or how == "old"
    )


def test_best_network_that_is_lost_with_its_checkpoint_is_replaced_by_the_next(
    run, thin_config, caplog
):
    best = json.loads((run / "metrics.json").read_text())["step"]
    (run / "model.safetensors").unlink()
    (run / "checkpoints" / f"{best}.safetensors").write_bytes(b"")
    figures = loop.train(thin_config(), run)
    assert "the best network is lost, and the next evaluation keeps its own" in (
        caplog.text
    )
    assert figures["step"] == 6 and fcn_jax.load(run)


def test_edited_log_is_a_warning(whole_run, run, thin_config, caplog):
    loop.train(thin_config(), run)
    assert "damaged or edited" not in caplog.text
    log = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(log.replace('"loss": 1', '"loss": 2', 1))
    assert loop.train(thin_config(), run) == whole_run[1]
    assert "log.jsonl was damaged or edited: not all its numbers" in caplog.text


def test_change_that_is_taken_back_leaves_no_trace(whole_run, run, thin_config):
    loop.train(thin_config(eval_every=3), run)
    assert "changes" in read_log(run / "log.jsonl")[-1]
    loop.train(thin_config(), run)
    for name in ("config.json", "log.jsonl"):
        assert (run / name).read_bytes() == (whole_run[0] / name).read_bytes()


def test_network_of_another_run_is_not_replaced(run, thin_config):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match=r"(?s)seed was 0 and is 1.*no checkpoints"):
        loop.train(thin_config(seed=1), run)
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors is not the network of a"):
        loop.train(thin_config(), run)
