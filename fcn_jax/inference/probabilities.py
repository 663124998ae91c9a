"""Class probabilities, averaged over scales and mirror images where wanted."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.padding import bucket, fill_up
from fcn_jax.data.transforms import resize_image
from fcn_jax.inference.buckets import Key
from fcn_jax.models.extent import zero_outside
from fcn_jax.models.fcn import FCN


def predict_scales(
    model: FCN,
    params: dict[str, Any],
    images: Iterable[tuple[Key, np.ndarray]],
    *,
    size: tuple[int, int] | tuple[()] = (),
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Iterator[tuple[Key, np.ndarray]]:
    """The probability of every class at every pixel of many images.

    Args:
        model: the network.
        params: of the model.
        images: (key, [H, W, 3] uint8 RGB), taken as they are needed.
        size: (h, w) of scale 1; () for each image's own.
        scales: factors of the size that the network sees; the softmax of its scores is
            resized bilinearly to the image, and the mean is taken.
        flip: whether to take the mean over the mirror images as well.
    Yields:
        (key, [H, W, C] float32).
    Raises:
        ValueError: if a scale is not above 0.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales = {scales} must be above 0")
    mirrors = (False, True) if flip else (False,)
    for key, image in images:
        target = image.shape[:2]
        total = 0.0
        for scale in scales:
            sides = (max(1, round(scale * side)) for side in size or target)
            scaled = resize_image(image, tuple(sides))
            for mirror in mirrors:
                seen = scaled[:, ::-1] if mirror else scaled
                batch, seen_size = fill_up([seen], bucket(seen.shape[:2]), 1)
                args = batch, seen_size, np.array(target, np.int32)
                total += _probabilities(model, params, *args, bucket(target), mirror)
        mean = np.asarray(total)[: target[0], : target[1]]
        yield key, mean / (len(scales) * len(mirrors))


# Sizes are arguments, so that images of one bucket share a program.
@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _probabilities(
    model: FCN,
    params: dict[str, Any],
    batch: jax.Array,
    size: jax.Array,
    target: jax.Array,
    shape: tuple[int, int],
    mirror: bool,
) -> jax.Array:
    """Probabilities of a batch of one, [*shape, C], the image in ``target`` of them."""
    x = jax.nn.softmax(model.apply({"params": params}, batch, size))
    if mirror:
        x = x[:, :, size[0, 1] - 1 - jnp.arange(x.shape[2])]

    def resize(x: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            zero_outside(x, size)[0],
            (*shape, x.shape[-1]),
            (0, 1),
            target / size[0],
            jnp.zeros(2),
            "linear",
        )

    # At the borders, what lies outside must not count.
    return resize(x) / jnp.maximum(resize(jnp.ones_like(x[..., :1])), 1e-6)
