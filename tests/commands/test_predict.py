import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.commands import predict as predict_command
from fcn_jax.data.images import read_image, read_label

SIZES = ((20, 33), (32, 24))


@pytest.mark.parametrize("size", [(), SIZES[0]])
def test_predict_writes_labels_and_overlays(
    picture, net, make_run, tmp_path, capsys, size
):
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


def test_predict_computes_in_bfloat16_if_told(picture, net, weights, tmp_path):
    image = picture(1, (64, 96))
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = ["--weights", weights, "--out", str(tmp_path / "out")]
    arguments += ["--dtype", "bfloat16", str(tmp_path / "a.png")]
    assert main(["predict", *arguments]) == 0
    found = read_label(tmp_path / "out" / "a.png")
    labels = fcn_jax.predict(net.astype("bfloat16"), image)
    np.testing.assert_array_equal(found, labels)
    assert (labels != fcn_jax.predict(net, image)).any()  # Or this would tell little.


def test_predict_compiles_ahead_and_does_without_if_that_fails(
    picture, weights, tmp_path, capsys, monkeypatch
):
    Image.fromarray(picture(1, SIZES[0])).save(tmp_path / "x.png")
    calls = []

    def fail(net, paths, *, batch_size):
        calls.append((net.params["head"]["score_fr"]["bias"], paths))
        raise RuntimeError("the compiler failed")

    monkeypatch.setattr(predict_command, "compile_for_files", fail)
    words = ["predict", "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([*words, str(tmp_path / "x.png")]) == 0
    [(bias, paths)] = calls
    assert isinstance(bias, jax.ShapeDtypeStruct)
    assert paths == [str(tmp_path / "x.png")]
    assert main([*words, "--flip", str(tmp_path / "x.png")]) == 0
    assert len(calls) == 1  # With --flip another program runs.
    assert capsys.readouterr().out.count("1 segmented") == 2


def test_predict_tells_the_shares_of_the_classes_by_name(
    picture, net, weights, tmp_path, capsys
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
    picture, weights, tmp_path, capsys, option
):
    path = tmp_path / "a.png"
    Image.fromarray(picture(1, SIZES[0])).save(path)
    before = path.read_bytes()
    arguments = ["--weights", weights, "--out", str(tmp_path / "out"), str(path)]
    assert main(["predict", *arguments, f"--{option}", str(path)]) == 1
    error = f"fcn_jax predict: {path}: name what is written .{option}\n"
    assert capsys.readouterr().err == error
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_predict_of_weights_averages_scales_and_mirror(
    picture, net, weights, tmp_path, capsys
):
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


def test_predict_lists_unreadable_images_at_the_end(
    picture, make_run, tmp_path, capsys
):
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
