import tracemalloc

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import read_label
from fcn_jax.visualize import (
    as_picture,
    augmented_rows,
    class_chart,
    colorize,
    colormap,
    learning_curves,
    legend,
    overlay,
    results_figure,
    save_image,
    save_labels,
)

VOID = (224, 224, 192)


def row(name, height, width, *labels):
    maps = [np.full((height, width), label) for label in labels]
    return name, np.zeros((height, width, 3), np.uint8), *maps


def colors_in(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(2**22)}


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
def test_overlay_blends_classes_and_leaves_void(dtype):
    image = np.array([[(200, 100, 0), (200, 100, 0), (10, 20, 30)]], dtype)
    expected = [[(164, 50, 0), (100, 50, 0), (10, 20, 30)]]
    blended = overlay(image, np.array([[1, 0, 255]]))
    np.testing.assert_array_equal(blended, expected)
    assert blended.dtype == np.uint8


def test_overlay_of_alpha_one_is_the_colors():
    labels = np.array([[3, 4]])
    image = np.full((1, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(overlay(image, labels, alpha=1), colorize(labels))


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


def test_results_figure_shows_the_colors_of_all_rows(tmp_path):
    rows = [row("a", 30, 40, 255, 1), row("a_" * 40, 20, 200, 2, 20)]
    rows.append(row("$x^$", 90, 30, 15, 0))
    names = ["_background_", "a $price$", *"cdefghijklmnopqrstu"]
    results_figure(tmp_path / "results.png", rows, names)
    with Image.open(tmp_path / "results.png") as picture:
        assert max(picture.size) < 1000
    colors = colors_in(tmp_path / "results.png")
    assert colors >= {tuple(map(int, colormap()[i])) for i in (1, 2, 15, 20, 255)}
    assert [path.name for path in tmp_path.iterdir()] == ["results.png"]


def test_results_figure_takes_void_and_classes_without_names(tmp_path):
    path = tmp_path / "results.png"
    results_figure(path, [row("a", 8, 8, 255, 3)], [])
    colors = colors_in(path)
    assert colors >= {VOID, tuple(map(int, colormap()[3]))}


def test_augmented_rows_show_images_and_labels_of_any_channels(tmp_path):
    many = np.full((30, 20, 5), (200, 10, 20, 999, 999), np.float32)
    pairs = [("a", many, np.full((30, 20), 1)), row("$x^$" * 40, 20, 90, 255)]
    augmented_rows(tmp_path / "augmented.png", pairs, ["_a_", "b"])
    colors = colors_in(tmp_path / "augmented.png")
    assert colors >= {(200, 10, 20), (0, 0, 0), (128, 0, 0), VOID}
    augmented_rows(tmp_path / "augmented.png", 4 * pairs, [], palette=PALETTE)
    assert PALETTE[1] in colors_in(tmp_path / "augmented.png")
    assert [path.name for path in tmp_path.iterdir()] == ["augmented.png"]


@pytest.mark.parametrize(
    "losses, scores",
    [([], []), ([2.5], [0.3]), ([5.0, 0.01], []), ([1.0, float("nan")], [0.1, 0.2])],
)
def test_learning_curves_draw_whatever_was_logged(losses, scores, tmp_path):
    records = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    records += [
        {"step": i, "mean_iu": score, "pixel_accuracy": score}
        for i, score in enumerate(scores)
    ]
    learning_curves(tmp_path / "curves.png", records)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1000, 380)


def test_learning_curves_take_the_last_entry_of_a_step(tmp_path):
    once = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    learning_curves(tmp_path / "once.png", once)
    learning_curves(tmp_path / "twice.png", [{"step": 2, "loss": 9.0}, *once])
    first, second = ((tmp_path / f"{n}.png").read_bytes() for n in ("once", "twice"))
    assert first == second


def test_class_chart_of_one_split_has_the_colors_of_the_classes(tmp_path):
    shares = {"train": np.array([0.2, 0.8, 0])}
    class_chart(tmp_path / "classes.png", shares, ["_a_", "$b$", "c" * 99])
    colors = colors_in(tmp_path / "classes.png")
    black, red, green = (tuple(map(int, color)) for color in colormap(3))
    assert colors >= {black, red} and green not in colors  # Class 2 never occurs.
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]


def test_class_chart_of_two_splits_has_a_color_for_each(tmp_path):
    shares = {"train": np.array([0.2, 0.8, 0]), "_val": np.array([0.5, 0.2, 0.3])}
    class_chart(tmp_path / "classes.png", shares, "abc")
    assert colors_in(tmp_path / "classes.png") >= {(31, 119, 180), (255, 127, 14)}


def test_class_chart_takes_many_classes_and_none_that_occurs(tmp_path):
    shares = np.random.default_rng(0).random(150) ** 9
    shares[7] = 0
    names = [f"class {i}" for i in range(150)]
    class_chart(tmp_path / "many.png", {"train": shares / shares.sum()}, names)
    class_chart(tmp_path / "none.png", {"train": np.zeros(3)}, "abc")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width > 1000 and picture.height > 1000


PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 250))


def test_palette_colours_classes_and_leaves_void(tmp_path):
    labels = np.array([[0, 1], [2, 255]])
    expected = np.uint8([[PALETTE[0], PALETTE[1]], [PALETTE[2], (224, 224, 192)]])
    np.testing.assert_array_equal(colorize(labels, PALETTE), expected)
    image = np.zeros((2, 2, 3), np.uint8)
    mixed = overlay(image, labels, palette=PALETTE, alpha=1.0)
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
