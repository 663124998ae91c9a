import io
import warnings

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import image_suffixes, read_image, read_label, to_rgb

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def palette_image(indices):
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([200, 100, 50, 10, 20, 30, 1, 2, 3])
    return image


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
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", upright=False), IMAGE)


def test_read_image_open_file_is_called_by_its_name():
    with pytest.raises(ValueError, match="^cat: cannot be read as an image"):
        read_image(io.BytesIO(b"text"), name="cat")


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
    for found in (read_image(tmp_path / "x.tif"), to_rgb(image)):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, [expected])
    assert image.mode == mode


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
    with pytest.raises(ValueError, match="image: pixels of mode .*8 or 16 bits"):
        to_rgb(Image.fromarray(pixels))


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


def test_image_suffixes_are_those_of_formats_that_can_be_read():
    assert image_suffixes() >= {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp"}
    assert ".pdf" not in image_suffixes()  # Pillow writes it only.
