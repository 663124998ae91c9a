import dataclasses
import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.files import owning
from fcn_jax.training import loop, validation
from fcn_jax.training.checkpoint import Checkpoints
from fcn_jax.training.config import Config, Data, Model, Optim, make_model
from fcn_jax.training.log import Meter
from fcn_jax.training.start import random_key, start_or_resume
from fcn_jax.weights.transplant import init_params

pytestmark = pytest.mark.usefixtures("quick")


def checkpoint_steps(workdir):
    return Checkpoints(workdir / "checkpoints", keep=1).steps()


def evaluations(log):
    return [record for record in log if "mean_iu" in record]


def act_at(monkeypatch, step_to_act, action):
    add = Meter.add

    def add_and_act(self, step, metrics, **figures):
        add(self, step, metrics, **figures)
        if step == step_to_act:
            action()

    monkeypatch.setattr(Meter, "add", add_and_act)


def kill(*_, **__):
    raise RuntimeError("killed")


def test_run_directory_holds_network_figures_and_pictures(whole_run, records):
    workdir, figures = whole_run
    pictures = ("results.png", "errors.png", "confusion.png", "curves.png")
    for name in (*pictures, "config.json", "model.safetensors"):
        assert (workdir / name).stat().st_size > 0
    assert any((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "metrics.json").read_text()) == figures
    log = records(workdir)
    assert [r["step"] for r in evaluations(log)] == [2, 4, 6]
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert figures["mean_iu"] == max(r["mean_iu"] for r in evaluations(log))


def test_saved_network_is_the_one_that_was_measured(whole_run):
    workdir, figures = whole_run
    net = fcn_jax.load(workdir)
    assert net.size == (32, 32)
    confusion = np.zeros([5, 5], int)
    source = ShapesSource("val", size=(32, 32), length=3)
    for example in map(source.__getitem__, range(3)):
        predicted = fcn_jax.predict(net, example["image"])
        valid = example["label"] != 255
        np.add.at(confusion, (example["label"][valid], predicted[valid]), 1)
    accuracy = np.trace(confusion) / confusion.sum()
    assert figures["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_run_equals_the_uninterrupted_bit_for_bit(
    whole_run, thin_config, records, tmp_path, monkeypatch, stop
):
    workdir, figures = whole_run
    resumed = tmp_path / "resumed"
    with monkeypatch.context() as patch:
        act_at(patch, stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt, match="stopped and saved at step 3"):
            loop.train(thin_config(), resumed)
    assert 3 in checkpoint_steps(resumed)
    assert loop.train(thin_config(), resumed) == figures
    assert records(resumed) == records(workdir)
    last = [state_of(thin_config(), run) for run in (workdir, resumed)]
    assert last[0].step == 6
    for a, b in zip(*map(jax.tree.leaves, last), strict=True):
        np.testing.assert_array_equal(a, b)


def state_of(config, workdir):
    saved = Checkpoints(workdir / "checkpoints", keep=1).newest()
    _, tx = loop.optimizer_of(config)
    return start_or_resume(config, workdir, saved, tx, None)[1]


def test_run_with_frozen_layers_resumes_and_leaves_them_as_they_were(
    thin_config, records, tmp_path, monkeypatch
):
    config = thin_config(steps=2, loss="cross_entropy+dice")
    config.optim.freeze, config.optim.clip_norm = ("conv", "fc6"), 1.0
    with monkeypatch.context() as patch:
        act_at(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt, match="stopped and saved at step"):
            loop.train(config, tmp_path)
    loop.train(config, tmp_path)
    assert [r["step"] for r in records(tmp_path) if "loss" in r] == [1, 2]
    state = state_of(config, tmp_path)
    first = init_params(make_model(config), random_key(config, "params"), {})
    for part, layers in first.items():
        for name, layer in layers.items():
            same = np.array_equal(layer["kernel"], state.params[part][name]["kernel"])
            assert same == name.startswith(("conv", "fc6"))


def strike(monkeypatch, module, name, nth):
    """Kills the run at the nth call of a function."""
    original, calls = getattr(module, name), itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == nth:
            kill()
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)


def test_run_killed_again_and_again_leaves_what_an_unbroken_one_does(
    thin_config, records, tmp_path, monkeypatch
):
    config = thin_config(log_every=4, eval_every=3, steps=6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    figures = loop.train(config, whole)
    add, save = (Meter, "add"), (Checkpoints, "save")
    # Each step, before each checkpoint, between the files of the best network, and at
    # the end, counted from the checkpoint that the run resumes from.
    strikes = [(*add, 1), (*add, 2), (*add, 3)]
    strikes += [(validation, "draw_results", 1), (validation, "write_json", 1)]
    strikes += [(*save, 1), (*save, 1)]
    strikes += [(*add, 4), (*add, 2), (*add, 3), (*save, 1), (*save, 1)]
    strikes += [(loop, "learning_curves", 1)] * 2
    for target in strikes:
        with monkeypatch.context() as patch:
            strike(patch, *target)
            with pytest.raises(RuntimeError, match="killed"):
                loop.train(config, broken)
    assert loop.train(config, broken) == figures
    assert records(broken) == records(whole)
    assert checkpoint_steps(broken) == checkpoint_steps(whole)
    files = ["model.safetensors", "metrics.json", "config.json"]
    files += [f"checkpoints/{step}.safetensors" for step in checkpoint_steps(whole)]
    for name in files:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_run_killed_between_network_and_figures_goes_on(
    whole_run, thin_config, records, tmp_path, monkeypatch
):
    workdir, figures = whole_run
    with monkeypatch.context() as patch:
        patch.setattr(validation, "write_json", kill)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(thin_config(), tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "metrics.json").exists()
    assert loop.train(thin_config(), tmp_path) == figures
    assert records(tmp_path) == records(workdir)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    whole_run, thin_config, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    config = thin_config(steps=20, eval_every=1)
    config.optim.learning_rate = 1e38
    with pytest.raises(FloatingPointError, match=r"step ([7-9]|10)\b"):
        loop.train(config, run, allow_changes=True)
    assert max(checkpoint_steps(run)) in (6, 7)
    state = state_of(config, run)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_bad_warmup_and_batch_name_their_fields(thin_config, tmp_path):
    config = thin_config()
    config.optim.warmup_steps = 6
    with pytest.raises(ValueError, match="config.optim.warmup_steps = 6 must be less"):
        loop.train(config, tmp_path)
    config = thin_config(batch_size=3, accumulate=2)
    with pytest.raises(ValueError, match="config.parallel = 'sharded': batch_size = 3"):
        loop.train(config, tmp_path)


def save_pairs(root, **counts):
    """Images and masks of many sizes, up to 16x16 and 32x16 in turns."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            size = rng.integers(1, 17) + 16 * (i % 2), rng.integers(1, 17)
            for kind, channels in (("images", (3,)), ("labels", ())):
                pixels = rng.integers(0, 3, (*size, *channels), np.uint8)
                Image.fromarray(pixels).save(root / kind / split / f"{i}.png")


def test_images_of_many_sizes_cost_a_compilation_for_each_bucket(
    thin_config, records, tmp_path
):
    save_pairs(tmp_path, train=12, val=3)
    data = Data(root=str(tmp_path), num_classes=3, bucket=16)
    config = thin_config(steps=12, eval_every=12, batch_size=1)
    loop.train(dataclasses.replace(config, data=data), tmp_path / "run")
    log = [r for r in records(tmp_path / "run") if "compiles" in r]
    # 16x16 and 32x16.
    assert log[0]["compiles"] == 1 and log[-1]["compiles"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_run_with_a_cache_is_the_run_without_it_bit_for_bit(
    thin_config, records, tmp_path, workers
):
    save_pairs(tmp_path, train=5, val=3)
    config = thin_config(steps=2)
    config.data = Data(root=str(tmp_path), num_classes=3, size=(32, 32), crop=(24, 24))
    expected = loop.train(config, tmp_path / "plain")
    config.data.cache, config.data.workers = str(tmp_path / "cache"), workers
    assert loop.train(config, tmp_path / "cached") == expected
    assert records(tmp_path / "cached") == records(tmp_path / "plain")
    last = [state_of(config, tmp_path / run) for run in ("plain", "cached")]
    for a, b in zip(*map(jax.tree.leaves, last), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loop.train(config, tmp_path / "plain") == expected  # A cache may come later.
    names = sorted(file.name.split("-")[0] for file in (tmp_path / "cache").iterdir())
    assert names == ["train", "val"]


def test_cache_of_own_or_drawn_images_is_refused_before_any_work(thin_config, tmp_path):
    config = thin_config()
    config.data.cache = str(tmp_path / "cache")
    for sources in ((), (own_pairs(0, 3), own_pairs(1, 2))):
        with pytest.raises(ValueError, match="config.data.cache = .* cannot be cached"):
            loop.train(config, tmp_path / "run", *sources)
    assert list(tmp_path.iterdir()) == []


def test_finer_network_starts_from_the_run_of_the_coarser_also_after_a_kill(
    whole_run, thin_config, records, tmp_path, monkeypatch
):
    coarse, figures = whole_run
    fine = thin_config(steps=2, init_from=str(coarse))
    fine.model.variant = "fcn16s"
    with monkeypatch.context() as patch:
        act_at(patch, 1, kill)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(fine, tmp_path)
    assert [r["step"] for r in evaluations(records(tmp_path))] == [0]
    loop.train(fine, tmp_path)
    log = evaluations(records(tmp_path))
    assert [r["step"] for r in log] == [0, 2]
    # The same scores, upsampled in two steps for one: nearly the same labels.
    assert log[0]["mean_iu"] == pytest.approx(figures["mean_iu"], abs=0.03)


def own_pairs(seed, count):
    """Images whose pixels are of class 1 where they are red."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 24, 24, 3), np.uint8)
    return [(image, (image[..., 0] > 127).astype(np.int64)) for image in images]


def test_own_pairs_are_trained_and_evaluated_on_in_bfloat16(thin_config, tmp_path):
    train, val = own_pairs(0, 3), own_pairs(1, 2)
    val[0][1][:12] = 255
    config = thin_config(steps=2)
    config.data = Data(name="nowhere", num_classes=2)
    config.model.dtype = "bfloat16"
    figures = loop.train(config, tmp_path, train, val)
    net = fcn_jax.load(tmp_path)
    found = fcn_jax.evaluate(net, val, progress=False)
    assert found.confusion.sum() == 24 * 24 * 1.5
    assert figures == found.figures | {"step": figures["step"]}


def test_bad_own_example_is_named(thin_config, tmp_path):
    config = thin_config(steps=2)
    config.data = Data(name="nowhere", num_classes=2)
    bad = own_pairs(0, 3)
    bad[1][1][0, 0] = 9
    with pytest.raises(ValueError, match="example 1: label values 9 are neither"):
        loop.train(config, tmp_path, bad, own_pairs(1, 2))
    with pytest.raises(ValueError, match="without __len__ and __getitem__"):
        loop.train(config, tmp_path, own_pairs(0, 3), iter(bad))


def test_own_transform_sees_augmented_examples(thin_config, tmp_path):
    def stop(example, generator):
        raise ValueError(f"seen: {example['image'].shape} {example['label'].max()}")

    config = thin_config(steps=2)
    config.data.size, config.data.crop = (8, 8), (24, 24)
    with pytest.raises(ValueError, match=r"seen: \(24, 24, 3\) 255"):
        loop.train(config, tmp_path, transform=stop)


def test_directory_in_use_is_refused(thin_config, tmp_path):
    with owning(tmp_path):
        with pytest.raises(ValueError, match="in use by process"):
            loop.train(thin_config(), tmp_path)


def test_killed_reading_process_is_one_sentence(thin_config, tmp_path, monkeypatch):
    def batches(*_, **__):
        yield from ()
        raise RuntimeError("Worker process was terminated unexpectedly")

    monkeypatch.setattr(loop, "train_batches", batches)
    with pytest.raises(
        ChildProcessError, match="a reading process was killed, perhaps"
    ):
        loop.train(thin_config(), tmp_path)


def test_run_ends_when_its_directory_is_deleted(thin_config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    act_at(monkeypatch, 1, lambda: shutil.rmtree(run))
    with pytest.raises(OSError, match="run was deleted or moved while it was in use"):
        loop.train(thin_config(log_every=9), run)
    assert not run.exists()


def test_own_transform_that_is_missing_is_refused_before_any_work(
    thin_config, tmp_path
):
    config = thin_config()
    config.data.transform = "no_such_module:f"
    with pytest.raises(ValueError, match="config.data.transform = 'no_such_module:f'"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fcn8s_overfits_a_few_pictures(tmp_path):
    config = Config(
        model=Model(width=1 / 16, dropout=0.0, score_init="xavier"),
        data=Data(
            name="shapes",
            num_classes=5,
            size=(32, 32),
            eval_split="train",
            flip=False,
        ),
        optim=Optim(learning_rate=1e-2, schedule="cosine", warmup_steps=20),
        steps=100,
        batch_size=5,
        eval_every=100,
    )
    assert loop.train(config, tmp_path)["mean_iu"] > 0.8
