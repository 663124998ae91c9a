import warnings

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.sources import FolderSource, read_image, read_label

LABEL = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def save_pair(root, stem, image=IMAGE, label=LABEL):
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{stem}.png")


def open_folder(root, **changes):
    arguments = {"images": "images", "labels": "labels", "split": "train"}
    return FolderSource(root, **arguments | {"num_classes": 3} | changes)


def palette_image(indices):
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([200, 100, 50, 10, 20, 30, 1, 2, 3])
    return image


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


def test_folder_source_keeps_its_own_void_value(tmp_path):
    save_pair(tmp_path, "x", label=np.array([[0, 1, 11], [11, 2, 2]], np.uint8))
    source = open_folder(tmp_path, ignore_label=11)
    assert source[0]["label"].max() == 11


@pytest.mark.parametrize(
    "changes, missing",
    [
        ({"images": "{split}/pictures"}, r"train.pictures is not a folder.*images"),
        ({"labels": "masks"}, r"masks is not a folder.*label PNGs \(data.labels\)"),
        ({"list_file": "{split}.txt"}, r"train.txt is not a file.*data.list_file"),
        ({"images": "empty"}, r"empty holds no images \(data.images\)"),
        ({"labels": "empty"}, r"empty holds no label PNGs"),
        ({"list_file": "blank.txt"}, r"blank.txt lists nothing.*one stem a line"),
    ],
)
def test_folder_source_missing_part_names_it(tmp_path, changes, missing):
    save_pair(tmp_path, "x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(ValueError, match=missing):
        open_folder(tmp_path, **changes)


def test_folder_source_missing_root_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"data.root: .*nowhere is not a folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "gone, what", [("labels", "label PNGs are missing"), ("images", "images are")]
)
def test_folder_source_missing_halves_are_counted_and_named(tmp_path, gone, what):
    for i in range(8):
        save_pair(tmp_path, f"s{i}")
    for i in range(1, 8):
        (tmp_path / gone / f"s{i}.png").unlink()
    named = rf"7 {what}.*{gone}.*: s1, s2, s3, s4, s5, \.\.\."
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


def test_folder_source_value_out_of_range_names_values_and_fields(tmp_path):
    save_pair(tmp_path, "x")
    wanted = (
        r"x.png: label values 2, 255 are neither in \[0, 2\) \(data.num_classes = 2\) "
        r"nor .*data.ignore_label = 7\).* set data.ignore_label"
    )
    with pytest.raises(ValueError, match=wanted):
        open_folder(tmp_path, num_classes=2, ignore_label=7)[0]


def test_folder_source_black_and_white_mask_is_explained(tmp_path):
    save_pair(tmp_path, "x", label=np.array([[0, 255, 0], [0, 0, 0]], np.uint8))
    with pytest.raises(ValueError, match="label values 255 .*save its class as 1"):
        open_folder(tmp_path, ignore_label=7)[0]


def test_folder_source_broken_file_is_named(tmp_path):
    save_pair(tmp_path, "x")
    (tmp_path / "images" / "x.png").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"images.x.png: cannot be read as an image"):
        open_folder(tmp_path)[0]


def test_read_image_truncated_file_is_named(tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="x.jpg: cannot be read .*truncated"):
        read_image(path)


def test_read_image_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="x.jpg: cannot be read .*No such file"):
        read_image(tmp_path / "x.jpg")


def test_read_image_applies_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held so that the top is at the right.
    Image.fromarray(IMAGE).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(IMAGE, k=-1))


# One row of two pixels in each mode, and the RGB to expect.
MODES = {
    "L": (Image.fromarray(np.array([[7, 250]], np.uint8)), [[7] * 3, [250] * 3]),
    "1": (Image.fromarray(np.array([[False, True]])), [[0] * 3, [255] * 3]),
    "P": (palette_image(np.array([[1, 0]], np.uint8)), [[10, 20, 30], [200, 100, 50]]),
    "LA": (Image.new("LA", (2, 1), (9, 0)), [[9] * 3] * 2),
    "RGBA": (Image.new("RGBA", (2, 1), (1, 2, 3, 0)), [[1, 2, 3]] * 2),
    "I;16": (
        Image.fromarray(np.array([[0x1280, 0xFFFF]], np.uint16)),
        [[0x12] * 3, [255] * 3],
    ),
    "I": (
        Image.fromarray(np.array([[0x1280, 0xFFFF]], np.int32)),
        [[0x12] * 3, [255] * 3],
    ),
    "CMYK": (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), [[255, 0, 0]] * 2),
}


@pytest.mark.parametrize("mode", MODES)
def test_read_image_any_mode_becomes_rgb(tmp_path, mode):
    image, expected = MODES[mode]
    assert image.mode == mode
    image.save(tmp_path / "x.tif")
    found = read_image(tmp_path / "x.tif")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [expected])


def test_read_image_palette_with_transparency_keeps_colours(tmp_path):
    image = palette_image(np.array([[1, 0]], np.uint8))
    image.save(tmp_path / "x.png", transparency=b"\x00\x80\xff")
    np.testing.assert_array_equal(
        read_image(tmp_path / "x.png"), [[[10, 20, 30], [200, 100, 50]]]
    )


@pytest.mark.parametrize("pixels", [np.ones((2, 2), np.float32), np.full((2, 2), -1)])
def test_read_image_without_agreed_range_is_refused(tmp_path, pixels):
    if pixels.dtype == np.int64:
        pixels = pixels.astype(np.int32)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="x.tif: pixels of mode .*8 or 16 bits"):
        read_image(tmp_path / "x.tif")


def test_read_image_large_photo_is_read_where_warnings_are_errors(
    tmp_path, monkeypatch
):
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # 6 pixels: between 1x and 2x.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png"), IMAGE)


def test_read_image_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ValueError, match="x.png: cannot be read .*6 pixels.*bomb"):
        read_image(tmp_path / "x.png")


def test_read_label_palette_gives_indices(tmp_path):
    palette_image(np.array([[2, 0, 1]], np.uint8)).save(tmp_path / "x.png")
    label = read_label(tmp_path / "x.png")
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, [[2, 0, 1]])


@pytest.mark.parametrize(
    "values", [[[3, 255]], [[3, 1000]], [[False, True]]], ids=["8", "16", "1-bit"]
)
def test_read_label_grey_gives_values(tmp_path, values):
    array = np.array(values)
    if array.dtype != bool:
        array = array.astype(np.uint8 if array.max() < 256 else np.uint16)
    Image.fromarray(array).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_read_label_with_colours_is_refused(tmp_path, mode):
    Image.new(mode, (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=f"x.png: .*class indices .*mode {mode};"):
        read_label(tmp_path / "x.png")
