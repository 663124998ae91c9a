"""Prediction for images of any size with few compilations.

In JAX each new shape is compiled anew. Here an image is filled up to the next multiple
of a step, its bucket, and the network is told its true size, so that nothing changes
but the number of shapes.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.padding import STEP, bucket, fill_up
from fcn_jax.data.transforms import resize_image
from fcn_jax.inference.programs import labels_of, scores_of
from fcn_jax.inference.tiles import needs_tiles, predict_tiled
from fcn_jax.models.fcn import FCN

_MOST_WAITING = 8  # Batches of images that wait for others of their bucket.

Key = TypeVar("Key")


# A program of its own: a new image size does not compile the network again.
@functools.partial(jax.jit, static_argnums=1)
def _labels_at(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    shape = (logits.shape[0], *size, logits.shape[-1])
    logits = jax.image.resize(logits, shape, "bilinear")
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def predict_many(
    model: FCN,
    params: dict[str, Any],
    images: Iterable[tuple[Key, np.ndarray]],
    *,
    size: tuple[int, int] | tuple[()] = (),
    batch_size: int = 0,
    step: int = STEP,
    progress: bool = False,
) -> Iterator[tuple[Key, np.ndarray]]:
    """The class of every pixel of many images, in batches of one bucket.

    An image too large for the memory goes by itself, in tiles.

    Args:
        model: the network.
        params: of the model.
        images: (key, [H, W, 3] uint8 RGB), taken as they are needed.
        size: (h, w) to resize images to as in training, one by one; the scores are
            resized bilinearly to the image. () leaves them as they are.
        batch_size: images of a batch; 0 for 8, or for 1 on a CPU, which gains nothing
            from more.
        step: see `bucket`.
        progress: whether to show a progress bar of the tiles of an image.
    Yields:
        (key, labels [H, W] int32), in the order in which batches become full.
    """
    if size:
        for key, image in images:
            scores = scores_of(model, params, resize_image(image, size)[None])
            yield key, np.asarray(_labels_at(scores, image.shape[:2])[0])
        return
    batch_size = batch_size or (1 if jax.default_backend() == "cpu" else 8)
    waiting: dict[tuple[int, int], list] = {}
    for key, image in images:
        if needs_tiles(image.shape[:2]):
            labels = predict_tiled(model, params, image, progress=progress)
            yield key, labels.astype(np.int32)
            continue
        shape = bucket(image.shape[:2], step)
        group = waiting.setdefault(shape, [])
        group.append((key, image))
        if len(group) == batch_size:
            yield from _predict(model, params, waiting.pop(shape), shape, batch_size)
        elif sum(map(len, waiting.values())) > _MOST_WAITING * batch_size:
            yield from _predict(model, params, *_largest(waiting, batch_size))
    while waiting:
        yield from _predict(model, params, *_largest(waiting, batch_size))


def _largest(
    waiting: dict[tuple[int, int], list], batch_size: int
) -> tuple[list, tuple[int, int], int]:
    """Takes the images of the largest bucket, and others that fit into it."""
    shape = max(waiting, key=lambda shape: (shape[0] * shape[1], shape))
    group: list = []
    for other in sorted(waiting, reverse=True):
        if other[0] <= shape[0] and other[1] <= shape[1]:
            room = batch_size - len(group)
            group += waiting[other][:room]
            waiting[other] = waiting[other][room:]
    for other in [other for other, left in waiting.items() if not left]:
        del waiting[other]
    return group, shape, batch_size


def _predict(
    model: FCN,
    params: dict[str, Any],
    group: list[tuple[Key, np.ndarray]],
    shape: tuple[int, int],
    batch_size: int,
) -> Iterator[tuple[Key, np.ndarray]]:
    batch, size = fill_up([image for _, image in group], shape, batch_size)
    labels = np.asarray(labels_of(model, params, batch, size))
    for (key, image), label in zip(group, labels, strict=False):
        yield key, label[: image.shape[0], : image.shape[1]]
