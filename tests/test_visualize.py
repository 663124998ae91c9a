import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import read_label
from fcn_jax.visualize import (
    as_picture,
    colorize,
    colormap,
    legend,
    legend_below,
    overlay,
    overlay_strips,
    save_image,
    save_labels,
)

VOID = (224, 224, 192)
PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 250))


@pytest.mark.parametrize(
    "index, color",
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, VOID),
    ],
)
def test_colormap_is_that_of_voc(index, color):
    assert tuple(colormap()[index]) == color


def test_colormap_of_n_colors_is_its_beginning():
    assert colormap(21).dtype == np.uint8
    np.testing.assert_array_equal(colormap(21), colormap()[:21])
    assert len(np.unique(colormap(), axis=0)) == 256


def test_colorize_gives_classes_and_void_their_colors():
    labels = np.array([[0, 1], [11, 255]])
    expected = [[(0, 0, 0), (128, 0, 0)], [(192, 128, 0), VOID]]
    np.testing.assert_array_equal(colorize(labels), expected)


def test_picture_of_rgb_is_the_image_or_its_shown_channels():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    mean, scale = (9.0, 9.0, 9.0), (0.5, 2.0, 1.0)
    np.testing.assert_array_equal(as_picture(image, mean, scale), image)
    found = as_picture(image, mean, scale, shown=(2, 1, 1))
    np.testing.assert_array_equal(found, image[..., [2, 1, 1]])


def test_picture_of_other_channels_is_scaled_about_the_mean():
    values = [10, 20, 30, 40, 3000]
    mean, scale = (5.0, 5.0, 5.0, 5.0, 2000.0), (1.0, 1.0, 1.0, 1.0, 0.1)
    wide = np.float32([[values]])
    found = as_picture(wide, mean, scale, shown=(4, 3, 0))
    # 127.5 + 1000 / 10 = 227.5, which rounds to the even 228, and 127.5 + 35.
    np.testing.assert_array_equal(found, [[[228, 162, 10]]])
    assert found.dtype == np.uint8
    assert as_picture(wide - 9000, mean, scale, shown=(4, 3, 0)).max() == 0
    # Without a scale, bytes are shown as they are.
    found = as_picture(np.uint8([[[1, 2, 3, 4]]]), mean, shown=(3, 2, 1))
    np.testing.assert_array_equal(found, [[[4, 3, 2]]])


@pytest.mark.parametrize("value", [-1, 256])
def test_labels_without_a_color_are_refused(value, tmp_path):
    labels = np.array([[0, value]])
    with pytest.raises(ValueError, match=rf"in \[0, 255\], got .*{value}"):
        colorize(labels)
    with pytest.raises(ValueError, match=rf"in \[0, 255\], got .*{value}"):
        save_labels(tmp_path / "x.png", labels)
    assert not list(tmp_path.iterdir())


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="integers, got float"):
        colorize(np.zeros((2, 2)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_overlay_blends_classes_and_leaves_background_and_void(dtype):
    image = np.array([[(200, 100, 0), (200, 100, 0), (10, 20, 30)]], dtype)
    labels = np.array([[1, 0, 255]])
    expected = [[(164, 50, 0), (200, 100, 0), (10, 20, 30)]]
    blended = overlay(image, labels, outline=False)
    np.testing.assert_array_equal(blended, expected)
    assert blended.dtype == np.uint8
    expected[0][1] = (100, 50, 0)  # Half of it black.
    tinted = overlay(image, labels, background=None, outline=False)
    np.testing.assert_array_equal(tinted, expected)
    clear = overlay(image, labels, background=1, outline=False)
    np.testing.assert_array_equal(clear, [[image[0, 0], (100, 50, 0), image[0, 2]]])


def test_overlay_of_alpha_one_is_the_colors():
    labels = np.array([[3, 4]])
    image = np.full((1, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(overlay(image, labels, alpha=1), colorize(labels))


def test_outline_is_the_full_color_at_the_edges_of_regions():
    labels = np.zeros((7, 9), int)
    labels[1:6, 2:7] = 1
    labels[3, 4] = 255
    found = overlay(np.full((7, 9, 3), 200, np.uint8), labels)
    red, pale, clear = (128, 0, 0), (164, 100, 100), (200, 200, 200)
    # The square is 5 x 5. Its ring lies beside the background, the next one beside
    # the void pixel in its middle.
    assert (found[labels == 1] == red).all()
    assert (found[labels != 1] == clear).all()
    labels[3, 4] = 1
    found = overlay(np.full((7, 9, 3), 200, np.uint8), labels)
    assert (found[2:5, 3:6] == pale).all()
    assert (found == red).all(-1).sum() == 16


@pytest.mark.parametrize("background", [0, None])
def test_strips_of_an_overlay_are_those_of_the_whole(background):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (900, 1000, 3), np.uint8)
    labels = rng.integers(0, 3, (45, 50)).repeat(20, 0).repeat(20, 1)
    strips = list(overlay_strips(image.__getitem__, labels, background=background))
    assert len(strips) > 2
    whole = np.concatenate(strips)
    np.testing.assert_array_equal(whole, overlay(image, labels, background=background))
    # Lines are two pixels wide here, also where strips meet.
    edge = np.zeros(labels.shape, bool)
    for shift in (1, 2):
        for axis in (0, 1):
            there = np.roll(labels, shift, axis) != labels
            there[:shift] &= axis == 1
            there[:, :shift] &= axis == 0
            edge |= there | np.roll(there, -shift, axis)
    plain = (whole == colorize(labels)).all(-1)
    tinted = edge & (labels != background)
    assert plain[tinted].all()


def test_legend_of_an_overlay_lies_below_and_names_what_is_tinted():
    image = np.full((50, 400, 3), 90, np.uint8)
    labels = np.zeros((50, 400), int)
    labels[:, :9], labels[:, 50:60] = 2, 255
    names = ("background", "cat", "dog")
    found = overlay(image, labels, palette=PALETTE, legend=names)
    np.testing.assert_array_equal(found[:50], overlay(image, labels, palette=PALETTE))
    below = found[50:]
    assert len(below) > 10 and below.shape[1] == 400
    for color, there in zip(PALETTE, (False, False, True), strict=True):
        assert (below == np.uint8(color)).all(-1).any() == there
    full = legend_below(labels, names, palette=PALETTE, background=None)
    assert (full == np.uint8(PALETTE[0])).all(-1).any()


def test_legend_widens_a_narrow_picture_and_is_left_out_where_nothing_is_tinted():
    image, labels = np.zeros((8, 5, 3), np.uint8), np.ones((8, 5), int)
    found = overlay(image, labels, legend=("a", "a long name"))
    assert found.shape[0] > 8 and found.shape[1] > 50
    assert (found[:8, 5:] == 255).all()
    assert overlay(image, 0 * labels, legend=("a", "b")).shape == image.shape


def test_names_are_written_inside_the_largest_region_of_each_class():
    image, labels = np.zeros((100, 300, 3), np.uint8), np.zeros((100, 300), int)
    labels[20:90, 100:290] = 1
    labels[2:10, 2:10] = 1  # A smaller region.
    options = {"alpha": 0.0, "outline": False}
    found = overlay(image, labels, names=("background", "cat"), **options)
    rows, columns = np.nonzero((found > 150).all(-1))
    assert len(rows) > 20
    assert rows.min() > 20 and rows.max() < 90
    assert columns.min() > 100 and columns.max() < 290


def test_names_of_batches_stay_and_legends_of_batches_are_refused():
    images, labels = np.zeros((2, 40, 90, 3), np.uint8), np.ones((2, 40, 90), int)
    names = ("a", "b")
    found = overlay(images, labels, names=names)
    np.testing.assert_array_equal(found[1], overlay(images[1], labels[1], names=names))
    with pytest.raises(ValueError, match="legend: .* pass images one by one"):
        overlay(images, labels, legend=names)


@pytest.mark.parametrize("option", ["names", "legend"])
def test_class_without_a_name_is_refused(option):
    labels = np.full((20, 20), 7)
    with pytest.raises(ValueError, match="class 7, and there are 2 names"):
        overlay(np.zeros((20, 20, 3), np.uint8), labels, **{option: ("a", "b")})


def test_overlay_of_other_size_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) and labels \(3, 2\)"):
        overlay(np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2), int))


def test_label_png_holds_indices_and_the_palette(tmp_path):
    labels = np.array([[0, 1, 20], [15, 254, 255]])
    save_labels(tmp_path / "x.png", labels)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), labels)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(picture.convert("RGB"), colorize(labels))


def test_image_is_written_from_its_strips(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    for name, cuts in (("a", [0, 3, 4, 7]), ("b", range(8)), ("c", [0, 7])):
        path = tmp_path / f"{name}.png"
        spans = zip(cuts, cuts[1:], strict=False)
        save_image(path, (7, 5), (image[a:b] for a, b in spans))
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
            np.testing.assert_array_equal(picture, image)


@pytest.mark.parametrize("size", [(1000, 700), (1, 600_000), (600_000, 1)])
def test_overlay_takes_the_memory_of_its_result(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.ones(size, np.uint8)
    tracemalloc.start()
    blended = overlay(image, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert blended.shape == image.shape and (blended == (64, 0, 0)).all()
    assert peak < 100 * 2**20


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.png"
    save_image(path, (2, 2), [np.full((2, 2, 3), 9, np.uint8)])
    before = path.read_bytes()
    strips = [np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 5), np.uint8)]
    with pytest.raises(ValueError, match=r"strip is \[1, 2, 5\] uint8"):
        save_image(path, (2, 2), strips)
    with pytest.raises(ValueError):  # The palette is one of bytes.
        save_labels(path, np.array([[300]]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_palette_colours_classes_and_leaves_void(tmp_path):
    labels = np.array([[0, 1], [2, 255]])
    expected = np.uint8([[PALETTE[0], PALETTE[1]], [PALETTE[2], (224, 224, 192)]])
    np.testing.assert_array_equal(colorize(labels, PALETTE), expected)
    image = np.zeros((2, 2, 3), np.uint8)
    mixed = overlay(image, labels, palette=PALETTE, alpha=1.0, background=None)
    np.testing.assert_array_equal(mixed[labels != 255], expected[labels != 255])
    np.testing.assert_array_equal(mixed[1, 1], 0)
    save_labels(tmp_path / "x.png", labels, PALETTE)
    np.testing.assert_array_equal(read_label(tmp_path / "x.png"), labels)
    with Image.open(tmp_path / "x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), expected)


def test_legend_has_the_colour_of_each_class_in_order():
    picture = legend(("sky", "a road", "pedestrian"), PALETTE)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    rows = [
        np.flatnonzero((picture == np.uint8(color)).all(axis=-1).any(axis=1))
        for color in PALETTE
    ]
    assert all(len(row) > 10 for row in rows)
    assert rows[0].max() < rows[1].min() and rows[1].max() < rows[2].min()
    longer = legend(("sky", "a much longer name", "x"), PALETTE)
    assert longer.shape[1] > picture.shape[1]
    voc = legend(("background", "aeroplane"))
    assert (voc == np.uint8((128, 0, 0))).all(axis=-1).any()


def test_legend_of_a_width_has_several_classes_in_a_row():
    names = ("sky", "a road", "pedestrian")
    high, wide = legend(names, PALETTE), legend(names, PALETTE, width=600)
    assert wide.shape[1] == 600 and wide.shape[0] < high.shape[0] / 2
    columns = [
        np.flatnonzero((wide == np.uint8(color)).all(axis=-1).any(axis=0))
        for color in PALETTE
    ]
    assert columns[0].max() < columns[1].min() and columns[1].max() < columns[2].min()
    assert legend(names, PALETTE, width=10).shape == high.shape


def test_legend_cuts_long_names_and_escapes_what_is_not_printable():
    assert legend(["x" * 10_000]).shape[1] < 1000
    assert legend(["a\nb"]).shape[0] == legend(["a"]).shape[0]
