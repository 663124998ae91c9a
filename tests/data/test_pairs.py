from pathlib import Path

import pytest

from fcn_jax.data.pairs import Pair, describe_pairs, find_pairs

KINDS = {".jpg", ".png"}


def save(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def find(root, **changes):
    arguments = {"images": "images", "labels": "labels", "image_kinds": KINDS}
    return find_pairs(root, **arguments | changes)


def complete(root, **changes):
    """The pairs as (name, images, label) with paths below root."""
    pairs, problems = find(root, **changes)
    assert problems == []
    return [
        (
            pair.name,
            *(path.relative_to(root).as_posix() for path in (*pair.images, pair.label)),
        )
        for pair in pairs
    ]


def test_nested_folders_pair_by_path_without_suffix(tmp_path):
    save(tmp_path, "images/b/x.jpg", "images/a/x.1.png", "images/y.JPG")
    save(tmp_path, "labels/b/x.png", "labels/a/x.1.tif", "labels/y.npy")
    save(tmp_path, "images/.hidden/z.jpg", "images/notes.md")
    assert complete(tmp_path) == [
        ("a/x.1", "images/a/x.1.png", "labels/a/x.1.tif"),
        ("b/x", "images/b/x.jpg", "labels/b/x.png"),
        ("y", "images/y.JPG", "labels/y.npy"),
    ]


def test_suffixes_choose_files_and_leave_the_key(tmp_path):
    save(tmp_path, "images/bonn/bonn_1_left.png", "images/bonn/bonn_1_right.png")
    save(tmp_path, "labels/bonn/bonn_1_ids.png", "labels/bonn/bonn_1_color.png")
    assert complete(tmp_path, image_suffix="_left.png", label_suffix="_ids.png") == [
        ("bonn/bonn_1", "images/bonn/bonn_1_left.png", "labels/bonn/bonn_1_ids.png")
    ]


@pytest.mark.parametrize(
    ("image_suffix", "label_suffix", "image", "label", "name"),
    [
        (".jpg", ".png", "x.jpg", "x.png", "x"),
        (".png", "_mask.png", "x.png", "x_mask.png", "x"),
        ("", "_mask.png", "x.png", "x_mask.png", "x"),
        ("image.png", "mask.png", "x/image.png", "x/mask.png", "x"),
    ],
)
def test_one_folder_holds_both_where_suffixes_differ(
    tmp_path, image_suffix, label_suffix, image, label, name
):
    save(tmp_path, f"data/{image}", f"data/{label}")
    options = {"image_suffix": image_suffix, "label_suffix": label_suffix}
    found = complete(tmp_path, images="data", labels="data", **options)
    assert found == [(name, f"data/{image}", f"data/{label}")]


def test_one_folder_without_suffixes_is_refused(tmp_path):
    save(tmp_path, "data/x.png")
    with pytest.raises(ValueError, match="data holds masks .*set image_suffix and"):
        find(tmp_path, images="data", labels="data")


def test_folder_of_masks_inside_that_of_images_is_told_apart(tmp_path):
    save(tmp_path, "train/x.png", "train/masks/x.png")
    assert complete(tmp_path, images="train", labels="train/masks") == [
        ("x", "train/x.png", "train/masks/x.png")
    ]


def test_further_channels_pair_by_the_same_key(tmp_path):
    save(tmp_path, "images/a/x_l.png", "labels/a/x.png", "depth/a/x.npy")
    save(tmp_path, "ir/a/x_ir.png", "ir/a/y.png")
    extras = ["depth", "ir/*_ir.png"]
    assert complete(tmp_path, image_suffix="_l.png", extra_images=extras) == [
        ("a/x", "images/a/x_l.png", "depth/a/x.npy", "ir/a/x_ir.png", "labels/a/x.png")
    ]
    save(tmp_path, "images/a/z_l.png", "labels/a/z.png", "depth/a/z.npy")
    pairs, problems = find(tmp_path, image_suffix="_l.png", extra_images=extras)
    assert len(pairs) == 1
    assert problems == [f"a/z_ir.png is missing in {tmp_path / 'ir'}; a/y.png is there"]


def test_missing_file_names_the_nearest_candidate(tmp_path):
    save(tmp_path, *(f"images/{i:03}.png" for i in range(3)), "images/street.png")
    save(tmp_path, "labels/000.png", "labels/001.txt", "labels/steet.png")
    pairs, problems = find(tmp_path)
    assert [pair.name for pair in pairs] == ["000"]
    labels, images = tmp_path / "labels", tmp_path / "images"
    assert problems == [
        f"001.png is missing in {labels}; 001.txt is there",
        f"002.png is missing in {labels}",
        f"steet.png is missing in {images}; street.png is there",
        f"street.png is missing in {labels}; steet.png is there",
    ]


def test_two_files_of_one_key_are_a_problem(tmp_path):
    save(tmp_path, "images/a.jpg", "images/a.png", "labels/a.png")
    pairs, problems = find(tmp_path)
    assert len(pairs) == 1 and len(problems) == 1
    assert "images has both a.jpg and a.png; keep one" in problems[0]
    assert "set image_suffix" in problems[0]
    assert complete(tmp_path, image_suffix=".png")[0][1] == "images/a.png"


def test_links_that_lead_back_up_end(tmp_path):
    save(tmp_path, "images/a/x.png", "labels/a/x.png")
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    assert [name for name, *_ in complete(tmp_path)] == ["a/x"]


@pytest.mark.parametrize(
    "lines",
    [
        "c/z\nx",
        "c/z.jpg\nx.jpg",
        "images/c/z.jpg\nimages/x.jpg",
        "/sets/mine/images/c/z.jpg\r\n/sets/mine/images/x.jpg\r\n",
        "images\\c\\z.jpg\nimages\\x.jpg",
    ],
)
def test_list_names_members_and_order_by_key_or_path(tmp_path, lines):
    save(tmp_path, "images/c/z.jpg", "images/x.jpg", "images/y.jpg")
    save(tmp_path, "labels/c/z.png", "labels/x.png")
    (tmp_path / "train.txt").write_text(lines)
    names = [name for name, *_ in complete(tmp_path, list_file="train.txt")]
    assert names == ["c/z", "x"]


def test_list_name_may_have_spaces(tmp_path):
    save(tmp_path, "images/my cat.jpg", "labels/my cat.png")
    (tmp_path / "train.txt").write_text("my cat\n")
    assert complete(tmp_path, list_file="train.txt")[0][0] == "my cat"


def test_listed_file_without_counterpart_is_a_problem(tmp_path):
    save(tmp_path, "images/x.jpg", "labels/x.png", "images/y.jpg")
    (tmp_path / "train.txt").write_text("x\nz\ny")
    pairs, problems = find(tmp_path, list_file="train.txt")
    assert [pair.name for pair in pairs] == ["x"]
    assert [line.partition(" is missing in ")[0] for line in problems] == [
        "z.jpg",
        "z.png",
        "y.png",
    ]


def test_listed_file_with_another_suffix_is_a_problem(tmp_path):
    save(tmp_path, "images/x.png", "images/y.png", "labels/x.png", "labels/y.png")
    (tmp_path / "train.txt").write_text("x.png\ny.jpg")
    pairs, problems = find(tmp_path, list_file="train.txt")
    assert [pair.name for pair in pairs] == ["x"]
    assert problems == [f"y.jpg is missing in {tmp_path / 'images'}; y.png is there"]


@pytest.mark.parametrize("prefix", ["", "/", "/SegNet/CamVid/", "C:\\sets\\"])
@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_two_columns_are_paths_below_root(tmp_path, prefix, separator):
    save(tmp_path, "train/x.png", "trainannot/x.png", "train/y.png", "trainannot/y.png")
    rows = ((f"{prefix}train/{n}.png", f"{prefix}trainannot/{n}.png") for n in "yx")
    (tmp_path / "train.txt").write_text("\n".join(map(separator.join, rows)))
    found = complete(tmp_path, images="nowhere", list_file="train.txt")
    assert found == [
        ("train/y", "train/y.png", "trainannot/y.png"),
        ("train/x", "train/x.png", "trainannot/x.png"),
    ]


@pytest.mark.parametrize("separator", ["\t", ","])
def test_two_columns_may_have_spaces_in_paths(tmp_path, separator):
    save(tmp_path, "my images/x 1.png", "my masks/x 1.png")
    (tmp_path / "train.txt").write_text(f"my images/x 1.png{separator}my masks/x 1.png")
    assert len(complete(tmp_path, list_file="train.txt")) == 1


def test_two_columns_name_missing_files(tmp_path):
    save(tmp_path, "train/x.png", "annot/x.png", "train/y.png", "annot/y.tif")
    (tmp_path / "train.txt").write_text(
        "/s/train/x.png /s/annot/x.png\n"
        "/s/train/y.png /s/annot/y.png\n"
        "/s/z/a.png /s/z/b.png"
    )
    pairs, problems = find(tmp_path, list_file="train.txt")
    assert [pair.name for pair in pairs] == ["train/x"]
    assert problems == [
        f"annot/y.png is missing in {tmp_path}; annot/y.tif is there",
        f"z/a.png is missing in {tmp_path}",
        f"z/b.png is missing in {tmp_path}",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("../secret", "'../secret' leads out of its folder"),
        ("images/x.jpg ../secret.png", "'../secret.png' leads out"),
        ("images/x.jpg labels/x.png\nimages/x.jpg", "'images/x.jpg' has 1 columns"),
        ("no/x.jpg no/x.png", "'no/x.jpg no/x.png' of .* is neither .* nor two paths"),
    ],
)
def test_list_that_cannot_be_followed_is_refused(tmp_path, lines, message):
    save(tmp_path, "set/images/x.jpg", "set/labels/x.png", "secret.png")
    (tmp_path / "set" / "train.txt").write_text(lines)
    with pytest.raises(ValueError, match=f"list_file: .*{message}"):
        find(tmp_path / "set", list_file="train.txt")


def test_two_columns_leave_no_place_for_further_channels(tmp_path):
    save(tmp_path, "images/x.jpg", "labels/x.png")
    (tmp_path / "train.txt").write_text("images/x.jpg labels/x.png")
    with pytest.raises(ValueError, match="two columns, .* extra_images"):
        find(tmp_path, list_file="train.txt", extra_images=["depth"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_suffix": "_left.png"}, "images: .*holds no images that end in _left"),
        ({"label_suffix": ".npy"}, "labels: .*holds no masks that end in .npy"),
        ({"extra_images": ["depth"]}, "extra_images: .*depth is not a folder"),
    ],
)
def test_folder_without_files_is_refused(tmp_path, changes, message):
    save(tmp_path, "images/x.jpg", "labels/x.png")
    with pytest.raises(ValueError, match=message):
        find(tmp_path, **changes)


def test_description_names_folders_suffixes_and_the_list():
    root = Path("set")
    flat = [Pair("a", (root / "train/a.png",), root / "annot/a.png")]
    assert describe_pairs(flat, root, "train.txt") == (
        "1 pair of train/*.png with annot/*.png, by train.txt"
    )
    nested = [
        Pair("b/a", (root / "i/b/a.jpg", root / "d/b/a.npy"), root / "l/b/a.png"),
        Pair("c/a", (root / "i/c/a.png", root / "d/c/a.npy"), root / "l/c/a.png"),
    ]
    assert describe_pairs(nested, root, "name") == (
        "2 pairs of i/**/*.jpg, .png and d/**/*.npy with l/**/*.png, by name"
    )
    suffixed = describe_pairs(nested, root, "name", label_suffix="a.png")
    assert suffixed.endswith("with l/**/*a.png, by name")
