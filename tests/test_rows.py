import numpy as np
import pytest
from PIL import Image

from fcn_jax.rows import Row, augmented_rows, error_map, results_figure
from fcn_jax.visualize import colormap

VOID, ORANGE = (224, 224, 192), (213, 94, 0)
PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 250))


def row(name, height, width, label, prediction):
    image = np.zeros((height, width, 3), np.uint8)
    maps = (np.full((height, width), value) for value in (label, prediction))
    return Row(name, "mean IU 0.50\nrank 1 of 2", image, *maps)


def colors_in(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(2**22)}


def voc(*classes):
    return {tuple(map(int, colormap()[i])) for i in classes}


def test_error_map_marks_wrong_pixels_and_void_on_grey():
    image = np.uint8([[[0, 0, 0], [255, 255, 255], [9, 9, 9], [9, 9, 9]]])
    label, prediction = np.array([[0, 1, 1, 255]]), np.array([[0, 1, 2, 0]])
    # 110, and 110 + 0.45 * 255 = 224.75.
    expected = [[(110,) * 3, (224,) * 3, ORANGE, VOID]]
    np.testing.assert_array_equal(error_map(image, label, prediction), expected)


def test_results_figure_shows_the_colors_of_all_rows(tmp_path):
    rows = [row("a", 30, 40, 255, 1), row("a_" * 400, 20, 200, 2, 20)]
    rows.append(row("new\nline", 90, 30, 15, 0))
    names = ["_background_", "a $price$", *"cdefghijklmnopqrstu"]
    results_figure(tmp_path / "results.png", rows, names)
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.width < 1700 and picture.height < 1000
    colors = colors_in(tmp_path / "results.png")
    assert colors >= voc(1, 2, 15, 20) | {VOID, ORANGE}
    assert [path.name for path in tmp_path.iterdir()] == ["results.png"]


@pytest.mark.parametrize("size", [(360, 480), (512, 1024), (64, 64), (375, 500)])
def test_results_figure_of_four_rows_fits_a_slide(tmp_path, size):
    names = [f"class number {i}" for i in range(21)]
    rows = [row("a", *size, 0, 1)] * 4
    results_figure(tmp_path / "results.png", rows, names)
    with Image.open(tmp_path / "results.png") as picture:
        assert 1000 < picture.width <= 1700
        assert 1.2 < picture.width / picture.height < 2.6


def test_legend_of_many_classes_lies_below_and_has_those_that_occur(tmp_path):
    names = [f"class number {i}" for i in range(150)]
    few, many = [row("a", 30, 40, 7, 8)], [row("a", 30, 40, 7, i) for i in range(60)]
    results_figure(tmp_path / "few.png", few, names)
    assert not colors_in(tmp_path / "few.png") & voc(9, 10, 11)
    results_figure(tmp_path / "many.png", many[:4], names)
    pixels = np.arange(60)[:, None].repeat(60, 1)
    maps = Row("a", "", np.zeros((60, 60, 3), np.uint8), pixels, pixels)
    results_figure(tmp_path / "below.png", [maps], names)
    with Image.open(tmp_path / "below.png") as picture:
        assert picture.height > 500  # The pictures of the row have 205.
    assert colors_in(tmp_path / "below.png") >= voc(*range(60))


def test_results_figure_takes_void_and_classes_without_names(tmp_path):
    path = tmp_path / "results.png"
    results_figure(path, [row("a", 8, 8, 255, 3)], [])
    assert colors_in(path) >= {VOID} | voc(3)


def test_augmented_rows_show_images_and_labels_of_any_channels(tmp_path):
    many = np.full((30, 20, 5), (200, 10, 20, 999, 999), np.float32)
    pairs = [("a", many, np.full((30, 20), 1))]
    wide = np.zeros((20, 90, 3), np.uint8), np.full((20, 90), 255)
    pairs.append(("$x^$" * 40, *wide))
    augmented_rows(tmp_path / "augmented.png", pairs, ["_a_", "b"])
    colors = colors_in(tmp_path / "augmented.png")
    assert colors >= {(200, 10, 20), (0, 0, 0), (128, 0, 0), VOID}
    augmented_rows(tmp_path / "augmented.png", 4 * pairs, [], palette=PALETTE)
    assert PALETTE[1] in colors_in(tmp_path / "augmented.png")
    assert [path.name for path in tmp_path.iterdir()] == ["augmented.png"]
