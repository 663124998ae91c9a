import numpy as np

from fcn_jax.data.padding import bucket, enlarge, fill_up


def picture(height, width, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_bucket_is_the_next_multiple():
    assert bucket((1, 64)) == (64, 64)
    assert bucket((65, 129), 32) == (96, 160)


def test_fill_up_keeps_the_channels_and_the_values_of_every_image():
    images = [np.ones((2, 3, 5), np.uint8), np.full((1, 1, 5), 70_000.5, np.float32)]
    batch, _ = fill_up(images, (2, 3), 2)
    assert batch.shape == (2, 2, 3, 5) and batch.dtype == np.float32
    assert (batch[0] == 1).all() and (batch[1, 0, 0] == 70_000.5).all()


def test_fill_up_puts_images_top_left_and_makes_up_what_lacks():
    images = [picture(2, 3), picture(4, 1, seed=1)]
    batch, size = fill_up(images, (4, 5), 3)
    assert batch.shape == (3, 4, 5, 3) and batch.dtype == np.uint8
    np.testing.assert_array_equal(size, [[2, 3], [4, 1], [1, 1]])
    for i, image in enumerate(images):
        h, w = image.shape[:2]
        np.testing.assert_array_equal(batch[i, :h, :w], image)
        assert batch[i].sum() == image.sum()


def test_fill_up_keeps_channels_and_the_widest_type():
    images = [np.full((2, 3, 5), 7, np.uint8), np.full((1, 1, 5), 999.5, np.float32)]
    batch, _ = fill_up(images, (2, 3), 2)
    assert batch.shape == (2, 2, 3, 5) and batch.dtype == np.float32
    assert (batch[0] == 7).all() and (batch[1, 0, 0] == 999.5).all()


def test_enlarge_adds_zeros_and_void():
    image, size = fill_up([picture(2, 3), picture(4, 1)], (4, 3), 2)
    label = np.ones((2, 4, 3), np.int32)
    batch = enlarge({"image": image, "label": label, "size": size}, (5, 7))
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    expected, _ = fill_up([picture(2, 3), picture(4, 1)], (5, 7), 2)
    np.testing.assert_array_equal(batch["image"], expected)
    np.testing.assert_array_equal(batch["label"][:, :4, :3], 1)
    assert (batch["label"] == 255).sum() == 2 * (5 * 7 - 4 * 3)
    np.testing.assert_array_equal(batch["size"], size)
