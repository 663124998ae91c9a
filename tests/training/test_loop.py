import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.training import config as config_module
from fcn_jax.training import loop
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import Config, Data, Model, Optim, make_source
from fcn_jax.training.log import Meter, read_log
from fcn_jax.training.start import start_or_resume

pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.fixture
def few_pictures(monkeypatch):
    monkeypatch.setattr(config_module, "SHAPES_TRAIN", 5)
    monkeypatch.setattr(config_module, "SHAPES_EVAL", 3)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Each run here compiles the same step anew: it may take the first one's."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def thin_config(**changes):
    return Config(
        model=Model(width=1 / 16),
        data=Data(name="shapes", num_classes=5, size=(32, 32), crop=(24, 24)),
        optim=Optim(learning_rate=1e-3),
        **{"steps": 6, "batch_size": 2, "eval_every": 2, "log_every": 1} | changes,
    )


def records(workdir):
    """The log without what depends on the clock."""
    log = read_log(workdir / "log.jsonl")
    clock = ("images_per_second", "waited_for_data")
    return [{k: v for k, v in r.items() if k not in clock} for r in log]


def checkpoint_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def interrupt_at(monkeypatch, step_to_stop):
    add = Meter.add

    def add_and_stop(self, step, metrics, **figures):
        add(self, step, metrics, **figures)
        if step == step_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Meter, "add", add_and_stop)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(config_module, "SHAPES_TRAIN", 5)
        monkeypatch.setattr(config_module, "SHAPES_EVAL", 3)
        workdir = tmp_path_factory.mktemp("run") / "whole"
        return workdir, loop.train(thin_config(), workdir)


def test_run_directory_holds_network_figures_and_pictures(whole_run):
    workdir, figures = whole_run
    for name in ("results.png", "curves.png", "config.json", "model.safetensors"):
        assert (workdir / name).stat().st_size > 0
    assert any((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "metrics.json").read_text()) == figures
    log = read_log(workdir / "log.jsonl")
    evaluations = [r for r in log if "mean_iu" in r]
    assert [r["step"] for r in evaluations] == [2, 4, 6]
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert figures["mean_iu"] == max(r["mean_iu"] for r in evaluations)


def test_saved_network_is_the_one_that_was_measured(whole_run):
    workdir, figures = whole_run
    model, params = fcn_jax.load(workdir)
    confusion = np.zeros([5, 5], int)
    for i in range(3):
        example = config_module.ShapesSource("val", size=(32, 32), length=3)[i]
        predicted = np.asarray(fcn_jax.predict(params, example["image"], model=model))
        valid = example["label"] != 255
        np.add.at(confusion, (example["label"][valid], predicted[valid]), 1)
    accuracy = np.trace(confusion) / confusion.sum()
    assert figures["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_run_equals_the_uninterrupted_bit_for_bit(
    whole_run, tmp_path, monkeypatch, stop
):
    workdir, figures = whole_run
    resumed = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        with pytest.raises(KeyboardInterrupt, match="stopped and saved at step 3"):
            loop.train(thin_config(), resumed)
    assert 3 in checkpoint_steps(resumed)
    assert loop.train(thin_config(), resumed) == figures
    assert records(resumed) == records(workdir)
    last = [state_of(run) for run in (workdir, resumed)]
    for a, b in zip(*map(jax.tree.leaves, last), strict=True):
        np.testing.assert_array_equal(a, b)


def state_of(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    _, tx = loop._optimizer(thin_config(), 6)
    _, state, _ = start_or_resume(thin_config(), workdir, checkpoints, tx, None)
    checkpoints.close()
    assert state.step == 6
    return state


def test_finished_run_is_left_as_it_is(whole_run):
    workdir, figures = whole_run
    before = (workdir / "model.safetensors").stat().st_mtime_ns
    assert loop.train(thin_config(), workdir) == figures
    assert (workdir / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [("model", "crop", "corner"), ("optim", "name", "sgd"), ("data", "num_classes", 6)],
)
def test_run_of_another_kind_is_refused(whole_run, part, field, value):
    config = thin_config()
    setattr(getattr(config, part), field, value)
    with pytest.raises(ValueError, match=f"{part}.{field} was .* and is {value!r}"):
        loop.train(config, whole_run[0])


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    config = thin_config(steps=3, eval_every=1)
    loop.train(config, tmp_path)
    config.steps, config.optim.learning_rate = 20, 1e38
    with pytest.raises(FloatingPointError, match=r"step [4-6]"):
        loop.train(config, tmp_path)
    assert max(checkpoint_steps(tmp_path)) in (3, 4)
    restored = Checkpoints(tmp_path / "checkpoints", keep=1)
    _, tx = loop._optimizer(config, 20)
    _, state, _ = start_or_resume(config, tmp_path, restored, tx, None)
    restored.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_body_of_a_weight_file_starts_the_run_and_brings_its_mean(tmp_path):
    model = fcn_jax.FCN(width=1 / 16, num_classes=2, mean_rgb=(1.0, 2.0, 3.0))
    params = fcn_jax.init(jax.random.key(5), num_classes=2, width=1 / 16)
    fcn_jax.save(tmp_path / "vgg.safetensors", model, params)
    config = thin_config(steps=1, init_from=str(tmp_path / "vgg.safetensors"))
    config.optim.learning_rate = 0.0
    loop.train(config, tmp_path / "run")
    model, trained = fcn_jax.load(tmp_path / "run")
    assert model.mean_rgb == (1.0, 2.0, 3.0)
    for name, layer in params["body"].items():
        np.testing.assert_array_equal(trained["body"][name]["kernel"], layer["kernel"])


def test_weights_of_another_width_are_refused(tmp_path):
    model = fcn_jax.FCN(width=1 / 32, num_classes=2)
    params = fcn_jax.init(jax.random.key(5), num_classes=2, width=1 / 32)
    fcn_jax.save(tmp_path / "vgg.safetensors", model, params)
    config = thin_config(init_from=str(tmp_path / "vgg.safetensors"))
    with pytest.raises(
        ValueError, match="init_from = .* 2 filters in conv1_1, the network 4"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_images_of_many_sizes_cost_a_compilation_for_each_bucket(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            size = rng.integers(20, 65, 2)
            for kind, channels in (("images", (3,)), ("labels", ())):
                pixels = rng.integers(0, 3, (*size, *channels), np.uint8)
                Image.fromarray(pixels).save(tmp_path / kind / split / f"{i}.png")
    data = Data(root=str(tmp_path), num_classes=3, bucket=32)
    config = dataclasses.replace(
        thin_config(steps=12, eval_every=12), data=data, batch_size=1
    )
    config.model.width = 1 / 32
    loop.train(config, tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    compiles = [record["compiles"] for record in log if "compiles" in record]
    assert compiles[0] == 1 and 1 < compiles[-1] <= 4  # 32 or 64 by 32 or 64.
    assert all(r["waited_for_data"] >= 0 for r in log if "waited_for_data" in r)


def test_finer_network_starts_from_the_run_of_the_coarser(tmp_path):
    coarse = thin_config(steps=4)
    coarse.model.variant, coarse.optim.learning_rate = "fcn32s", 3e-3
    coarse_figures = loop.train(coarse, tmp_path / "coarse")
    fine = thin_config(steps=2, init_from=str(tmp_path / "coarse"))
    fine.model.variant = "fcn16s"
    loop.train(fine, tmp_path / "fine")
    log = read_log(tmp_path / "fine" / "log.jsonl")
    assert [r["step"] for r in log if "mean_iu" in r] == [0, 2]
    # The same scores, upsampled in two steps for one: nearly the same labels.
    assert log[0]["mean_iu"] == pytest.approx(coarse_figures["mean_iu"], abs=0.03)


@pytest.mark.parametrize("balance", ["median_frequency", "inverse_log"])
def test_class_balance_is_that_of_the_training_labels(tmp_path, balance):
    config = thin_config(steps=1, class_balance=balance)
    loop.train(config, tmp_path)
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
    saved = config_module.load_config(tmp_path / "config.json")
    assert saved.class_weights == pytest.approx(tuple(expected))


def test_quickstart_overfits_a_few_pictures(tmp_path):
    config = config_module.Config(
        model=Model(width=1 / 8, dropout=0.0, score_init="xavier"),
        data=Data(name="shapes", num_classes=5, size=(64, 64), eval_split="train"),
        optim=Optim(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
        steps=250,
        batch_size=5,
        eval_every=250,
    )
    assert loop.train(config, tmp_path)["mean_iu"] > 0.9
