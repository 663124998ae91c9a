"""From images of any size to scores and labels, with few compilations.

In JAX each new shape is compiled anew. `predict` pads an image to the next multiple of
a step, its bucket, and tells the network the true size, so that nothing changes but the
number of shapes.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.padding import STEP, bucket, fill_up
from fcn_jax.inference.inputs import AnyImage, Array, as_batch, as_image, is_traced
from fcn_jax.inference.programs import classes_of, labels_of, resized_scores
from fcn_jax.inference.shares import ClassShares
from fcn_jax.inference.tiles import needs_tiles, predict_tiled
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network, as_network
from fcn_jax.parallel import prediction_devices, prediction_shardings

_MOST_WAITING = 8  # Batches of images that wait for others of their bucket.

Key = TypeVar("Key")
# Images of a bucket that wait for their batch.
Group = list[tuple[Any, np.ndarray]]


def apply(
    net: Network | Mapping[str, Any],
    image: AnyImage | Sequence[AnyImage],
    *,
    model: FCN | None = None,
) -> jax.Array | list[jax.Array]:
    """Return the scores of every class at every pixel.

    Compiled once for each network and image size. Works inside jax.jit and jax.grad.

    Args:
        net: the network; or bare parameters, with ``model``.
        image: [H, W, 3] or [B, H, W, 3] uint8 or float, RGB in [0, 255]; a PIL image;
            the path of an image file; or a list of these, of any sizes. For a network
            of N > 3 channels, [H, W, N] or [B, H, W, N] uint8, uint16 or float of any
            finite values; the path of a file with N channels; or a list of these.
        model: the network of bare parameters.

    Returns:
        logits [H, W, C] or [B, H, W, C] float32; for a list, a list.

    Raises:
        ValueError: if ``image`` is anything else or its values do not look like RGB in
            [0, 255], or if bare parameters come without ``model``.

    Example::

        logits = apply(net, "cat.jpg")
    """
    net = as_network(net, model)
    if isinstance(image, list | tuple):
        images = (as_image(each, net.model.in_channels) for each in image)
        return [resized_scores(net, each[None])[0] for each in images]
    batch, single = as_batch(image, net.model.in_channels)
    logits = resized_scores(net, batch)
    return logits[0] if single else logits


def predict(
    net: Network | Mapping[str, Any],
    image: AnyImage | Sequence[AnyImage],
    *,
    model: FCN | None = None,
) -> Array | list[np.ndarray]:
    """Return the class of every pixel: the one of the highest score in `apply`.

    Takes and refuses what `apply` does. Compiled once for each bucket of sizes, not for
    each size. Images above 4 million pixels go one by one in tiles, in the memory of a
    tile (fcn_jax.inference.tiles). Works inside jax.jit too, on whole images.

    Returns:
        labels [H, W] or [B, H, W] int32 in [0, C), numpy unless inside jax.jit; for a
        list, a list.

    Example::

        labels = predict(net, "cat.jpg")
    """
    net = as_network(net, model)
    if isinstance(image, list | tuple):
        found = dict(predict_many(net, enumerate(image)))
        return [found[i] for i in range(len(image))]
    batch, single = as_batch(image, net.model.in_channels)
    if is_traced(net, batch):
        labels = jnp.argmax(resized_scores(net, batch), axis=-1).astype(jnp.int32)
    else:  # Images of one size, so they keep their order.
        images = enumerate(np.asarray(batch))
        found = predict_many(net, images, batch_size=len(batch))
        labels = np.stack([labels for _, labels in found])
    return labels[0] if single else labels


def predict_many(
    net: Network,
    images: Iterable[tuple[Key, AnyImage]],
    *,
    batch_size: int = 0,
    progress: bool = False,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Return the class of every pixel of many images, in batches of one bucket.

    An image above 4 million pixels goes by itself, in tiles.

    Args:
        net: the network.
        images: (key, image) pairs, taken as they are needed; each image one that
            `apply` takes.
        batch_size: images per batch; 0 for 8 on each device of this process, or for 1
            on a CPU, which gains nothing from more. As many devices share a batch as
            divide it evenly. A network with a ``size`` takes images one by one.
        progress: whether to show a progress bar of the tiles of a large image.

    Returns:
        Iterator of (key, labels [H, W] int32), in the order in which batches fill up.

    Example::

        for path, labels in predict_many(net, ((path, path) for path in paths)):
            ...
    """
    net = as_network(net)

    def tiled(image: np.ndarray) -> np.ndarray:
        return predict_tiled(net, image, progress=progress).astype(np.int32)

    found = _in_batches(net, images, batch_size, labels_of)
    return (
        (key, tiled(image) if labels is None else labels)
        for key, image, labels in found
    )


def classify_many(
    net: Network,
    images: Iterable[tuple[Key, AnyImage]],
    *,
    batch_size: int = 0,
    progress: bool = False,
) -> Iterator[tuple[Key, np.ndarray, ClassShares]]:
    """Return an iterator of (key, labels, shares of the classes) of many images.

    Takes what `predict_many` does.
    """
    net = as_network(net)
    for key, image, found in _in_batches(net, images, batch_size, classes_of):
        shares = ClassShares(net.model.num_classes)
        if found is None:
            labels = predict_tiled(net, image, shares=shares, progress=progress)
        else:
            labels, confidence = found
            shares.add(labels, confidence)
        yield key, labels, shares


def compile_ahead(net: Network, size: tuple[int, int], *, batch_size: int = 0) -> None:
    """Compile the program of `classify_many` for images of a size, and keep it.

    Args:
        net: the network; its params may be `jax.ShapeDtypeStruct`.
        size: height and width of RGB images of 8 bits.
        batch_size: as for `predict_many`.
    """
    if net.size or needs_tiles(size):
        return
    batch_size, whole, split = _placement(batch_size)
    shape = (batch_size, *bucket(size, STEP), net.model.in_channels)
    # The call finds the program again only if all of this is as it will be.
    net = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), net
    )
    batch = jax.ShapeDtypeStruct(shape, np.uint8, sharding=split)
    sizes = jax.ShapeDtypeStruct((batch_size, 2), np.int32, sharding=split)
    classes_of.lower(net, batch, sizes).compile()


def _in_batches(
    net: Network,
    images: Iterable[tuple[Key, AnyImage]],
    batch_size: int,
    program: Callable,
) -> Iterator[tuple[Key, np.ndarray, Any]]:
    """Yield (key, image, result of a program), or None for an image to be tiled."""
    channels, waiting = net.model.in_channels, {}
    batch_size, whole, split = _placement(batch_size)
    net = jax.device_put(net, whole)
    for key, given in images:
        image = np.asarray(as_image(given, channels))
        if net.size or needs_tiles(image.shape):
            yield key, image, None
            continue
        shape = bucket(image.shape[:2], STEP)
        group = waiting.setdefault(shape, [])
        group.append((key, image))
        options = batch_size, program, split
        if len(group) == batch_size:
            yield from _run_batch(net, waiting.pop(shape), shape, *options)
        elif sum(map(len, waiting.values())) > _MOST_WAITING * batch_size:
            yield from _run_batch(net, *_take_largest(waiting, batch_size), *options)
    while waiting:
        group, shape = _take_largest(waiting, batch_size)
        yield from _run_batch(net, group, shape, batch_size, program, split)


def _placement(
    batch_size: int,
) -> tuple[int, jax.sharding.Sharding | None, jax.sharding.Sharding | None]:
    """Return the images per batch, and where the network and the batches are held."""
    for_each = 1 if jax.default_backend() == "cpu" else 8
    batch_size = batch_size or for_each * len(prediction_devices())
    return batch_size, *prediction_shardings(batch_size)


def _take_largest(
    waiting: dict[tuple[int, int], Group], batch_size: int
) -> tuple[Group, tuple[int, int]]:
    """Take the images of the largest bucket, and others that fit into it."""
    shape = max(waiting, key=lambda shape: (shape[0] * shape[1], shape))
    group: Group = []
    for other in sorted(waiting, reverse=True):
        if other[0] <= shape[0] and other[1] <= shape[1]:
            room = batch_size - len(group)
            group += waiting[other][:room]
            waiting[other] = waiting[other][room:]
    for other in [other for other, left in waiting.items() if not left]:
        del waiting[other]
    return group, shape


def _run_batch(
    net: Network,
    group: Group,
    shape: tuple[int, int],
    batch_size: int,
    program: Callable,
    split: jax.sharding.Sharding | None,
) -> Iterator[tuple[Any, np.ndarray, Any]]:
    batch = fill_up([image for _, image in group], shape, batch_size)
    found = jax.tree.map(np.asarray, program(net, *jax.device_put(batch, split)))
    for i, (key, image) in enumerate(group):
        inside = i, slice(image.shape[0]), slice(image.shape[1])
        yield key, image, jax.tree.map(operator.itemgetter(inside), found)
