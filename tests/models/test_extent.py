"""A batch of images of several sizes against each image alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.extent import windows, zero_outside

SHAPE = (64, 70)  # No multiple of 32.
SIZES = ((1, 1), (33, 47), SHAPE)

# Fields of the network.
CASES = {
    **{
        f"{variant}-{geometry}": {"variant": variant, "geometry": geometry}
        for geometry in ("same", "caffe")
        for variant in ("fcn32s", "fcn16s", "fcn8s")
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


def images(sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


def padded(images, shape):
    """One batch of them; what fills it up is noise, which must not matter."""
    noise = np.random.default_rng(1).integers(0, 256, (len(images), *shape, 3))
    batch = noise.astype(np.uint8)
    for i, image in enumerate(images):
        batch[i, : image.shape[0], : image.shape[1]] = image
    return batch, np.array([image.shape[:2] for image in images], np.int32)


@pytest.fixture(scope="module")
def results(reference):
    """The logits of each case: of the batch, and of each image alone."""

    @functools.cache
    def of_geometry(geometry):
        fields = {
            case: fields
            for case, fields in CASES.items()
            if fields.get("geometry", "same") == geometry
        }
        nets = {case: reference.network(**fields[case]) for case in fields}

        @jax.jit
        def apply(params, image, size=None):
            # All cases have the same body, which XLA computes once.
            body = params["fcn8s-" + geometry]["body"]
            return {
                case: net.model.apply(
                    {"params": {"body": body, "head": params[case]["head"]}},
                    image,
                    size,
                )
                for case, net in nets.items()
            }

        params = {case: net.params for case, net in nets.items()}
        batch = apply(params, *padded(images(SIZES), SHAPE))
        alone = [apply(params, image[None]) for image in images(SIZES)]
        return {
            case: (np.asarray(batch[case]), [np.asarray(a[case])[0] for a in alone])
            for case in nets
        }

    return lambda case: of_geometry(CASES[case].get("geometry", "same"))[case]


@pytest.mark.parametrize("case", CASES)
def test_batch_of_mixed_sizes_equals_each_image_alone(results, case):
    logits, each = results(case)
    assert logits.shape == (len(SIZES), *SHAPE, 4)
    for found, alone in zip(logits, each, strict=True):
        inside = found[: alone.shape[0], : alone.shape[1]]
        tolerance = 1e-4 * np.abs(alone).max()
        np.testing.assert_allclose(inside, alone, rtol=0, atol=tolerance)
        first, second = np.sort(alone, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
        apart = first - second > 2 * tolerance
        same = inside.argmax(-1) == alone.argmax(-1)
        assert same[apart].all() and apart.mean() > 0.5


@pytest.mark.parametrize("geometry", ["same", "caffe"])
def test_gradient_of_a_mixed_batch_is_the_sum_over_images(reference, geometry):
    net = reference.network("fcn8s", geometry=geometry, learn_upsampling=True)
    sizes = ((13, 24), (20, 7))
    batch, size = padded(images(sizes), (20, 26))
    rng = np.random.default_rng(2)
    cotangent = rng.normal(size=(*batch.shape[:3], 4)).astype(np.float32)
    inside = np.asarray(zero_outside(jnp.asarray(cotangent), size))

    def of_batch(params, batch):
        return (net.model.apply({"params": params}, batch, size) * inside).sum()

    def of_each(params, batch):
        total = 0.0
        for i, (h, w) in enumerate(sizes):
            logits = net.model.apply({"params": params}, batch[i : i + 1, :h, :w])
            total += (logits * cotangent[i, :h, :w]).sum()
        return total

    found, expected = (
        jax.jit(jax.grad(f))(net.params, batch) for f in (of_batch, of_each)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_without_size_nothing_is_computed_for_it(reference):
    net = reference.network(**CASES["fcn8s-same"])
    image = jnp.zeros((2, 32, 32, 3))
    apply = functools.partial(net.model.apply, {"params": net.params})
    text = str(jax.make_jaxpr(apply)(image))
    assert "conv_general_dilated" in text
    for primitive in ("select_n", "dynamic_slice", "gather"):
        assert primitive not in text


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 2)])
def test_zero_outside_keeps_the_extent_alone(shape):
    extents = list(itertools.product(range(7), range(6)))
    x = np.ones((len(extents), *shape, 2), np.float32)
    found = np.asarray(zero_outside(x, jnp.array(extents)))
    for kept, (rows, cols) in zip(found, extents, strict=True):
        expected = np.zeros((*shape, 2))
        expected[:rows, :cols] = 1
        np.testing.assert_array_equal(kept, expected)


def test_windows_start_at_their_offsets_and_end_in_zeros():
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1) + 1
    offsets = jnp.array([[0, 1], [2, 3]])
    found = np.asarray(windows(jnp.asarray(x), offsets, (2, 3), most=3))
    np.testing.assert_array_equal(found[0, ..., 0], x[0, :2, 1:4, 0])
    np.testing.assert_array_equal(found[1, ..., 0], [[x[1, 2, 3, 0], 0, 0], [0, 0, 0]])
