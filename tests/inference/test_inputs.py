import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.inference.inputs import as_batch, as_image

SIZE = (20, 33)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def test_batch_of_an_image_says_that_it_was_single():
    batch, single = as_batch(picture())
    assert batch.shape == (1, *SIZE, 3) and single
    batch, single = as_batch(picture()[None])
    assert batch.shape == (1, *SIZE, 3) and not single


def test_path_and_pil_image_give_the_pixels(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png")):
        batch, single = as_batch(image)
        np.testing.assert_array_equal(batch[0], picture())
        assert single
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(as_image(image), picture())
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(as_image(palette), palette.convert("RGB"))
    grey = Image.fromarray(picture()[..., 0])
    np.testing.assert_array_equal(as_image(grey), np.stack([grey] * 3, axis=-1))


def test_missing_file_is_named():
    with pytest.raises(ValueError, match="cat.jpg: cannot be read as an image"):
        as_batch("cat.jpg")


def test_pil_image_that_is_stored_turned_is_refused_with_the_ways(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert as_image(tmp_path / "a.jpg").shape == (33, 20, 3)  # A file is turned.
    with (
        Image.open(tmp_path / "a.jpg") as image,
        pytest.raises(ValueError, match="orientation 6.*exif_transpose"),
    ):
        as_batch(image)


HINTS = [
    ((8, 9), "np.stack([image] * 3, axis=-1)"),
    ((8, 9, 1), "np.repeat(image, 3, axis=-1)"),
    ((8, 9, 4), "image[..., :3]"),
    ((2, 8, 9, 4), "image[..., :3]"),
    ((3, 8, 9), "np.moveaxis(image, -3, -1)"),
    ((2, 3, 8, 9), "np.moveaxis(image, -3, -1)"),
]


@pytest.mark.parametrize("shape, hint", HINTS)
def test_wrong_shape_gets_an_error_whose_advice_works(shape, hint):
    image = np.ones(shape, np.uint8)
    with pytest.raises(ValueError) as error:
        as_batch(image)
    assert f"got {list(shape)}: for " in str(error.value)
    assert str(error.value).endswith(f" pass {hint}")
    as_batch(eval(hint, {"np": np, "image": image}))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 4, 4, 3), (5,), (1,) * 5])
def test_empty_and_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\] with no empty side, got"):
        as_batch(np.ones(shape, np.uint8))


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_dtypes_that_hold_no_colors_are_refused(dtype):
    with pytest.raises(ValueError, match="uint8 or float"):
        as_batch(np.ones((4, 4, 3), dtype))


@pytest.mark.parametrize("image", [[[[1, 2, 3]]], None, b"cat.jpg"])
def test_what_is_no_image_gets_an_error_with_the_ways(image):
    with pytest.raises(ValueError, match=f"is a {type(image).__name__}: pass an array"):
        as_batch(image)


def test_batch_in_place_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"batch \[2, 20, 33, 3\]"):
        as_image(np.stack([picture()] * 2))


@pytest.mark.parametrize("kind", [np.float32, np.float16, jnp.bfloat16, jnp.asarray])
def test_images_scaled_to_one_or_normalized_are_refused_with_the_way(kind):
    ranges = [(picture() / 255, "255 [*] image"), (picture() / 127.5 - 1, "as it was")]
    for image, way in ranges:
        image = kind(image) if kind is jnp.asarray else image.astype(kind)
        with pytest.raises(ValueError, match=rf"takes RGB in \[0, 255\].*{way}"):
            as_batch(image)


@pytest.mark.parametrize(
    ("image", "way"),
    [
        (np.full((4, 4, 3), 40_000, np.uint16), "// 256"),
        (np.full((4, 4, 3), -1, np.int32), "as it was read"),
        (np.full((4, 4, 3), 300.0), "as it was read"),
        (np.full((4, 4, 3), np.nan), "as it was read"),
        (np.full((4, 4, 3), np.inf), "as it was read"),
    ],
)
def test_values_outside_the_range_are_refused(image, way):
    with pytest.raises(ValueError, match=rf"values in \[.*{way}"):
        as_batch(image)


def test_dark_images_are_taken():
    as_batch(np.zeros((4, 4, 3), np.float32))
    as_batch(np.ones((4, 4, 3), np.uint8))
    as_batch(np.full((4, 4, 3), 1.5, np.float32))


# More channels than RGB.


def test_further_channels_may_have_any_finite_values():
    wide = np.dstack([picture()] * 2)[..., :5]
    for image in (wide, wide.astype(np.uint16) * 256, wide / 255, jnp.asarray(wide)):
        batch, single = as_batch(image, 5)
        np.testing.assert_array_equal(batch[0], image)
        assert single and batch.dtype == image.dtype
    assert not as_batch(wide[None], 5)[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_further_channels_that_are_not_finite_are_refused(value):
    image = np.ones((4, 4, 5))
    image[3, 2, 4] = value
    with pytest.raises(ValueError, match="image holds NaN or infinity"):
        as_batch(image, 5)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool, complex])
def test_further_channels_of_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="must be uint8, uint16 or float, got"):
        as_batch(np.ones((4, 4, 5), dtype), 5)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((4, 4, 3), "the network takes 5 channels, with RGB first"),
        ((4, 4), "the network takes 5 channels"),
        ((5, 4, 4), "channels first pass np.moveaxis"),
        ((4, 0, 5), "no empty side"),
    ],
)
def test_wrong_number_of_channels_is_refused_with_the_way(shape, hint):
    with pytest.raises(ValueError, match=rf"image must be \[H, W, 5\].*{hint}"):
        as_batch(np.ones(shape, np.uint8), 5)


def test_pil_image_for_further_channels_is_refused_with_the_way():
    with pytest.raises(ValueError, match=r"is a Image: pass an array \[H, W, 5\], the"):
        as_batch(Image.fromarray(picture()), 5)


def test_batch_of_further_channels_in_place_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"one image \[H, W, 5\], got a batch"):
        as_image(np.ones((2, 4, 4, 5), np.uint8), 5)
