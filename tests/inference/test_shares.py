import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.inference.shares import (
    ClassShares,
    in_words,
    write_shares_csv,
    write_shares_json,
)

NAMES = ("background", "cat", "dog")


def shares_of(*pixels):
    found = ClassShares(len(pixels))
    labels = np.repeat(np.arange(len(pixels)), pixels)
    found.add(labels, np.full(labels.shape, 0.5))
    return found


def test_parts_of_an_image_add_up():
    found = ClassShares(3)
    found.add(np.array([[0, 2], [2, 2]]), np.array([[0.9, 0.5], [0.7, 0.6]]))
    found.add(np.array([0, 0, 0, 2]), np.array([0.7, 0.8, 1.0, 1.0]))
    np.testing.assert_array_equal(found.pixels, [4, 0, 4])
    np.testing.assert_allclose(found.shares, [0.5, 0, 0.5])
    expected = [3.4 / 4, math.nan, 2.8 / 4]
    np.testing.assert_allclose(found.mean_confidence, expected)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((71, 29, 0), "background 71 %, cat 29 %"),
        ((0, 29, 71), "dog 71 %, cat 29 %"),
        ((0, 5, 0), "cat 100 %"),
        ((996, 4, 0), "background 100 %, cat <1 %"),
    ],
)
def test_words_name_the_classes_that_occur_the_largest_first(pixels, words):
    assert in_words(shares_of(*pixels), NAMES) == words


def test_words_count_what_comes_after_five_classes():
    names = [f"c{i}" for i in range(8)]
    found = in_words(shares_of(30, 20, 15, 10, 10, 9, 6, 0), names)
    assert found == "c0 30 %, c1 20 %, c2 15 %, c3 10 %, c4 10 %, 2 more 15 %"


def test_words_stay_on_one_line():
    assert in_words(shares_of(1), ["a\nb\x1b[2J"]) == "a\\nb\\x1b[2J 100 %"


def test_csv_has_a_row_for_each_image_and_class(tmp_path):
    found = {Path("a,b.jpg"): shares_of(1, 0, 3), Path("c.jpg"): shares_of(0, 2, 0)}
    write_shares_csv(tmp_path / "t.csv", found, NAMES)
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "class", "pixels", "share", "mean_confidence"],
        ["a,b.jpg", "background", "1", "0.25", "0.5"],
        ["a,b.jpg", "cat", "0", "0.0", ""],
        ["a,b.jpg", "dog", "3", "0.75", "0.5"],
        ["c.jpg", "background", "0", "0.0", ""],
        ["c.jpg", "cat", "2", "1.0", "0.5"],
        ["c.jpg", "dog", "0", "0.0", ""],
    ]


def test_json_has_an_object_for_each_image_and_class(tmp_path):
    write_shares_json(tmp_path / "t.json", {Path("a.jpg"): shares_of(1, 0, 3)}, NAMES)
    (image,) = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert image["image"] == "a.jpg"
    keys = ("class", "pixels", "share", "mean_confidence")
    assert [tuple(map(row.get, keys)) for row in image["classes"]] == [
        ("background", 1, 0.25, 0.5),
        ("cat", 0, 0.0, None),
        ("dog", 3, 0.75, 0.5),
    ]


def test_names_of_files_that_are_no_text_are_escaped(tmp_path):
    found = {Path(os.fsdecode(b"\xff.png")): shares_of(1)}
    write_shares_csv(tmp_path / "t.csv", found, ["a"])
    assert "\\udcff.png,a,1" in (tmp_path / "t.csv").read_text(encoding="utf-8")
    write_shares_json(tmp_path / "t.json", found, ["a"])
    (image,) = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert os.fsencode(image["image"]) == b"\xff.png"
