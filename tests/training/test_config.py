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
    make_model,
    make_network,
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
        ("data", "label_map", (5,), "config.data.label_map has 5, want"),
        ("data", "void_colors", ((1, 2, 3),), "void_colors is set, but data.palette"),
        ("data", "void_colors", ((1, 2),), r"data.void_colors has \(1, 2\), want"),
        ("data", "nearest_color", True, "nearest_color is set, but data.palette has"),
        (
            "data",
            "extra_images",
            "depth",
            "extra_images = 'depth' must be of type tuple",
        ),
        ("data", "extra_images", (3,), r"extra_images = \(3,\) must be a tuple of"),
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
        ("model", "in_channels", 2, "config.model.in_channels = 2 must be .* from 3"),
        ("model", "mean", (1.0, 2.0), r"config.model.mean = \(1.0, 2.0\) must be"),
        ("model", "scale", (1.0, 0.0, 1.0), "config.model.scale = .* none of them 0"),
        ("model", "extra_init", "one", "config.model.extra_init = 'one' is not one of"),
        ("data", "channels", ("red",), "config.data.channels has 1 entries for 3"),
        ("data", "shown", (0, 1, 3), r"config.data.shown = \(0, 1, 3\) must be"),
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
        (None, "loss", "dise", "config.loss = 'dise' is not one of cross_entropy"),
        ("optim", "freeze", ("conv6",), "config.optim.freeze has 'conv6', and no lay"),
        (
            "optim",
            "freeze",
            "conv1",
            "freeze = 'conv1' must be of type tuple",
        ),
        ("optim", "freeze", ("upscore",), "freeze has 'upscore', .* score_pool3"),
        ("optim", "rates", (0.0, 1.0), r"config.optim.rates = \(0.0, 1.0\) must be"),
        ("optim", "clip_norm", -1.0, "config.optim.clip_norm = -1.0 must be a finite"),
    ],
)
def test_check_names_the_field_and_its_value(part, field, value, message):
    config = Config()
    config.data.root = "."
    setattr(getattr(config, part) if part else config, field, value)
    with pytest.raises(ValueError, match=message):
        check(config)


def test_check_needs_no_mean_of_further_channels_and_make_model_does():
    config = Config()
    config.data.root, config.model.in_channels = ".", 4
    config.data.channels, config.data.shown = tuple("abcd"), (3, 1, 0)
    check(config)
    assert config.model.mean == config.model.scale == ()
    with pytest.raises(ValueError, match="mean = .* 4 finite numbers, one for each"):
        make_model(config)
    config.model.mean, config.model.scale = (1, 2, 3, 4), (1, 1, 1, 0.5)
    model = make_network(config).model
    assert (model.mean, model.scale) == (config.model.mean, config.model.scale)
    assert make_network(config).channels == tuple("abcd")
    assert make_network(config).shown == (3, 1, 0)
    config.model.mean = (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="config.model.mean = .* 4 finite numbers"):
        check(config)


def test_check_lists_every_field_at_once():
    config = Config(batch_size=0, seed=-1)
    config.data.scale = (2.0, 1.0)
    with pytest.raises(ValueError, match=r"batch_size .*\n.*seed .*\n.*data.scale"):
        check(config)


def test_summed_cross_entropy_with_dice_is_refused():
    config = Config(loss="cross_entropy+dice", loss_normalization="sum")
    with pytest.raises(ValueError, match="config.loss_normalization = .* suit loss"):
        check(config)


def test_config_survives_its_file(tmp_path):
    config = Config(batch_size=3)
    config.data.size, config.data.class_names = (4, 5), tuple("abc")
    config.data.label_map, config.data.palette = ((1, 0),), ((1, 2, 3), (4, 5, 6))
    save_config(tmp_path / "config.json", config)
    loaded = load_config(tmp_path / "config.json")
    assert loaded == config
    assert dataclasses.asdict(loaded)["data"]["size"] == (4, 5)


def test_edited_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    save_config(path, Config())
    path.write_text(
        path.read_text().replace('"ignore_label": 255', '"ignore_label": 1')
    )
    with pytest.raises(
        ValueError, match="was edited after it was written; the command"
    ):
        load_config(path)


def test_config_of_an_older_version_has_its_mean_and_no_digest(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model": {"variant": "fcn16s", "mean_rgb": [1.0, 2.0, 3.0]}}')
    model = load_config(path).model
    assert (model.variant, model.mean) == ("fcn16s", (1, 2, 3))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"batch": 3}', '{"data": {"x": 1}}', "[" * 100_000],
    ids=lambda content: content[:9],
)
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


def test_void_that_reduce_zero_label_makes_a_class_is_refused():
    config = Config(data=Data(root=".", num_classes=255, reduce_zero_label=True))
    with pytest.raises(
        ValueError, match="ignore_label = 255 is class 254 in the masks"
    ):
        check(config)
    config.data.ignore_label = 256
    check(config)


def save(root, name, pixels):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def recipe(name, root, **changes):
    config = config_of(ROOT / "configs" / f"{name}.py")
    config.data = dataclasses.replace(config.data, root=str(root), **changes)
    return config


RGB = np.zeros((1, 5, 3))


def test_cityscapes_config_reads_the_tree_of_the_archives(tmp_path, caplog):
    name = "bonn_000001_000019"
    save(tmp_path, f"leftImg8bit/val/bonn/{name}_leftImg8bit.png", RGB)
    masks = {"labelIds": [[7, 33, 0, 29, 255]], "instanceIds": RGB, "color": RGB}
    for kind, mask in masks.items():
        save(tmp_path, f"gtFine/val/bonn/{name}_gtFine_{kind}.png", mask)
    (tmp_path / "gtFine" / "val" / "bonn" / f"{name}_gtFine_polygons.json").touch()
    config = recipe("cityscapes", tmp_path)
    with caplog.at_level("INFO", logger="fcn_jax"):
        (example,) = make_source(config, "val")
    assert caplog.messages == [
        "val: 1 pair of leftImg8bit/val/bonn/*_leftImg8bit.png with "
        "gtFine/val/bonn/*_gtFine_labelIds.png, by name"
    ]
    assert example["name"] == f"bonn/{name}"
    # Road is the first class, bicycle the last; unlabelled, caravan and -1 are void.
    np.testing.assert_array_equal(example["label"], [[0, 18, 255, 255, 255]])
    save(tmp_path, f"gtFine/val/bonn/{name}_gtFine_labelIds.png", [[7, 34, 0, 0, 0]])
    with pytest.raises(ValueError, match="label values 34 are neither"):
        make_source(config, "val")[0]


def test_cityscapes_config_has_the_train_ids_of_its_scripts():
    data = config_of(ROOT / "configs" / "cityscapes.py").data
    # From the table of the classes on cityscapes-dataset.com: ids that are evaluated.
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [old for old, new in data.label_map if new != 255] == ids
    assert [new for _, new in data.label_map if new != 255] == list(range(19))
    assert data.num_classes == len(data.class_names) == len(set(data.palette)) == 19
    assert dict(zip(data.class_names, ids, strict=True))["train"] == 31


def test_ade20k_config_reads_the_tree_of_the_archive(tmp_path):
    save(tmp_path, "images/validation/ADE_val_00000001.jpg", RGB)
    mask = "annotations/validation/ADE_val_00000001.png"
    save(tmp_path, mask, [[0, 1, 2, 150, 255]])
    config = recipe("ade20k", tmp_path)
    names = config.data.class_names
    assert len(names) == len(set(names)) == 150
    assert (names[0], names[58], names[149]) == ("wall", "screen door", "flag")
    colors = dict(zip(names, config.data.palette, strict=True))
    assert colors["wall"] == (120, 120, 120) and colors["sky"] == (6, 230, 230)
    assert colors["flag"] == (92, 0, 255)
    (example,) = make_source(config, config.data.eval_split)
    np.testing.assert_array_equal(example["label"], [[255, 0, 1, 149, 255]])
    save(tmp_path, mask, [[0, 1, 2, 151, 254]])
    with pytest.raises(ValueError, match="label values 151, 254 are neither"):
        make_source(config, "validation")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"images": "{split}", "labels": "{split}annot"},
        {"list_file": "{split}.txt"},
    ],
    ids=["folders", "list"],
)
def test_camvid_config_reads_segnets_folders_as_its_help_says(tmp_path, changes):
    names = ("0001TP_006720", "0001TP_006690")
    for i, name in enumerate(names):
        save(tmp_path, f"train/{name}.png", RGB)
        save(tmp_path, f"trainannot/{name}.png", [[i, 0, 10, 11, 4]])
    folder = "/SegNet/CamVid/train"
    lines = (f"{folder}/{name}.png {folder}annot/{name}.png\n" for name in names)
    (tmp_path / "train.txt").write_text("".join(lines))
    config = recipe("camvid", tmp_path, **changes)
    for field, value in changes.items():
        assert f"--config.data.{field}={value}" in config.data.help
    first, second = make_source(config, "train")
    assert {Path(example["name"]).name for example in (first, second)} == set(names)
    listed = "list_file" in changes
    np.testing.assert_array_equal(first["label"], [[0 if listed else 1, 0, 10, 255, 4]])


def test_fields_of_folders_reach_the_source(tmp_path):
    save(tmp_path, "images/val/a_left.png", np.zeros((2, 2, 3)))
    save(tmp_path, "images/val/b_left.png", np.zeros((2, 2, 3)))
    save(tmp_path, "labels/val/a_mask.png", [[[9, 0, 0], [0, 8, 0]]])
    palette = ((10, 0, 0), (0, 10, 0))
    data = Data(
        root=str(tmp_path),
        num_classes=2,
        image_suffix="_left.png",
        label_suffix="_mask.png",
        palette=palette,
        void_colors=((0, 0, 10),),
        nearest_color=True,
        resize_labels=True,
        help="Ask for it.",
    )
    with pytest.raises(ValueError, match="(?s)1 file in .*b_mask.png is .*Ask for it"):
        make_source(Config(data=data), "val")
    source = make_source(Config(data=data), "val", strict=False)
    assert source.problems == [
        f"b_mask.png is missing in {tmp_path / 'labels' / 'val'}"
    ]
    np.testing.assert_array_equal(source[0]["label"], [[0, 1], [0, 1]])
