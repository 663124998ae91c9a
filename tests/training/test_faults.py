import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from fcn_jax.training.check_data import check_data
from fcn_jax.training.config import Config, Data, make_source
from fcn_jax.training.faults import check_quickly

SIZE = (6, 8)
OPTIONS = {"name": "folder", "num_classes": 2}
# One line of the report for each fault: file, value found, way out.
FAULTS = {
    "image without mask": r"train: no_mask\.png is missing in .*labels.train; no_i",
    "mask without image": r"train: no_image\.png is missing in .*images.train; no_m",
    "broken image": r"train: .*broken_image\.png: cannot be read as an image",
    "broken mask": r"train: .*broken_mask\.png: cannot be read as an image",
    "other size": r"train: .*small_mask.* is 6x8 .*is 3x4; set resize_labels",
    "colours": r"train: .*colour_mask\.png: .* mode RGB; set palette",
    "values": r"train: .*range_mask\.png: label values 5 .*raise num_classes to 6",
    "black and white": r"train: .*white_mask\.png: .* 0 and 255.*set label_map=\(\(255",
    "float image": r"val: .*float_image\.tiff: .* \(32-bit\) .* save .* 8 or 16 bits",
    "float mask": r"val: .*float_mask\.npy: holds \[6, 8\] float64; a mask is",
    "two images": r"val: .*has both twice\.jpg and twice\.png; keep one",
    "overlap": r"good0 \(train\) and again \(val\) have the same pixels",
}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(np.asarray(array)).save(path)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def mask(*values):
    return np.resize(np.uint8(values or (0, 1)), SIZE)


def save_split(root, split, seed, n=2):
    for i in range(n):
        save(root / "images" / split / f"good{i}.png", picture(seed + i))
        save(root / "labels" / split / f"good{i}.png", mask())


@pytest.fixture
def faulty(tmp_path):
    """Two splits with 12 different faults among good pairs."""
    root = tmp_path / "data"
    save_split(root, "train", 0)
    save_split(root, "val", 10)
    images, labels = root / "images" / "train", root / "labels" / "train"
    save(images / "no_mask.png", picture(20))
    save(labels / "no_image.png", mask())
    bad = {
        "broken_image": mask(),
        "broken_mask": mask(),
        "small_mask": mask()[:3, :4],
        "colour_mask": picture(21),
        "range_mask": mask(0, 5),
        "white_mask": mask(0, 255),
    }
    for i, (name, label) in enumerate(bad.items()):
        save(images / f"{name}.png", picture(30 + i))
        save(labels / f"{name}.png", label)
    (images / "broken_image.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (labels / "broken_mask.png").write_bytes(b"text")
    images, labels = root / "images" / "val", root / "labels" / "val"
    save(images / "float_image.tiff", picture(40)[..., 0].astype(np.float32))
    save(labels / "float_image.png", mask())
    save(images / "float_mask.png", picture(41))
    save(labels / "float_mask.npy", np.zeros(SIZE))
    save(images / "twice.png", picture(42))
    save(images / "twice.jpg", picture(43))
    save(labels / "twice.png", mask())
    save(images / "again.png", picture(0))
    save(labels / "again.png", mask())
    return Config(data=Data(root=str(root), **OPTIONS))


def test_one_check_reports_every_fault_of_both_splits(faulty, tmp_path, capsys):
    assert check_data(faulty, tmp_path / "out", progress=False) == 1
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    printed = capsys.readouterr().out
    for lines in (printed.splitlines(), record["problems"] + record["overlaps"]):
        for fault, pattern in FAULTS.items():
            assert any(re.search(pattern, line) for line in lines), fault
    # Each fault is a line. The overlap has its own list, and one line sums up values.
    assert len(record["problems"]) == len(FAULTS)
    assert "2 classes: 5 (masks: 1); raise num_classes to 6" in printed


def test_start_of_a_run_names_the_faults(faulty):
    sources = sources_of(faulty)
    with pytest.raises(ValueError, match=r"(?s)12 faults.*broken_image.*check-data"):
        check_quickly(faulty, sources)


def sources_of(config):
    return {
        split: make_source(config, split, strict=False) for split in ("train", "val")
    }


def test_overlaps_at_the_start_of_a_run_are_warnings(tmp_path, caplog):
    save_split(tmp_path, "train", 0)
    save_split(tmp_path, "val", 0)
    config = Config(data=Data(root=str(tmp_path), **OPTIONS))
    with caplog.at_level(logging.WARNING, logger="fcn_jax"):
        check_quickly(config, sources_of(config))
    assert "good0 (train) and good0 (val) have the same pixels" in caplog.text
