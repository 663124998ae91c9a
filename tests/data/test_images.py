import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcn_jax.data import images
from fcn_jax.data.images import (
    image_suffixes,
    read_image,
    read_label,
    read_size,
    read_upright_size,
    spooled_image,
    to_rgb,
)

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


def test_read_image_of_odd_files_gives_an_image_or_names_the_fault(odd_images):
    folder, expected = odd_images
    for name, size in expected.items():
        if isinstance(size, tuple):
            image = read_image(folder / name)
            assert image.shape == (*size, 3) and image.dtype == np.uint8
            if "animated" in name:  # The first frame is red.
                np.testing.assert_array_equal(image, np.full((*size, 3), (255, 0, 0)))
        else:
            with pytest.raises(ValueError, match=f"{name}: (?s:.*){size}"):
                read_image(folder / name)


def test_read_image_progressive_jpeg_may_be_less_large(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(path, progressive=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc2") + 5  # Height and width in the frame's header.
    content[start : start + 4] = (12_000).to_bytes(2) + (10_000).to_bytes(2)
    path.write_bytes(content)
    assert read_size(path) == (12_000, 10_000)
    with pytest.raises(ValueError, match="x.jpg: .*12000x10000 pixels take more than"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_upright_size_is_that_of_the_image(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGE).save(tmp_path / "x", kind, exif=exif)
    assert read_upright_size(tmp_path / "x") == read_image(tmp_path / "x").shape[:2]


def test_read_upright_size_names_a_bad_file(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="x.jpg: cannot be read as an image"):
        read_upright_size(tmp_path / "x.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_spooled_image_gives_the_parts_of_the_image(
    tmp_path, monkeypatch, orientation, mode
):
    monkeypatch.setattr(images, "STRIP", 20)  # Two or three rows.
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png", exif=exif)
    expected = read_image(tmp_path / "x.png")
    turned = ImageOps.exif_transpose(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(expected, turned.convert("RGB"))
    with spooled_image(tmp_path / "x.png", tmp_path) as image:
        assert image.shape == expected.shape and image.dtype == np.uint8
        np.testing.assert_array_equal(image[:], expected)
        np.testing.assert_array_equal(image[2:5], expected[2:5])
        np.testing.assert_array_equal(image[1:4, 3:6], expected[1:4, 3:6])
        assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_spooled_image_without_agreed_range_is_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "x.tif")
    with (
        pytest.raises(ValueError, match="x.tif: pixels of mode I .*8 or 16 bits"),
        spooled_image(tmp_path / "x.tif", tmp_path),
    ):
        pass


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


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".gif", ".png"])
def test_read_label_grey_of_each_format_gives_values(tmp_path, suffix):
    Image.fromarray(np.array([[3, 255, 0]], np.uint8)).save(tmp_path / f"x{suffix}")
    found = read_label(tmp_path / f"x{suffix}", colors=True)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[3, 255, 0]])


def test_read_label_gif_of_colours_counts_by_colour(tmp_path):
    palette_image(np.array([[2, 0, 1]], np.uint8)).save(tmp_path / "x.gif")
    with pytest.raises(ValueError, match="x.gif: .*mode RGB; set palette"):
        read_label(tmp_path / "x.gif")
    found = read_label(tmp_path / "x.gif", colors=True)
    np.testing.assert_array_equal(found, [[[1, 2, 3], [200, 100, 50], [10, 20, 30]]])


def test_read_label_16_bit_tiff_gives_values(tmp_path):
    Image.fromarray(np.array([[3, 40000]], np.uint16)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_label(tmp_path / "x.tif"), [[3, 40000]])


@pytest.mark.parametrize("dtype", ["bool", "uint8", ">i2", "int64", "uint64"])
def test_read_label_npy_gives_values(tmp_path, dtype):
    values = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    for order in "CF":
        np.save(tmp_path / "x.npy", np.array(values, order=order))
        found = read_label(tmp_path / "x.npy")
        assert found.dtype == np.int32 and type(found) is np.ndarray
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), r"holds \[2, 3\] float64; a mask is \[H, W\] of integers"),
        (np.zeros((2, 3, 1), int), r"holds \[2, 3, 1\] int64; a mask"),
        (np.zeros((0, 3), int), r"(holds \[0, 3\] int64|cannot be read)"),
        (np.array([[2**31]]), "values from 2147483648 to 2147483648 do not fit 32"),
        (np.array([[-(2**40), 3]]), "values from -1099511627776 to 3 do not fit 32"),
        (np.array([[None]]), "cannot be read as .npy: .*Python objects"),
    ],
)
def test_read_label_npy_of_something_else_is_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=f"x.npy: {message}"):
        read_label(tmp_path / "x.npy")


def test_read_label_npy_broken_or_huge_file_is_named(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((100, 100), int))
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (b"", b"text", whole[:500]):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError, match="x.npy: cannot be read as .npy"):
            read_label(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(ValueError, match="x.npy: 10000 pixels are more than the 9998"):
        read_label(tmp_path / "x.npy")


def test_read_label_gives_rgb_of_a_colour_mask_on_demand(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    opaque = np.dstack([IMAGE, np.full((2, 3), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "y.png")
    for name in ("x.png", "y.png"):
        found = read_label(tmp_path / name, colors=True)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGE)


def test_read_label_transparent_colour_mask_is_refused(tmp_path):
    opaque = np.dstack([IMAGE, np.full((2, 3), 254, np.uint8)])
    for kind in ("PNG", "WEBP"):
        Image.fromarray(opaque).save(tmp_path / "x.png", kind)
        with pytest.raises(ValueError, match="x.png: .*must be opaque.*save it as RGB"):
            read_label(tmp_path / "x.png", colors=True)


def test_read_label_jpeg_is_never_an_index_mask(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="JPEG compression changes .*save .* as PNG"):
        read_label(tmp_path / "x.jpg")
    found = read_label(tmp_path / "x.jpg", colors=True)
    np.testing.assert_array_equal(found, np.full((8, 8, 3), 200))


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {}),
        ("JPEG2000", {}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_read_label_lossy_mask_is_known_by_its_content(tmp_path, kind, options):
    path = tmp_path / "x.png"
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(path, kind, **options)
    with pytest.raises(ValueError, match=f"x.png: .* {kind} compression changes them"):
        read_label(path)


def test_read_label_of_a_pipe_is_refused(tmp_path):
    for name in ("x.png", "x.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: .*not a regular file"):
            read_label(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_read_label_with_colours_is_refused(tmp_path, mode):
    Image.new(mode, (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=f"x.png: .*class indices .*mode {mode}; set palette"
    ):
        read_label(tmp_path / "x.png")


def test_image_suffixes_are_those_of_formats_that_can_be_read():
    assert image_suffixes() >= {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp"}
    assert ".pdf" not in image_suffixes()  # Pillow writes it only.
