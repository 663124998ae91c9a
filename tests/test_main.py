import csv
import json
import os
import queue
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fcn_jax
import fcn_jax.__main__ as command_line
from fcn_jax.__main__ import main
from fcn_jax.data.images import read_image, read_label
from fcn_jax.network import Network
from fcn_jax.training.config import Config, Data, Model, make_network, save_config

NAMES = ("sky", "road", "car", "boat")  # The network never says "boat".
SIZES = ((20, 33), (32, 24))


def picture(seed, size):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1]))


def write_split(root, split, seed):
    """Three images and labels without a boat, a tenth of them void."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for i in range(3):
        size = SIZES[i % 2]
        label = rng.integers(0, 3, size, np.uint8)
        label[rng.random(size) < 0.1] = 255
        image = Image.fromarray(picture(seed + i, size))
        image.save(root / "images" / split / f"{i}.png")
        Image.fromarray(label).save(root / "labels" / split / f"{i}.png")


def random_params(model):
    """Of a scale that keeps every layer alive, without the time to compile an init."""
    rng = np.random.default_rng(0)
    image = jnp.zeros([1, 1, 1, 3])
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes)
    for name, layer in params["head"].items():
        # Weights that sum to zero, lest one class wins everywhere.
        layer["kernel"] -= layer["kernel"].mean(axis=2, keepdims=True)
        layer["bias"][:] = (0, 0, 0, -1e6) if name == "score_fr" else 0
    return params


MODEL = Model(width=1 / 16, mean=(90.0, 100.0, 110.0))
DATA = {"num_classes": len(NAMES), "class_names": NAMES}


@pytest.fixture(scope="module")
def net():
    net = make_network(Config(model=MODEL, data=Data(**DATA)))
    return net.replace(params=random_params(net.model))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    write_split(root, "val", seed=10)
    write_split(root, "test", seed=20)
    return root


@pytest.fixture
def make_run(tmp_path, net):
    """Gives a function that makes a run directory with these fields of config.data."""

    def make(**fields):
        run = tmp_path / "run"
        run.mkdir()
        data = Data(**DATA | fields)
        save_config(run / "config.json", Config(model=MODEL, data=data))
        fcn_jax.save(run / "model.safetensors", net.replace(size=data.size))
        return run

    return make


def scores_by_hand(net, root, split):
    """The table of `evaluate` as fractions, pixel by pixel from the definitions."""
    confusion = np.zeros((4, 4))
    for path in (root / "images" / split).iterdir():
        labels = np.asarray(Image.open(root / "labels" / split / path.name))
        image = np.asarray(Image.open(path))
        prediction = fcn_jax.predict(net, image)
        valid = labels != 255
        np.add.at(confusion, (labels[valid], prediction[valid]), 1)
    assert (confusion[:3, :3] > 0).all()  # Or the scores would tell little.
    confusion = confusion[:3, :3]
    right, true = np.diag(confusion), confusion.sum(axis=1)
    iu = right / (true + confusion.sum(axis=0) - right)
    return {
        "pixel accuracy": right.sum() / true.sum(),
        "mean accuracy": (right / true).mean(),
        "mean iu": iu.mean(),
        "frequency weighted iu": (true * iu).sum() / true.sum(),
        **{f"iu {name}": value for name, value in zip(NAMES, iu, strict=False)},
        "iu boat": None,
    }


def printed_scores(text):
    """{name: per cent, None for a dash} of the lines before "Written: "."""
    lines = (
        text.partition("Written: ")[0]
        .lower()
        .replace("frequency-", "frequency ")
        .splitlines()
    )
    rows = [line.rsplit(maxsplit=1) for line in lines]
    return {name.strip(): None if v == "-" else float(v) for name, v in rows}


@pytest.mark.parametrize("options, split", [([], "val"), (["--split", "a:b"], "a:b")])
def test_evaluate_prints_and_writes_the_scores(
    net, make_run, data, capsys, options, split
):
    for kind in ("images", "labels"):
        (data / kind / "test").rename(data / kind / "a:b")
    run = make_run(root=str(data))
    assert main(["evaluate", "--run", str(run), *options]) == 0
    expected = scores_by_hand(net, data, split)
    per_cent = {k: None if v is None else 100 * v for k, v in expected.items()}
    printed = printed_scores(capsys.readouterr().out)
    assert printed == pytest.approx(per_cent, abs=0.0051)  # Two decimals.

    split = split.replace(":", "_")  # No file of Windows has a colon in its name.
    written = json.loads((run / f"metrics_{split}.json").read_text())
    flat = {f"iu {name}": value for name, value in written.pop("iu").items()}
    flat |= {name.replace("_", " "): value for name, value in written.items()}
    assert flat == pytest.approx(expected)
    pictures = {f"{name}_{split}.png" for name in ("results", "errors", "confusion")}
    for name in pictures:
        with Image.open(run / name) as picture:
            picture.load()
    page = (run / f"report_{split}.html").read_text(encoding="utf-8")
    assert f"{100 * expected['mean iu']:.2f} %" in page
    assert f"evaluate --run {run}" in page
    files = {"config.json", "model.safetensors"}
    files |= {f"metrics_{split}.json", f"report_{split}.html"}
    assert {path.name for path in run.iterdir()} == files | pictures


def test_evaluate_finds_data_that_moved(net, make_run, data, tmp_path, capsys):
    run = make_run(root=str(tmp_path / "before"), help="Ask for the data.")
    assert main(["evaluate", "--run", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'before'} is not a folder. Ask for the data." in error

    assert main(["evaluate", "--run", str(run), "--root", str(data)]) == 0
    printed = printed_scores(capsys.readouterr().out)
    accuracy = scores_by_hand(net, data, "val")["pixel accuracy"]
    assert printed["pixel accuracy"] == pytest.approx(100 * accuracy, abs=0.0051)


def test_evaluate_of_an_unknown_split_names_its_folder(make_run, data, capsys):
    run = make_run(root=str(data))
    assert main(["evaluate", "--run", str(run), "--split", "trial"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fcn_jax evaluate: ")
    assert f"{data / 'images' / 'trial'} is not a folder" in error
    assert not (run / "metrics_trial.json").exists()


@pytest.fixture
def weights(net, tmp_path):
    fcn_jax.save(tmp_path / "net.safetensors", Network(net.params, net.model))
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def config_file(data, tmp_path):
    path = tmp_path / "config.py"
    fields = f"root={str(data)!r}, num_classes=5, train_split='test'"
    path.write_text(
        "from fcn_jax.training.config import Config, Data\n"
        "def get_config():\n"
        f"    return Config(data=Data({fields}))\n"
    )
    return str(path)


def test_evaluate_of_weights_on_the_data_of_a_config(
    net, weights, config_file, data, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["--weights", weights, "--config", config_file, "--out", str(out)]
    arguments += ["--config.data.num_classes=4", "--split", "test"]
    saved = ["--save-confusion", "--save-predictions"]
    assert main(["evaluate", *arguments, *saved]) == 0
    printed = printed_scores(capsys.readouterr().out)
    expected = scores_by_hand(net, data, "test")
    assert printed["mean iu"] == pytest.approx(100 * expected["mean iu"], abs=0.0051)

    header, *rows = (out / "confusion_test.csv").read_text().splitlines()
    assert header == "true \\ predicted,class 0,class 1,class 2,class 3"
    confusion = np.array([row.split(",")[1:] for row in rows], int)
    accuracy = np.trace(confusion) / confusion.sum()
    assert accuracy == pytest.approx(expected["pixel accuracy"])
    folder = out / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    for i in range(3):
        image = read_image(data / "images" / "test" / f"{i}.png")
        labels = fcn_jax.predict(net, image)
        np.testing.assert_array_equal(read_label(folder / f"{i}.png"), labels)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "with --weights, pass --data voc or --config FILE"),
        (["--config", "{config}"], "the network has 4 classes, the data 5"),
        (["--config", "{config}", "--config.data.rot=x"], "rot"),
        (["--config", "nowhere.py"], "nowhere.py"),
    ],
)
def test_evaluate_of_weights_without_fitting_data_says_so(
    weights, config_file, capsys, arguments, problem
):
    arguments = [argument.format(config=config_file) for argument in arguments]
    assert main(["evaluate", "--weights", weights, *arguments]) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--data", "voc"], ["--config", "other.py"]])
def test_evaluate_of_a_run_refuses_other_data(make_run, data, capsys, option):
    run = make_run(root=str(data))
    assert main(["evaluate", "--run", str(run), *option]) == 1
    assert "leave out --data and --config" in capsys.readouterr().err


def test_nothing_is_written_over_what_it_is_made_from(make_run, capsys):
    run = make_run()
    network = run / "model.safetensors"
    before = network.read_bytes()
    for arguments, problem in (
        (["export", "--run", run, "--out", network], "name what is written .npz or"),
        (["convert", network, network], "is the source: name another file"),
    ):
        assert main([str(argument) for argument in arguments]) == 1
        assert problem in capsys.readouterr().err
    assert network.read_bytes() == before


def test_evaluate_resizes_as_the_network_does_or_refuses(
    net, config_file, data, tmp_path, capsys
):
    path = tmp_path / "resizing.safetensors"
    fcn_jax.save(path, net.replace(size=(32, 32)))
    arguments = ["evaluate", "--weights", str(path), "--config", config_file]
    arguments += ["--config.data.num_classes=4", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--config.data.size=(32,24)"]) == 1
    assert "resizes images to (32, 32)" in capsys.readouterr().err
    assert main(arguments) == 0
    printed = printed_scores(capsys.readouterr().out)
    expected = scores_by_hand(net.replace(size=(32, 32)), data, "val")
    accuracy = 100 * expected["pixel accuracy"]
    assert printed["pixel accuracy"] == pytest.approx(accuracy, abs=0.0051)


def test_run_of_an_older_version_resizes_as_its_config_says(net, make_run, tmp_path):
    run = make_run(root="not needed", size=(24, 24))
    fcn_jax.save(run / "model.safetensors", net)  # A file that has no size.
    Image.fromarray(picture(1, SIZES[0])).save(tmp_path / "a.png")
    out = tmp_path / "out"
    command = ["predict", "--run", str(run), "--out", str(out)]
    assert main([*command, str(tmp_path / "a.png")]) == 0
    expected = fcn_jax.predict(net.replace(size=(24, 24)), tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(out / "a.png"), expected)


def test_check_data_finds_the_flaw_and_its_file(config_file, data, tmp_path, capsys):
    arguments = ["check-data", "--config", config_file, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    flawed = data / "labels" / "val" / "1.png"
    Image.fromarray(np.full(SIZES[1], 77, np.uint8)).save(flawed)
    capsys.readouterr()
    assert main(arguments) == 1
    assert f"{flawed}: label values 77" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "vgg16.npy", "--fast"],
        ["inspect", "vgg16.npy", "--config.steps=1"],
        ["train", "--config", "a.py", "--workdir", "run", "--fast"],
    ],
)
def test_unknown_argument_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err


COMMANDS = {
    "evaluate": [],
    "predict": ["image.png", "--out", "out"],
    "export": ["--out", "out.npz"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_run_is_named(command, tmp_path, capsys):
    run = tmp_path / "nowhere"
    assert main([command, "--run", str(run), *COMMANDS[command]]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fcn_jax {command}: ") and str(run) in error


@pytest.mark.parametrize("command", COMMANDS)
def test_run_without_a_network_is_named(command, make_run, data, capsys):
    run = make_run(root=str(data))
    (run / "model.safetensors").unlink()
    assert main([command, "--run", str(run), *COMMANDS[command]]) == 1
    assert f"{run / 'model.safetensors'} is not there" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(), SIZES[0]])
def test_predict_writes_labels_and_overlays(net, make_run, tmp_path, capsys, size):
    run, out = make_run(root="not needed", size=size), tmp_path / "out"
    images = {
        "color.png": Image.fromarray(picture(1, SIZES[0])),
        "photo.jpg": Image.fromarray(picture(2, SIZES[1])),
        "grey.bmp": Image.fromarray(picture(3, SIZES[0])).convert("L"),
        "clear.tiff": Image.fromarray(picture(4, SIZES[1])).convert("RGBA"),
    }
    paths = [tmp_path / name for name in images]
    for path, image in zip(paths, images.values(), strict=True):
        image.save(path)
    assert (
        main(["predict", "--run", str(run), "--out", str(out), *map(str, paths)]) == 0
    )
    assert f"4 segmented into {out}" in capsys.readouterr().out
    assert len(list(out.iterdir())) == 8
    for path in paths:
        image = read_image(path)
        labels = fcn_jax.predict(net.replace(size=size), image)
        target = out / f"{path.stem}.png"
        with Image.open(target) as written:
            assert written.mode == "P"
        np.testing.assert_array_equal(read_label(target), labels)
        np.testing.assert_array_equal(read_image(target), fcn_jax.colorize(labels))
        np.testing.assert_array_equal(
            read_image(out / f"{path.stem}_overlay.png"),
            fcn_jax.overlay(image, labels, background=net.background),
        )


def test_predict_tells_the_shares_of_the_classes_by_name(
    net, weights, tmp_path, capsys
):
    names = [f"class {i}" for i in range(4)]
    paths = [tmp_path / "in" / f"{i}.png" for i in range(2)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.fromarray(picture(i, SIZES[0])).save(path)
    options = ["--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")]
    arguments = ["--weights", weights, "--out", str(tmp_path / "out"), "--legend"]
    assert main(["predict", *arguments, *options, str(tmp_path / "in")]) == 0
    lines = capsys.readouterr().out.splitlines()
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tables = json.loads((tmp_path / "t.json").read_text())
    assert len(rows) == len(paths) * len(names) and len(tables) == len(paths)
    for path, line, table in zip(paths, lines, tables, strict=False):
        labels = np.asarray(fcn_jax.predict(net, path))
        pixels = [np.sum(labels == i) for i in range(len(names))]
        assert line.startswith(f"{path}: {names[np.argmax(pixels)]} ")
        own = [row for row in rows if row["image"] == str(path)]
        assert [row["class"] for row in own] == names
        assert [int(row["pixels"]) for row in own] == pixels
        assert [entry["pixels"] for entry in table["classes"]] == pixels
        overlay = read_image(tmp_path / "out" / f"{path.stem}_overlay.png")
        assert len(overlay) > len(labels)
    assert lines[-2:] == [f"Written: {tmp_path}/t.{kind}" for kind in ("csv", "json")]


@pytest.mark.parametrize("option", ["csv", "json"])
def test_table_that_could_replace_an_image_is_refused(
    weights, tmp_path, capsys, option
):
    path = tmp_path / "a.png"
    Image.fromarray(picture(1, SIZES[0])).save(path)
    before = path.read_bytes()
    arguments = ["--weights", weights, "--out", str(tmp_path / "out"), str(path)]
    assert main(["predict", *arguments, f"--{option}", str(path)]) == 1
    error = f"fcn_jax predict: {path}: name what is written .{option}\n"
    assert capsys.readouterr().err == error
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_predict_of_weights_averages_scales_and_mirror(net, weights, tmp_path, capsys):
    path, out = tmp_path / "in" / "deep" / "a.png", tmp_path / "out"
    path.parent.mkdir(parents=True)
    Image.fromarray(picture(1, SIZES[0])).save(path)
    arguments = ["--weights", weights, "--out", str(out), str(tmp_path / "in")]
    options = ["--scales", "0.5,1", "--flip", "--probabilities"]
    assert main(["predict", *arguments, *options]) == 0
    assert f"1 segmented into {out}" in capsys.readouterr().out
    expected = fcn_jax.probabilities(net, path, scales=(0.5, 1.0), flip=True)
    with np.load(out / "deep" / "a.npz") as file:
        np.testing.assert_allclose(file["probabilities"], expected, atol=1e-3)
    labels = read_label(out / "deep" / "a.png")
    np.testing.assert_array_equal(labels, expected.argmax(-1))


def test_export_writes_what_gives_the_labels_of_the_network(
    net, weights, tmp_path, capsys
):
    path = tmp_path / "net.npz"
    assert main(["export", "--weights", weights, "--out", str(path)]) == 0
    assert "checked against the network at 3 sizes of image" in capsys.readouterr().out
    image = picture(1, SIZES[0])
    expected = fcn_jax.predict(net, image)
    np.testing.assert_array_equal(fcn_jax.load_exported(path)(image), expected)


def test_export_tells_that_a_file_was_not_checked(
    weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command_line, "export", lambda *_, **__: 0)
    path = str(tmp_path / "net.onnx")
    assert main(["export", "--weights", weights, "--out", path]) == 0
    assert capsys.readouterr().out == f"Written: {path}, not checked\n"


def test_predict_lists_unreadable_images_at_the_end(make_run, tmp_path, capsys):
    run, out = make_run(root="not needed"), tmp_path / "out"
    bad, absent, good = (tmp_path / name for name in ("bad.jpg", "no.png", "good.png"))
    bad.write_text("<html>not found</html>")
    Image.fromarray(picture(1, SIZES[0])).save(good)
    images = [str(path) for path in (bad, absent, good)]
    assert main(["predict", "--run", str(run), "--out", str(out), *images]) == 1
    captured = capsys.readouterr()
    *_, first, second = captured.err.splitlines()
    assert first.startswith(f"left out: {bad}: ")
    assert second.startswith(f"left out: {absent}: ")
    assert f"1 segmented into {out}" in captured.out
    assert {path.name for path in out.iterdir()} == {"good.png", "good_overlay.png"}


@pytest.mark.parametrize(
    "option, value",
    [
        *(("--scales", v) for v in ("inf", "nan", "abc", "", "0", "-1", "1,,2")),
        *(("--batch-size", v) for v in ("-1", "1.5", "many", "")),
    ],
)
def test_predict_refuses_numbers_that_are_none_in_one_line(option, value, capsys):
    arguments = ["predict", "--run", "run", "--out", "out", "a.png"]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, f"{option}={value}"])
    *_, line = capsys.readouterr().err.splitlines()
    assert f"argument {option}: " in line and "must be" in line


def test_predict_prints_names_on_one_line(make_run, tmp_path, capsys):
    run, out = make_run(root="not needed"), tmp_path / "out\n\udcff"
    images = [str(tmp_path / "a\n.png"), str(tmp_path / "b\x1b\udcff.png")]
    assert main(["predict", "--run", str(run), "--out", str(out), *images]) == 1
    captured = capsys.readouterr()
    *_, first, second = captured.err.splitlines()
    assert first.startswith(f"left out: {tmp_path}/a\\n.png: ")
    assert second.startswith(f"left out: {tmp_path}/b\\x1b\\udcff.png: ")
    assert captured.out == f"0 segmented into {tmp_path}/out\\n\\udcff\n"


@pytest.mark.parametrize("command", ["predict", "export"])
def test_interrupt_ends_a_command_with_one_line(make_run, monkeypatch, capsys, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "predict_files", interrupted)
    monkeypatch.setattr(command_line, "export", interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)
    run = make_run(root="not needed")
    images = ["a.png"] * (command == "predict")
    with pytest.raises(SystemExit, match="130"):
        main([command, "--run", str(run), "--out", "out.npz", *images])
    assert capsys.readouterr().err == f"\nfcn_jax {command}: interrupted\n"


def test_interrupt_ends_predict_even_during_a_compiled_program(make_run, monkeypatch):
    ended, statuses = queue.Queue(), []

    def compute(*_, **__):
        signal.raise_signal(signal.SIGINT)
        statuses.append(ended.get(timeout=5))
        return {}, []

    monkeypatch.setattr(os, "_exit", ended.put)
    # Python waits for a compiled program before it raises KeyboardInterrupt.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    monkeypatch.setattr(command_line, "predict_files", compute)
    run = make_run(root="not needed")
    main(["predict", "--run", str(run), "--out", "out", "a.png"])
    signal.signal(signal.SIGINT, before)
    assert statuses == [130]


def test_help_of_the_module_lists_the_commands():
    result = subprocess.run(
        [sys.executable, "-m", "fcn_jax", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "python -m fcn_jax" in result.stdout
    for command in ("train", "evaluate", "predict", "check-data", "export"):
        assert command in result.stdout
