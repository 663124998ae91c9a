import pickle

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.sources import CheckedSource, ExampleError, FolderSource

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
        ({"labels": "empty"}, r"labels: .*empty holds no masks"),
        ({"list_file": "blank.txt"}, r"blank.txt lists nothing.*one name per line"),
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


@pytest.mark.parametrize("gone", ["labels", "images"])
def test_folder_source_incomplete_pairs_are_counted_and_named(tmp_path, gone):
    for i in range(8):
        save_pair(tmp_path, f"s{i}")
    for i in range(1, 8):
        (tmp_path / gone / f"s{i}.png").unlink()
    with pytest.raises(ValueError) as error:
        open_folder(tmp_path)
    head, *lines = str(error.value).splitlines()
    assert head.startswith("7 files in ") and "image_suffix and label_suffix" in head
    missing = [f"s{i}.png is missing in {tmp_path / gone}" for i in range(1, 6)]
    assert lines == [*missing, "... and 2 more"]
    source = open_folder(tmp_path, strict=False)
    assert len(source.problems) == 7 and len(source) == 1
    assert source[0]["name"] == "s0"


def test_folder_source_says_in_one_line_what_was_paired(tmp_path, caplog):
    save_pair(tmp_path, "x")
    (tmp_path / "train.txt").write_text("x")
    with caplog.at_level("INFO", logger="fcn_jax"):
        open_folder(tmp_path, list_file="{split}.txt")
    assert caplog.messages == [
        "train: 1 pair of images/*.png with labels/*.png, by train.txt"
    ]


def test_folder_source_different_sizes_names_both(tmp_path):
    save_pair(tmp_path, "x", label=LABEL.T.copy())
    with pytest.raises(ValueError, match=r"x.png is 2x3 .*labels.x.png is 3x2"):
        open_folder(tmp_path)[0]


def test_folder_source_resizes_labels_on_demand_by_nearest_centre(tmp_path):
    label = np.array([[0, 1, 2, 0, 1, 2], [2, 1, 255, 0, 0, 0]], np.uint8)
    save_pair(tmp_path, "x", label=label)  # Width 6 to 3, height 2 to 2.
    with pytest.raises(ExampleError, match="x.png is 2x6; set resize_labels=True"):
        open_folder(tmp_path)[0]
    found = open_folder(tmp_path, resize_labels=True)[0]["label"]
    # The centres of the new columns are at 1, 3 and 5 of 6: the pixels 1, 3 and 5.
    np.testing.assert_array_equal(found, [[1, 0, 2], [1, 0, 0]])
    assert found.dtype == np.int32


def test_folder_source_names_all_faults_of_an_example_at_once(tmp_path):
    save_pair(tmp_path, "x", label=np.array([[0, 7, 3, 255]], np.uint8))
    source = open_folder(tmp_path)
    with pytest.raises(ExampleError) as error:
        source[0]
    values, size = str(error.value).splitlines()
    assert "labels/x.png: label values 3, 7 are neither" in values
    assert "images/x.png is 2x3" in size and "x.png is 1x4" in size
    assert error.value.problems == [values, size]
    assert error.value.label_values == (3, 7)
    for kind in ("images", "labels"):
        (tmp_path / kind / "x.png").write_text("<html>404</html>")
    with pytest.raises(ExampleError) as error:
        source[0]
    image, label = pickle.loads(pickle.dumps(error.value)).problems
    assert "images/x.png: cannot be read" in image
    assert "labels/x.png: cannot be read" in label
    assert error.value.label_values == ()


def test_folder_source_survives_pickle(tmp_path):
    save_pair(tmp_path, "x")
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    source = open_folder(tmp_path, palette=palette, void_colors=((9, 9, 9),))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[0]["label"], source[0]["label"])


PALETTE = ((0, 0, 0), (200, 10, 10), (10, 200, 10))


def test_folder_source_colour_masks_skip_the_map_of_values(tmp_path):
    colors = np.array([*PALETTE, (255, 255, 255)], np.uint8)
    save_pair(tmp_path, "x", label=colors[[[0, 1, 2], [2, 3, 0]]])
    with pytest.raises(ExampleError, match="mode RGB; set palette"):
        open_folder(tmp_path)[0]
    options = {"palette": PALETTE, "label_map": ((0, 1), (1, 0)), "ignore_label": 77}
    with pytest.raises(ExampleError, match=r"\(255, 255, 255\) in 1 pixel are"):
        open_folder(tmp_path, **options)[0]
    source = open_folder(tmp_path, void_colors=((255, 255, 255),), **options)
    np.testing.assert_array_equal(source[0]["label"], [[0, 1, 2], [2, 255, 0]])


def test_folder_source_index_masks_count_by_index_whatever_the_palette(tmp_path):
    save_pair(tmp_path, "x")
    found = open_folder(tmp_path, palette=((0, 0, 0),) * 3)[0]["label"]
    np.testing.assert_array_equal(found, LABEL)


def test_folder_source_hints_at_colours_behind_wrong_indices(tmp_path):
    save_pair(tmp_path, "x")
    label = Image.fromarray(np.array([[3, 4, 5]] * 2, np.uint8)).convert("P")
    label.putpalette([0] * 9 + [value for color in PALETTE for value in color])
    label.putdata([3, 4, 5] * 2)
    label.save(tmp_path / "labels" / "x.png")
    with pytest.raises(ExampleError, match="colours are those of palette.* as RGB"):
        open_folder(tmp_path, palette=PALETTE)[0]
    with pytest.raises(ExampleError, match="raise num_classes to 6") as error:
        open_folder(tmp_path, palette=((9, 9, 9), *PALETTE[1:]))[0]
    assert "as RGB" not in str(error.value)
    assert error.value.label_values == (3, 4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"palette": PALETTE[:2]}, "palette has 2 colours for 3 classes"),
        ({"palette": (PALETTE[0],) * 3, "nearest_color": True}, "more than once"),
        ({"palette": PALETTE, "void_colors": ((0, 0),)}, r"void_colors have \(0, 0\)"),
        ({"void_colors": ((0, 0, 0),)}, "palette is empty"),
    ],
)
def test_folder_source_colours_that_cannot_tell_classes_are_refused(
    tmp_path, changes, message
):
    save_pair(tmp_path, "x")
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, **changes)


def save_layouts(root, truth):
    """Save a mask of 0, 1 and 255 in five ways; give the options of each."""
    colors = np.zeros((*truth.shape, 3), np.uint8)
    colors[truth == 1], colors[truth == 255] = (0, 128, 0), (255, 255, 255)
    palette = Image.fromarray(truth).convert("P")
    palette.putpalette([9, 9, 9, 8, 8, 8] * 128)
    palette.putdata(truth.ravel().tolist())
    white = np.where(truth == 1, 255, np.where(truth == 255, 7, 0)).astype(np.uint8)
    saved = {
        "index": Image.fromarray(truth),
        "palette": palette,
        "colour": Image.fromarray(colors),
        "white": Image.fromarray(white),
    }
    for name, image in saved.items():
        save_pair(root / name, "x")
        image.save(root / name / "labels" / "x.png")
    save_pair(root / "npy", "x")
    (root / "npy" / "labels" / "x.png").unlink()
    np.save(root / "npy" / "labels" / "x.npy", truth.astype(np.int64))
    greens = {"palette": ((0, 0, 0), (0, 128, 0)), "void_colors": ((255, 255, 255),)}
    white = {"label_map": ((255, 1),), "ignore_label": 7}
    return dict.fromkeys((*saved, "npy"), {}) | {"colour": greens, "white": white}


def test_folder_source_five_kinds_of_masks_give_equal_examples(tmp_path):
    truth = np.array([[0, 1, 1], [0, 255, 1]], np.uint8)
    for name in ("index", "palette", "colour", "white", "npy"):
        (tmp_path / name).mkdir()
    for name, options in save_layouts(tmp_path, truth).items():
        example = open_folder(tmp_path / name, num_classes=2, **options)[0]
        np.testing.assert_array_equal(example["image"], IMAGE)
        np.testing.assert_array_equal(example["label"], truth, err_msg=name)
        assert example["label"].dtype == np.int32 and example["name"] == "x"


def test_folder_source_white_masks_need_the_map_of_255(tmp_path):
    save_pair(tmp_path, "x", label=np.array([[0, 255, 0]] * 2, np.uint8))
    with pytest.raises(ExampleError, match=r"label_map=\(\(255, 1\),\)"):
        open_folder(tmp_path, num_classes=2)[0]
    for new in (1, 255):
        source = open_folder(tmp_path, num_classes=2, label_map=((255, new),))
        np.testing.assert_array_equal(source[0]["label"], [[0, new, 0]] * 2)


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


def test_checked_source_takes_255_as_void_between_two_classes():
    label = np.array([[0, 255, 0]] * 2)
    found = CheckedSource([(IMAGE, label)], num_classes=2)[0]["label"]
    np.testing.assert_array_equal(found, label)


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


def save_turned(root, image, orientation, label, **options):
    save_pair(root, "x", label=label)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "images" / "x.png").unlink()
    # Without loss, so that the pixels can be compared.
    Image.fromarray(image).save(root / "images" / "x.tif", exif=exif)
    return open_folder(root, **options)


# How ImageOps.exif_transpose turns stored pixels, by the EXIF standard.
TURNS = {
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("is_label_upright", [False, True])
def test_label_of_an_image_stored_turned_is_told_by_its_size(
    tmp_path, orientation, is_label_upright
):
    upright = np.ascontiguousarray(TURNS[orientation](LABEL))
    label = upright if is_label_upright else LABEL
    example = save_turned(tmp_path, IMAGE, orientation, label)[0]
    np.testing.assert_array_equal(example["image"], TURNS[orientation](IMAGE))
    np.testing.assert_array_equal(example["label"], upright)


@pytest.mark.parametrize(
    "orientation, label, options",
    [
        (3, LABEL, {}),
        (2, LABEL, {}),
        (6, LABEL[:2, :2], {}),
        (6, LABEL[:, :1], {"resize_labels": True}),
    ],
)
def test_label_that_may_be_turned_or_not_is_refused(
    tmp_path, orientation, label, options
):
    image = IMAGE[:, :2] if label.shape == (2, 2) else IMAGE
    source = save_turned(tmp_path, image, orientation, label, **options)
    with pytest.raises(ExampleError, match="x.tif is stored turned.*save the image up"):
        source[0]
    other = save_turned(tmp_path, IMAGE, 6, LABEL[:1])
    with pytest.raises(ExampleError, match="is 3x2 .*but its label .* is 1x3"):
        other[0]
