"""The files of configs/ against the numbers of the paper and of its release."""

import importlib.util
from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def config_of(name):
    path = CONFIGS[0].with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__doc__, module.get_config()


@pytest.mark.parametrize(
    ("name", "rate", "steps", "init_from", "pool_scales"),
    [
        ("fcn32s_heavy", 1e-10, 100_000, "vgg16", (1.0, 1.0)),
        ("fcn16s_heavy", 1e-12, 100_000, "runs/fcn32s_heavy", (1.0, 1.0)),
        ("fcn8s_heavy", 1e-14, 100_000, "runs/fcn16s_heavy", (1.0, 1.0)),
        ("fcn8s_atonce_heavy", 1e-10, 300_000, "vgg16", (0.01, 0.0001)),
    ],
)
def test_heavy_config_has_the_numbers_of_the_release(
    name, rate, steps, init_from, pool_scales
):
    _, config = config_of(name)
    model, data, optim = config.model, config.data, config.optim
    assert model.variant == name.partition("_")[0] and model.geometry == "caffe"
    assert (model.pool_scales, model.score_init) == (pool_scales, "zero")
    assert (model.dropout, model.dtype, model.width) == (0.5, "float32", 1.0)
    assert not model.learn_upsampling
    assert (optim.name, optim.schedule, optim.warmup_steps) == ("sgd", "constant", 0)
    assert (optim.learning_rate, optim.momentum) == (rate, 0.99)
    assert (optim.weight_decay, optim.bias_rate) == (5e-4, 2.0)
    assert (config.steps, config.init_from) == (steps, init_from)
    assert (config.batch_size, config.accumulate) == (1, 1)
    assert (config.loss_normalization, config.parallel) == ("sum", "none")
    assert (config.class_weights, config.class_balance) == ((), "")
    assert (data.name, data.num_classes) == ("voc_segmentation/voc2012_sbd", 21)
    assert (data.train_split, data.eval_split) == ("sbd_train", "seg11valid")
    assert data.replacement and not data.flip
    assert (data.scale, data.crop, data.size) == ((1.0, 1.0), (), ())


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_config_of_today_takes_batches_of_random_crops(name):
    _, config = config_of(name)
    model, data, optim = config.model, config.data, config.optim
    assert (model.variant, model.geometry, model.dtype) == (name, "same", "bfloat16")
    assert model.pool_scales == ((1.0, 1.0) if name == "fcn32s" else (0.01, 0.001))
    assert (data.train_split, data.eval_split) == ("trainaug", "val")
    assert (data.scale, data.crop) == ((0.5, 1.5), (480, 480))
    assert data.flip and not data.replacement
    assert (optim.name, optim.learning_rate, optim.schedule) == ("adamw", 5e-5, "poly")
    assert (config.init_from, config.epochs, config.steps) == ("vgg16", 50, 0)
    assert (config.batch_size, config.loss_normalization) == (8, "mean")


def test_voc_configs_share_classes_and_the_way_to_the_data():
    _, config = config_of("fcn8s")
    assert config.data.class_names[:2] == ("background", "aeroplane")
    assert config.data.class_names[-1] == "tvmonitor"
    assert "--config.data.manual_dir=FOLDER" in config.data.help


def test_camvid_has_a_colour_for_each_class():
    _, config = config_of("camvid")
    data = config.data
    colors = dict(zip(data.class_names, data.palette, strict=True))
    assert len(colors) == data.num_classes == data.ignore_label == 11
    assert colors["Sky"] == (128, 128, 128) and colors["Road"] == (128, 64, 128)
    assert colors["Bicyclist"] == (0, 128, 192)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_tells_its_command_and_its_score(path):
    text, _ = config_of(path.stem)
    assert f"python train.py --config configs/{path.name}" in text
    assert "mean IU" in text or "Mean IU" in text
