import json

import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.data.images import read_image, read_label

NAMES = ("sky", "road", "car", "boat")


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


def test_evaluate_computes_in_bfloat16_if_told(net, make_run, data, capsys):
    run = make_run(root=str(data))
    assert main(["evaluate", "--run", str(run), "--dtype", "bfloat16"]) == 0
    expected = scores_by_hand(net.astype("bfloat16"), data, "val")
    written = json.loads((run / "metrics_val.json").read_text())
    assert written["pixel_accuracy"] == pytest.approx(expected["pixel accuracy"])


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
