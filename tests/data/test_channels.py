import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from fcn_jax.data.channels import count_pixels, read_channels
from fcn_jax.data.images import read_image

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 30, 6), np.uint8)
WORDS = RNG.integers(0, 2**16, (20, 30, 6), np.uint16)
FLOATS = RNG.normal(size=(20, 30, 6)).astype(np.float32)

LAYOUTS = {
    "contiguous": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "pages": {},
    "deflated": {"planarconfig": "contig", "compression": "zlib", "tile": (16, 16)},
    "big-endian": {"planarconfig": "separate", "byteorder": ">", "bigtiff": True},
    "strips": {"planarconfig": "contig", "compression": "zlib", "rowsperstrip": 3},
}


def write_tiff(path, array, *, planarconfig=None, **options):
    stored = array if planarconfig == "contig" else np.moveaxis(array, -1, 0)
    options = {"photometric": "minisblack", "planarconfig": planarconfig} | options
    tifffile.imwrite(path, stored, **options)
    return path


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def save_array(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("array", [BYTES, WORDS, FLOATS], ids=lambda a: str(a.dtype))
def test_tiff_of_any_layout_gives_its_bands_as_stored(layout, array, tmp_path):
    path = write_tiff(tmp_path / "x.tif", array, **LAYOUTS[layout])
    found = read_channels([path], channels=6)
    assert found.dtype == (np.uint8 if array.dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(found, array)


def test_tiff_overviews_and_masks_are_left_out(tmp_path):
    path = tmp_path / "cloud_optimized.tif"
    with tifffile.TiffWriter(path) as writer:
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        writer.write(WORDS, **options)
        writer.write(WORDS[::2, ::2].copy(), subfiletype=1, **options)
        writer.write(BYTES[..., 0] > 99, photometric="minisblack", subfiletype=4)
    np.testing.assert_array_equal(read_channels([path], channels=6), WORDS)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "<i8", ">u2", "float16", "float32", "float64"]
)
def test_array_file_gives_its_numbers(dtype, tmp_path):
    array = (WORDS // 300).astype(dtype)
    path = save_array(tmp_path / "x.npy", array)
    found = read_channels([path], channels=6)
    assert found.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(found, array.astype(float))
    assert found.flags.writeable and not isinstance(found, np.memmap)


def test_files_are_stacked_in_order(tmp_path):
    files = [
        save(tmp_path / "rgb.png", BYTES[..., :3]),
        save(tmp_path / "near.png", BYTES[..., 3]),
        save_array(tmp_path / "more.npy", BYTES[..., 4:]),
    ]
    found = read_channels(files, channels=6)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, BYTES)
    turned = read_channels(files[::-1], channels=6)
    np.testing.assert_array_equal(turned, BYTES[..., [4, 5, 3, 0, 1, 2]])


def test_one_band_of_16_bits_makes_all_float(tmp_path):
    files = [
        save(tmp_path / "rgb.png", BYTES[..., :3]),
        save(tmp_path / "thermal.png", WORDS[..., 0]),
    ]
    found = read_channels(files, channels=4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[..., :3], BYTES[..., :3])
    np.testing.assert_array_equal(found[..., 3], WORDS[..., 0])


@pytest.mark.parametrize(
    "mode, bands", [("L", 1), ("LA", 2), ("RGBA", 4), ("P", 3), ("1", 1), ("CMYK", 3)]
)
def test_picture_gives_the_bands_of_its_mode(mode, bands, tmp_path):
    picture = Image.fromarray(BYTES[..., :3]).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(path)
    extra = save(tmp_path / "extra.png", BYTES[..., 5])
    found = read_channels([path, extra], channels=bands + 1)
    expected = picture.convert("RGB" if bands == 3 else "L" if bands == 1 else mode)
    expected = np.asarray(expected).reshape(20, 30, bands)
    np.testing.assert_array_equal(found[..., :-1], expected)
    np.testing.assert_array_equal(found[..., -1], BYTES[..., 5])


def test_exif_orientation_is_applied_if_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "x.png"
    Image.fromarray(BYTES[..., :4]).save(path, exif=exif)
    upright = read_channels([path], channels=4)
    np.testing.assert_array_equal(upright, np.rot90(BYTES[..., :4], -1))
    as_stored = read_channels([path], channels=4, upright=False)
    np.testing.assert_array_equal(as_stored, BYTES[..., :4])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_one_file_of_three_channels_is_read_as_ever(suffix, tmp_path):
    path = save(tmp_path / f"x.{suffix}", BYTES[..., :3])
    found = read_channels([path], channels=3)
    np.testing.assert_array_equal(found, read_image(path))
    grey = save(tmp_path / "grey.png", WORDS[..., 0])
    np.testing.assert_array_equal(read_channels([grey], channels=3), read_image(grey))


def test_three_channels_may_come_from_arrays_and_from_three_files(tmp_path):
    path = save_array(tmp_path / "x.npy", BYTES[..., :3])
    np.testing.assert_array_equal(read_channels([path], channels=3), BYTES[..., :3])
    files = [save(tmp_path / f"{i}.png", BYTES[..., i]) for i in range(3)]
    np.testing.assert_array_equal(read_channels(files, channels=3), BYTES[..., :3])
    with pytest.raises(ValueError, match=r"x.npy has 3 .*uint16.* are red, green and"):
        read_channels([save_array(path, WORDS[..., :3])], channels=3)


def test_bands_that_do_not_add_up_are_listed(tmp_path):
    files = [
        save(tmp_path / "rgb.png", BYTES[..., :3]),
        save_array(tmp_path / "more.npy", WORDS[..., :2]),
        write_tiff(tmp_path / "x.tif", WORDS),
    ]
    listed = (
        r"do not make up the 4 channels of an image: .*rgb.png has 3 \(image of mode "
        r"RGB\), .*more.npy has 2 \(array \[20, 30, 2\] uint16\), .*x.tif has 6 \(TIFF "
        r"of 6 pages, uint16\)"
    )
    with pytest.raises(ValueError, match=listed):
        read_channels(files, channels=4)
    with pytest.raises(ValueError, match="there are no files"):
        read_channels([], channels=4)


def test_files_of_different_sizes_are_named(tmp_path):
    files = [
        save(tmp_path / "rgb.png", BYTES[..., :3]),
        save(tmp_path / "near.png", BYTES[:, :-1, 3].copy()),
    ]
    with pytest.raises(ValueError, match=r"rgb.png is 20x30, but .*near.png is 20x29"):
        read_channels(files, channels=4)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((2, 2, 4), np.nan, np.float32), "NaN"),
        (np.full((2, 2, 4), 1e39), "NaN, infinity or a number beyond float32"),
        (np.full((2, 2, 4), 2**24 + 1), "reach from 16777217 to 16777217, and float32"),
        (np.full((2, 2, 4), True), "values are bool, want integers or floats"),
        (np.zeros((4,)), r"shape is \(4,\), want \[H, W\] or \[H, W, k\]"),
        (np.zeros((0, 2, 4)), "it is empty: 0x2"),
        (np.array([[{}]]), "Object arrays cannot be loaded|objects"),
    ],
)
def test_array_that_cannot_be_used_is_named(array, message, tmp_path):
    path = save_array(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=f"x.npy: cannot be read.*({message})"):
        read_channels([path], channels=4)


def test_tiff_of_floats_that_are_not_finite_is_named(tmp_path):
    path = write_tiff(tmp_path / "x.tif", FLOATS * np.float32(np.inf))
    with pytest.raises(ValueError, match="x.tif: .*NaN, infinity"):
        read_channels([path], channels=6)


def array_header(shape):
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def test_array_file_of_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(array_header((20_000, 20_000)))
    with path.open("r+b") as file:
        file.truncate(401_000_000)  # A sparse file.
    with pytest.raises(ValueError, match="20000x20000 pixels, more than 178,956,970"):
        read_channels([path], channels=1)


def tiff_bytes(**changes):
    """A TIFF of one strip of 4 bands whose tags are changed, by number."""
    tags = {256: 2, 257: 2, 258: 8, 259: 8, 262: 1, 273: 0, 277: 4, 278: 2, 279: 0}
    strip = changes.pop("strip", zlib.compress(bytes(16)))
    tags |= {int(name[1:]): value for name, value in changes.items()}
    tags |= {273: 8, 279: len(strip)}
    strip += bytes(len(strip) % 2)
    entries = [struct.pack("<HHII", tag, 4, 1, v) for tag, v in sorted(tags.items())]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def test_small_tiff_of_a_strip_is_read(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiff_bytes())
    assert not read_channels([tmp_path / "x.tif"], channels=4).any()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.npy", b"", "No data left"),
        ("x.npy", b"junk" * 99, "cannot be read as an image"),
        ("x.npy", array_header((2000, 2000, 4)), "cannot be read as an image"),
        ("x.tif", b"", "not a TIFF"),
        ("x.tif", b"II*\0" + b"\xff" * 99, "cannot be read as an image"),
        ("x.tif", tiff_bytes(t256=20_000, t257=20_000), "20000x20000 pixels, more"),
        ("x.tif", tiff_bytes(t278=1), "strips or tiles of it are missing"),
        ("x.tif", tiff_bytes(strip=zlib.compress(bytes(10**7))), "longer than its pix"),
        ("x.tif", tiff_bytes(strip=b"junk"), "cannot be read as an image"),
        ("x.tif", tiff_bytes(strip=zlib.compress(bytes(9))), "cannot be reshaped"),
        ("x.tif", tiff_bytes(t259=5), "requires.*Install imagecodecs, or save the"),
        ("x.tif", tiff_bytes(t262=0), "MINISWHITE.*; save it as grey"),
        ("x.tif", tiff_bytes(t274=6), "orientation 6; turn it upright"),
        ("x.tif", tiff_bytes(t258=4), "4 bits per value, want 8 or 16"),
        ("x.tif", tiff_bytes()[:-9], "cannot be read as an image"),
        ("x.png", b"junk", "cannot be read as an image"),
    ],
)
def test_broken_file_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: cannot be read.*({message}|)") as e:
        read_channels([tmp_path / name], channels=4)
    assert e.match(message)


def test_pages_of_different_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for size in ((4, 5), (4, 6)):
            writer.write(np.zeros(size, np.uint8))
    with pytest.raises(ValueError, match=r"sizes \[\(4, 5\), \(4, 6\)\], want pages"):
        read_channels([tmp_path / "x.tif"], channels=2)


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
def test_channels_of_a_pipe_are_refused(suffix, tmp_path):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(ValueError, match=f"x{suffix}: .*not a regular file"):
        read_channels([tmp_path / f"x{suffix}"], channels=4)


def test_pixels_are_counted_from_the_headers(tmp_path):
    rgb = save(tmp_path / "x.png", BYTES[..., :3])
    array = save_array(tmp_path / "x.npy", WORDS)
    tiff = write_tiff(tmp_path / "x.tif", WORDS)
    assert count_pixels([rgb], channels=3) == 600
    assert count_pixels([rgb, array], channels=9) == 600
    assert count_pixels([array], channels=6) == count_pixels([tiff], channels=6) == 600
    with pytest.raises(ValueError, match="y.png: .*No such file"):
        count_pixels([tmp_path / "y.png"], channels=3)


@pytest.mark.parametrize("orientation, width, fits", [(6, 30, True), (6, 20, False)])
def test_files_of_one_image_may_differ_in_orientation_if_sizes_tell(
    orientation, width, fits, tmp_path
):
    exif = Image.Exif()
    exif[0x112] = orientation
    rgb = BYTES[:, :width, :3]
    Image.fromarray(rgb).save(tmp_path / "rgb.png", exif=exif)
    upright = np.rot90(BYTES[:, :width], -1)
    depth = save(tmp_path / "depth.png", np.ascontiguousarray(upright[..., 3]))
    files = [tmp_path / "rgb.png", depth]
    if fits:
        found = read_channels(files, channels=4)
        np.testing.assert_array_equal(found, upright[..., :4])
    else:
        with pytest.raises(ValueError, match="rgb.png is stored turned .*upright"):
            read_channels(files, channels=4)
