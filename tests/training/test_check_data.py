import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.loader import train_batches
from fcn_jax.rows import augmented_rows
from fcn_jax.training.augmentation import training_augment
from fcn_jax.training.check_data import check_data
from fcn_jax.training.config import Config, Data, make_source

SIZE = (4, 5)


def save_pair(root, split, stem, image, label):
    for kind, array in (("images", image), ("labels", label)):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(array, np.uint8)).save(folder / f"{stem}.png")


def save_split(root, split, seed, n=3):
    rng = np.random.default_rng(seed)
    for i in range(n):
        label = rng.permuted(np.arange(20) % 3).reshape(SIZE)
        save_pair(root, split, f"{split}{i}", rng.integers(0, 256, (*SIZE, 3)), label)


@pytest.fixture
def config(tmp_path):
    """Of two good splits, with weights that are not there."""
    root = tmp_path / "data"
    save_split(root, "train", 1)
    save_split(root, "val", 2)
    data = Data(root=str(root), num_classes=3, class_names=("sky", "road", "car"))
    return Config(data=data, init_from="weights/none.npy")


@pytest.fixture
def check(config, tmp_path, capsys):
    """Runs the check on ``config``; gives the status and what was printed."""

    def run():
        status = check_data(config, tmp_path / "out", progress=False)
        return status, capsys.readouterr().out

    return run


def test_good_data_gives_zero_tables_and_files(check, config, tmp_path):
    status, text = check()
    assert status == 0
    assert "train       3     3" in text and "sky         35.000%" in text
    assert text.count("none") == 4
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["classes.png", "data.json"]
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    train = record["splits"]["train"]
    # Of 20 pixels, 7, 7 and 6 in each image.
    assert train["class_pixels"] == [21, 21, 18]
    assert train["class_image_pixels"] == [60, 60, 60]
    assert train["median_frequency"] == [1, 1, round(7 / 6, 6)]
    assert train["sizes"] == {"4x5": 3} and train["images"] == train["read"] == 3
    assert record["class_names"] == ["sky", "road", "car"]
    assert config.init_from == "weights/none.npy"


def test_augmented_examples_of_the_run_are_drawn(config, tmp_path, monkeypatch, capsys):
    drawn, data = [], config.data
    data.rotation, data.jitter, data.crop = 20.0, (0.3, 0.3, 0.3, 0.1), (4, 4)
    config.seed = 3

    def note(path, pairs, *args, **options):
        drawn.extend(pairs)
        augmented_rows(path, pairs, *args, **options)

    monkeypatch.setattr("fcn_jax.training.check_data.augmented_rows", note)
    out = tmp_path / "out"
    assert check_data(config, out, augmented=True, progress=False) == 0
    assert "augmented.png" in capsys.readouterr().out
    assert (out / "augmented.png").stat().st_size > 10_000
    assert [name for name, _, _ in drawn[:3]] != ["train0"] * 3 and len(drawn) == 12
    # The batches of the loop, of another size and in threads.
    source, augment = make_source(config, "train"), training_augment(config)
    batches = train_batches(source, augment, batch_size=4, seed=3)
    for i in range(3):
        batch = next(batches)
        for j, (_, image, label) in enumerate(drawn[4 * i : 4 * i + 4]):
            np.testing.assert_array_equal(batch["image"][j], image)
            np.testing.assert_array_equal(batch["label"][j], label)


def test_transform_that_is_missing_is_a_problem(config, tmp_path, capsys):
    config.data.transform = "no_such_module:f"
    assert check_data(config, tmp_path / "out", augmented=True, progress=False) == 1
    assert "augmented.png: config.data.transform = 'no_such" in capsys.readouterr().out


def test_bad_examples_are_printed_and_give_one(check, config, tmp_path):
    image = np.zeros((*SIZE, 3))
    for i in range(30):
        save_pair(tmp_path / "data", "val", f"z{i}", image, image)
    status, text = check()
    assert status == 1
    assert text.count("a mask must hold class indices") == 20
    assert "\n  ... and 10 more\n" in text and "  val: " in text
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    assert len(record["problems"]) == 30
    assert record["splits"]["val"]["images"] == 33


def test_same_image_under_another_name_is_an_overlap(check, tmp_path):
    root = tmp_path / "data" / "images"
    (root / "val" / "val1.png").write_bytes(
        (root / "train" / "train2.png").read_bytes()
    )
    status, text = check()
    assert status == 1
    assert "  train2 (train) and val1 (val) have the same pixels" in text


def test_many_overlaps_are_counted(check, tmp_path):
    save_split(tmp_path / "data", "train", 3, n=13)
    save_split(tmp_path / "data", "val", 3, n=13)
    status, text = check()
    assert status == 1
    assert text.count("have the same pixels") == 10 and "  ... and 3 more\n" in text
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    assert len(record["overlaps"]) == 13


def test_warnings_alone_give_zero(check, tmp_path):
    image = np.full((*SIZE, 3), 7)
    save_pair(tmp_path / "data", "train", "dark", image, np.full(SIZE, 255))
    status, text = check()
    assert status == 0
    assert "Warnings:\n  train: dark: all pixels are void" in text


def test_missing_split_is_printed_while_the_other_is_read(check, config, tmp_path):
    config.data.eval_split, config.data.help = "test", "Download it."
    status, text = check()
    assert status == 1
    assert "test is not a folder" in text and "Download it." in text
    assert "train       3     3" in text
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    assert list(record["splits"]) == ["train"] and len(record["problems"]) == 1


def test_missing_root_is_printed_once_and_nothing_written(check, config, tmp_path):
    config.data.root = str(tmp_path / "nowhere")
    status, text = check()
    assert status == 1 and text.count("nowhere is not a folder") == 1
    assert not (tmp_path / "out").exists()


def test_config_that_cannot_be_used_is_a_problem(check, config):
    config.data.class_names = ("sky",)
    status, text = check()
    assert status == 1 and "config.data.class_names has 1 entries" in text
    assert "train       3     3" in text and "class 0" in text


def test_one_split_for_both_is_a_problem(check, config):
    config.data.eval_split = "train"
    status, text = check()
    assert status == 1 and "are both 'train'" in text


def test_data_that_is_void_throughout_is_a_problem(check, tmp_path):
    for i in range(3):
        image = np.full((*SIZE, 3), i)
        save_pair(tmp_path / "data", "val", f"val{i}", image, np.full(SIZE, 255))
    status, text = check()
    assert status == 1 and "val: all pixels of all images are void" in text
    assert "Most void:\n  val: val0, 100.0%\n" in text
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    assert "median_frequency" not in record["splits"]["val"]


def test_drawn_shapes_are_good_data(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcn_jax.training.config.SHAPES_TRAIN", 20)
    monkeypatch.setattr("fcn_jax.training.config.SHAPES_EVAL", 5)
    data = Data(name="shapes", num_classes=5, size=(32, 32))
    assert check_data(Config(data=data), tmp_path, progress=False) == 0
    assert "train      20    20" in capsys.readouterr().out
