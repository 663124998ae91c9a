"""A batch of images of several sizes against each image alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.models.extent import windows, zero_outside

SIZES = ((1, 1), (33, 47), (40, 17), (64, 64), (50, 63))
SHAPE = (64, 70)  # No side of an image, and no multiple of 32.

# Fields of the network.
CASES = {
    **{
        f"{variant}-{geometry}": {"variant": variant, "geometry": geometry}
        for variant in ("fcn32s", "fcn16s", "fcn8s")
        for geometry in ("same", "caffe")
    },
    "fcn8s-corner": {"variant": "fcn8s", "crop": "corner", "pool_scales": (0.5, 0.25)},
    "fcn8s-learned": {"variant": "fcn8s", "learn_upsampling": True},
    "fcn16s-caffe-learned": {
        "variant": "fcn16s",
        "geometry": "caffe",
        "learn_upsampling": True,
        "pool_scales": (0.5, 0.25),
    },
}


def images(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def filled(images, shape=SHAPE):
    """One batch of them; what fills it up is noise, which must not matter."""
    noise = np.random.default_rng(1).integers(0, 256, (len(images), *shape, 3))
    batch = noise.astype(np.uint8)
    for i, image in enumerate(images):
        batch[i, : image.shape[0], : image.shape[1]] = image
    return batch, np.array([image.shape[:2] for image in images], np.int32)


@pytest.mark.parametrize("case", CASES)
def test_batch_of_mixed_sizes_equals_each_image_alone(reference, case):
    model, params = reference.network(**CASES[case])
    apply = jax.jit(model.apply)
    batch, size = filled(images())
    logits = np.asarray(apply({"params": params}, batch, size))
    assert logits.shape == (*batch.shape[:3], model.num_classes)
    for i, image in enumerate(images()):
        alone = np.asarray(apply({"params": params}, image[None]))[0]
        inside = logits[i, : image.shape[0], : image.shape[1]]
        tolerance = 1e-4 * np.abs(alone).max()
        np.testing.assert_allclose(inside, alone, rtol=0, atol=tolerance)
        first, second = np.sort(alone, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
        apart = first - second > 2 * tolerance
        same = inside.argmax(-1) == alone.argmax(-1)
        assert same[apart].all() and apart.mean() > 0.5


@pytest.mark.parametrize("geometry", ["same", "caffe"])
def test_gradient_of_a_mixed_batch_is_the_sum_over_images(reference, geometry):
    model, params = reference.network("fcn8s", geometry=geometry, learn_upsampling=True)
    sizes = SIZES[1:4]
    batch, size = filled(images(sizes))
    rng = np.random.default_rng(2)
    seen = rng.normal(size=(*batch.shape[:3], model.num_classes)).astype(np.float32)
    inside = np.asarray(zero_outside(jnp.asarray(seen), size))

    def of_batch(params):
        return (model.apply({"params": params}, batch, size) * inside).sum()

    def of_each(params):
        total = 0.0
        for i, image in enumerate(images(sizes)):
            h, w = image.shape[:2]
            logits = model.apply({"params": params}, image[None])[0]
            total += (logits * seen[i, :h, :w]).sum()
        return total

    found, expected = (
        jax.jit(jax.grad(of_batch))(params),
        jax.jit(jax.grad(of_each))(params),
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_full_size_changes_nothing(reference):
    model, params = reference.network(**CASES["fcn8s-same"])
    batch, size = filled(images([(40, 50)] * 2), (40, 50))
    np.testing.assert_allclose(
        model.apply({"params": params}, batch, size),
        model.apply({"params": params}, batch),
        rtol=1e-5,
        atol=1e-3,
    )


def test_without_size_nothing_is_computed_for_it(reference):
    model, params = reference.network(**CASES["fcn8s-same"])
    image = jnp.zeros((2, 32, 32, 3))
    text = str(jax.make_jaxpr(lambda x: model.apply({"params": params}, x))(image))
    assert "conv_general_dilated" in text
    for primitive in ("select_n", "dynamic_slice", "gather"):
        assert primitive not in text


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.integers(0, 9))
def test_zero_outside_keeps_the_extent_alone(height, width, rows, cols):
    x = np.ones((1, height, width, 2), np.float32)
    found = np.asarray(zero_outside(x, jnp.array([[rows, cols]])))
    expected = np.zeros_like(x)
    expected[:, :rows, :cols] = 1
    np.testing.assert_array_equal(found, expected)


def test_windows_start_where_each_is_told_and_end_in_zeros():
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1) + 1
    found = np.asarray(windows(jnp.asarray(x), jnp.array([[0, 1], [2, 3]]), (2, 3)))
    np.testing.assert_array_equal(found[0, ..., 0], x[0, :2, 1:4, 0])
    np.testing.assert_array_equal(found[1, ..., 0], [[x[1, 2, 3, 0], 0, 0], [0, 0, 0]])
