import io

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.colors import ClassColors

PALETTE = [(0, 0, 0), (250, 10, 20), (10, 250, 20)]
WHITE = (255, 255, 255)


def image_of(*rows):
    return np.array(rows, np.uint8)


def test_colors_become_their_classes_and_void():
    colors = ClassColors(PALETTE, [WHITE, (9, 9, 9)])
    found = colors(
        image_of([PALETTE[2], WHITE, PALETTE[0]], [(9, 9, 9), *PALETTE[:2]]), "a"
    )
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[2, 255, 0], [255, 0, 1]])


def test_unknown_colors_are_listed_by_frequency_with_the_ways_out():
    others = [(i, 1, 1) for i in range(7)]
    row = [color for i, color in enumerate(others) for _ in range(i + 1)]
    with pytest.raises(ValueError) as error:
        ClassColors(PALETTE)(image_of([*row, PALETTE[0]]), "m.png")
    assert str(error.value).startswith(
        "m.png: colours (6, 1, 1) in 7 pixels; (5, 1, 1) in 6 pixels; (4, 1, 1) in 5 "
        "pixels; (3, 1, 1) in 4 pixels; (2, 1, 1) in 3 pixels; ... and 2 more are not "
        "in palette"
    )
    for way_out in ("palette", "void_colors", "nearest_color=True", "JPEG"):
        assert way_out in str(error.value)


def test_nearest_color_takes_classes_and_void_of_the_nearest():
    colors = ClassColors(PALETTE, [WHITE], nearest_color=True)
    row = [(240, 0, 30), (30, 20, 10), (200, 200, 200), (10, 250, 20)]
    np.testing.assert_array_equal(colors(image_of(row), "a"), [[1, 0, 255, 2]])
    # As far from class 0 as from class 1: the first counts.
    tie = ClassColors([(0, 0, 0), (0, 0, 10)], nearest_color=True)
    np.testing.assert_array_equal(tie(image_of([(0, 0, 5), (0, 0, 6)]), "a"), [[0, 1]])


def test_nearest_color_agrees_with_distances_of_many_colors():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    known = rng.integers(0, 256, (9, 3))
    found = ClassColors(known.tolist(), nearest_color=True)(image, "a")
    distances = ((image[:, :, None].astype(int) - known) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(found, distances.argmin(axis=-1))


def test_nearest_color_reads_a_jpeg_of_the_mask():
    truth = np.zeros((32, 32), int)
    truth[8:24, 16:] = 1
    file = io.BytesIO()
    Image.fromarray(np.uint8([(0, 0, 0), (250, 250, 20)])[truth]).save(file, "JPEG")
    image = np.array(Image.open(file))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2
    colors = ClassColors([(0, 0, 0), (250, 250, 20)], nearest_color=True)
    np.testing.assert_array_equal(colors(image, "a"), truth)


def test_know_tells_whether_all_colors_are_known():
    colors = ClassColors(PALETTE, [WHITE])
    assert colors.know(image_of([PALETTE[1], WHITE]))
    assert not colors.know(image_of([PALETTE[1], (1, 2, 3)]))


@pytest.mark.parametrize(
    ("palette", "void", "message"),
    [
        ([(1, 2, 3), (4, 5, 6), (1, 2, 3)], [], r"have \(1, 2, 3\) more than once"),
        ([(1, 2, 3)], [(1, 2, 3)], r"have \(1, 2, 3\) more than once"),
        ([(1, 2)], [], r"have \(1, 2\), want \(red, green, blue\)"),
        ([(1, 2, 256)], [], r"have \(1, 2, 256\), want"),
        ([(1, 2, 0.5)], [], r"have \(1, 2, 0.5\), want"),
        ([], [(1, 2, 3)], "palette is empty"),
    ],
)
def test_colors_that_do_not_tell_classes_are_refused(palette, void, message):
    with pytest.raises(ValueError, match=message):
        ClassColors(palette, void)
