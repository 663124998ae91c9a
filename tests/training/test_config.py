import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax.training.config import (
    Config,
    Data,
    check,
    check_trainable,
    load_config,
    make_source,
    save_config,
)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def config_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_passes_the_checks(path):
    config = config_of(path)
    config.data.root, config.init_from = config.data.root or ".", ""
    check(config)


def test_config_without_its_data_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(ROOT / "configs" / "camvid.py")
    with pytest.raises(ValueError, match=r"(?s)data/.*Download .*--config.data.root="):
        make_source(config, "train")


def test_folder_without_its_root_says_which_field_is_missing():
    data = Data(help="Ask for it.")
    with pytest.raises(ValueError, match="config.data.root is not set. Ask for it"):
        make_source(Config(data=data), "train")


def test_unknown_tfds_data_set_says_which_field_is_its_folder():
    with pytest.raises(ValueError, match="data_dir is config.data.root"):
        make_source(Config(data=Data(name="no_such_set")), "train")


def test_missing_weights_say_where_to_get_them():
    config = Config(init_from="weights/none.npy")
    config.data.root = "."
    with pytest.raises(
        ValueError, match="weights/none.npy does not exist. Set it to vgg16, .*download"
    ):
        check(config)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("data", "label_map", ((0,),), r"config.data.label_map has \(0,\), want"),
        (None, "class_weights", (1.0, 2.0), "has 2 numbers for 21 classes"),
        (None, "class_balance", "even", "config.class_balance = 'even' is not one of"),
        ("data", "class_names", ("a", "b"), "data.class_names has 2 entries for 21"),
        ("data", "num_classes", 256, "data.num_classes = 256 must be from 1 to 255"),
        ("data", "ignore_label", 20, "ignore_label = 20 is one of the 21 classes"),
        ("data", "size", (5,), r"config.data.size = \(5,\) must be"),
        ("data", "crop", (5, 0), r"config.data.crop = \(5, 0\) must be"),
        ("data", "scale", (2.0, 1.0), "config.data.scale"),
        ("data", "rotation", 181.0, "data.rotation = 181.0 must be from 0 to 180"),
        ("data", "jitter", (0.1, 0.1), r"data.jitter = \(0.1, 0.1\) must be \(\) or"),
        ("data", "jitter", (0, 0, 0, 0.6), "each at least 0 and hue at most 0.5"),
        ("data", "jitter", (0, -1, 0, 0), "each at least 0 and hue at most 0.5"),
        ("data", "transform", "own.py", "'own.py' must be package.module:function"),
        ("data", "num_classes", 0, "data.num_classes = 0 must be from 1 to 255"),
        ("data", "palette", ((1, 2, 3),), "config.data.palette has 1 entries for 21"),
        ("model", "variant", "fcn4s", "config.model.variant = 'fcn4s' is not one of"),
        ("model", "dtype", "float16", "config.model.dtype = 'float16' is not one of"),
        ("optim", "name", "adam", "config.optim.name = 'adam' is not one of"),
        ("optim", "schedule", "step", "config.optim.schedule = 'step' is not one of"),
        (None, "batch_size", 0, "config.batch_size = 0 must be >= 1"),
        (None, "log_every", 0, "config.log_every = 0 must be >= 1"),
        (None, "eval_every", -1, "config.eval_every = -1 must be >= 0"),
        (None, "loss_normalization", "max", "loss_normalization = 'max' is not one"),
        (None, "epochs", 0.0, "config.epochs = 0.0 must be above 0"),
        (None, "epochs", float("inf"), "config.epochs = inf must be above 0 and fin"),
        (None, "steps", -1, "config.steps = -1 must be >= 0"),
        (None, "seed", -1, "config.seed = -1 must be from 0"),
        (None, "batch_size", 2.5, "config.batch_size = 2.5 must be of type int"),
        ("data", "crop", 5, "config.data.crop = 5 must be of type tuple"),
        ("data", "threads", 0, "config.data.threads = 0 must be >= 1"),
        ("data", "workers", -1, "config.data.workers = -1 must be >= 0"),
        ("optim", "learning_rate", -1.0, "config.optim.learning_rate = -1.0 must be"),
        ("optim", "learning_rate", float("nan"), "learning_rate = nan must be above"),
        ("optim", "momentum", 1.0, r"config.optim.momentum = 1.0 must be in \[0, 1\)"),
        ("optim", "weight_decay", float("inf"), "config.optim.weight_decay = inf must"),
        ("optim", "warmup_steps", -1, "config.optim.warmup_steps = -1 must be >= 0"),
    ],
)
def test_check_names_the_field_and_its_value(part, field, value, message):
    config = Config()
    config.data.root = "."
    setattr(getattr(config, part) if part else config, field, value)
    with pytest.raises(ValueError, match=message):
        check(config)


def test_check_lists_every_field_at_once():
    config = Config(batch_size=0, seed=-1)
    config.data.scale = (2.0, 1.0)
    with pytest.raises(ValueError, match=r"batch_size .*\n.*seed .*\n.*data.scale"):
        check(config)


def test_config_survives_its_file(tmp_path):
    config = Config(batch_size=3)
    config.data.size, config.data.class_names = (4, 5), tuple("abc")
    config.data.label_map, config.data.palette = ((1, 0),), ((1, 2, 3), (4, 5, 6))
    save_config(tmp_path / "config.json", config)
    loaded = load_config(tmp_path / "config.json")
    assert loaded == config
    assert dataclasses.asdict(loaded)["data"]["size"] == (4, 5)


@pytest.mark.parametrize("content", ["{", "[]", '{"batch": 3}', '{"data": {"x": 1}}'])
def test_other_content_is_no_config(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="config.json is not a config of this"):
        load_config(path)


@pytest.mark.parametrize("name", ["fcn8s", "fcn8s_heavy", "fcn8s_atonce_heavy"])
def test_fcn8s_straight_from_vgg16_is_refused_where_it_does_not_train(name):
    config = config_of(ROOT / "configs" / f"{name}.py")
    check_trainable(config, from_vgg16=False)
    if name != "fcn8s_heavy":
        check_trainable(config, from_vgg16=True)
        return
    with pytest.raises(ValueError, match="does not train straight .* to .0.01, 0.0001"):
        check_trainable(config, from_vgg16=True)


def test_label_map_and_reduce_zero_label_reach_the_source(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    values = np.array([[0, 1, 2, 3]], np.uint8)
    Image.fromarray(values).save(tmp_path / "images" / "val" / "a.png")
    Image.fromarray(values).save(tmp_path / "labels" / "val" / "a.png")
    config = Config()
    config.data.root, config.data.num_classes = str(tmp_path), 3
    config.data.reduce_zero_label = True
    np.testing.assert_array_equal(
        make_source(config, "val")[0]["label"], [[255, 0, 1, 2]]
    )
    config.data.label_map = ((0, 2), (3, 255))
    with pytest.raises(
        ValueError, match="label_map and reduce_zero_label are both set"
    ):
        check(config)
    config.data.reduce_zero_label = False
    np.testing.assert_array_equal(
        make_source(config, "val")[0]["label"], [[2, 1, 2, 255]]
    )
