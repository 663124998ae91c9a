import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.sources import CheckedSource, FolderSource

LABEL = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def save_pair(root, stem, image=IMAGE, label=LABEL):
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{stem}.png")


def open_folder(root, **changes):
    arguments = {"images": "images", "labels": "labels", "split": "train"}
    return FolderSource(root, **arguments | {"num_classes": 3} | changes)


def test_folder_source_pairs_by_stem_in_sorted_order(tmp_path):
    for stem in ("b", "a.1", "c"):
        save_pair(tmp_path, stem)
    (tmp_path / "images" / "Thumbs.db").write_text("not an image")
    (tmp_path / "images" / "._a.png").write_text("not an image either")
    source = open_folder(tmp_path)
    assert len(source) == 3
    assert [example["name"] for example in source] == ["a.1", "b", "c"]
    example = source[0]
    assert example["image"].dtype == np.uint8 and example["label"].dtype == np.int32
    np.testing.assert_array_equal(example["image"], IMAGE)
    np.testing.assert_array_equal(example["label"], LABEL)


def test_folder_source_replaces_split_in_folders(tmp_path):
    (tmp_path / "val").mkdir()
    save_pair(tmp_path / "val", "x")
    source = open_folder(
        tmp_path, images="{split}/images", labels="{split}/labels", split="val"
    )
    assert source[0]["name"] == "x"


def test_folder_source_list_file_gives_members_and_order(tmp_path):
    for stem in ("a", "b", "c"):
        save_pair(tmp_path, stem)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfc\r\n\r\n a \r\n")
    source = open_folder(tmp_path, list_file="{split}.txt")
    assert [example["name"] for example in source] == ["c", "a"]


def test_folder_source_gives_its_own_void_value_as_255(tmp_path):
    save_pair(tmp_path, "x", label=np.array([[0, 1, 11], [11, 2, 2]], np.uint8))
    label = open_folder(tmp_path, ignore_label=11)[0]["label"]
    np.testing.assert_array_equal(label, [[0, 1, 255], [255, 2, 2]])


@pytest.mark.parametrize(
    "changes, missing",
    [
        ({"images": "{split}/pictures"}, r"images: .*train.pictures is not a folder"),
        ({"labels": "masks"}, r"labels: .*masks is not a folder.*under root"),
        ({"list_file": "{split}.txt"}, r"list_file: .*train.txt is not a file"),
        ({"images": "empty"}, r"images: .*empty holds no images"),
        ({"labels": "empty"}, r"labels: .*empty holds no PNG files"),
        ({"list_file": "blank.txt"}, r"blank.txt lists nothing.*one stem per line"),
    ],
)
def test_folder_source_missing_part_names_it(tmp_path, changes, missing):
    save_pair(tmp_path, "x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(ValueError, match=missing):
        open_folder(tmp_path, **changes)


def test_folder_source_missing_root_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"root: .*nowhere is not a folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "gone, what", [("labels", "label PNGs are missing"), ("images", "images are")]
)
def test_folder_source_missing_halves_are_counted_and_named(tmp_path, gone, what):
    for i in range(8):
        save_pair(tmp_path, f"s{i}")
    for i in range(1, 8):
        (tmp_path / gone / f"s{i}.png").unlink()
    named = rf"7 {what}.*{gone}.*: s1, s2, s3, s4, s5, \.\.\. and 2 more"
    with pytest.raises(ValueError, match=named):
        open_folder(tmp_path)


@pytest.mark.parametrize("entry", ["x.png", "../../secret"])
def test_folder_source_list_entry_without_image_is_refused(tmp_path, entry):
    root = tmp_path / "deep"
    root.mkdir()
    save_pair(root, "x")
    Image.fromarray(IMAGE).save(tmp_path / "secret.png")
    (root / "train.txt").write_text(entry)
    with pytest.raises(ValueError, match="1 images listed in .*train.txt are missing"):
        open_folder(root, list_file="train.txt")


def test_folder_source_two_images_of_one_stem_are_refused(tmp_path):
    save_pair(tmp_path, "x")
    Image.fromarray(IMAGE).save(tmp_path / "images" / "x.bmp")
    with pytest.raises(ValueError, match="both x.bmp and x.png"):
        open_folder(tmp_path)


def test_folder_source_different_sizes_names_both(tmp_path):
    save_pair(tmp_path, "x", label=LABEL.T.copy())
    with pytest.raises(ValueError, match=r"x.png is 2x3 .*labels.x.png is 3x2"):
        open_folder(tmp_path)[0]


def test_folder_source_value_out_of_range_names_values_and_arguments(tmp_path):
    save_pair(tmp_path, "x")
    wanted = (
        r"x.png: label values 2, 255 are neither in \[0, 2\) \(num_classes = 2\) "
        r"nor .*\(ignore_label = 7\).* set ignore_label"
    )
    with pytest.raises(ValueError, match=wanted):
        open_folder(tmp_path, num_classes=2, ignore_label=7)[0]


def test_folder_source_broken_file_is_named(tmp_path):
    save_pair(tmp_path, "x")
    (tmp_path / "images" / "x.png").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"images.x.png: cannot be read as an image"):
        open_folder(tmp_path)[0]


@pytest.mark.parametrize(
    ("example", "name"),
    [
        ((IMAGE, LABEL.tolist()), "0"),
        ({"image": IMAGE, "label": LABEL.astype(np.int64)}, "0"),
        ({"image": IMAGE, "label": LABEL, "name": "street"}, "street"),
    ],
)
def test_checked_source_gives_every_example_one_form(example, name):
    source = CheckedSource([example], num_classes=3)
    found = source[0]
    assert len(source) == 1 and found["name"] == name
    assert found["label"].dtype == np.int32
    np.testing.assert_array_equal(found["image"], IMAGE)
    np.testing.assert_array_equal(found["label"], LABEL)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (IMAGE, r"example 0 is a ndarray, want \(image, label\) or a dict"),
        ((IMAGE / 255, LABEL), r"example 0: the image is \[2, 3, 3\] float64, its"),
        ((IMAGE, LABEL.T), r"its label \[3, 2\]: want \[H, W, 3\] uint8"),
        ((IMAGE, LABEL / 2), r"the label is \[2, 3\] float64, want \[H, W\] of int"),
        ((IMAGE, np.full((2, 3), 3)), "example 0: label values 3 are neither"),
    ],
)
def test_checked_source_names_an_example_of_another_form(example, message):
    source = CheckedSource([example], num_classes=3)
    with pytest.raises(ValueError, match=message):
        source[0]


def test_checked_source_refuses_what_has_no_length():
    with pytest.raises(ValueError, match="is a generator without __len__"):
        CheckedSource((pair for pair in [(IMAGE, LABEL)]), num_classes=3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_checked_source_of_more_channels_gives_uint8_or_float32(dtype):
    image = np.arange(30).reshape(2, 3, 5).astype(dtype)
    found = CheckedSource([(image, LABEL)], num_classes=3, in_channels=5)[0]["image"]
    assert found.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE, r"image is \[2, 3, 3\] uint8, .*want \[H, W, 4\] uint8 or uint16 or"),
        (np.zeros((2, 3, 4), np.int32), r"image is \[2, 3, 4\] int32, its label"),
        (np.full((2, 3, 4), np.nan), "example 0: the image holds NaN, infinity or a"),
        (np.full((2, 3, 4), 1e39), "example 0: the image holds NaN, infinity or a"),
    ],
)
def test_checked_source_refuses_other_channels_and_numbers(image, message):
    source = CheckedSource([(image, LABEL)], num_classes=3, in_channels=4)
    with pytest.raises(ValueError, match=message):
        source[0]
