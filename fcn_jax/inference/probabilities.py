"""Class probabilities, averaged over scales and mirror images where wanted."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.data.padding import bucket, fill_up
from fcn_jax.inference.inputs import AnyImage, as_batch, as_image
from fcn_jax.inference.predict import Key
from fcn_jax.inference.resize import resize_inside
from fcn_jax.inference.tiles import logits_tiled, needs_tiles
from fcn_jax.network import Network, as_network

_MAX_SCORES = 2**28  # Of one image, in float32: 1 GiB.


def probabilities(
    net: Network,
    image: AnyImage | Sequence[AnyImage],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Return the probability of every class at every pixel.

    With one scale and no mirror image, the most probable class is that of `predict`.

    Args:
        net: the network.
        image: as for `fcn_jax.apply`.
        scales: factors of the size that the network sees. Scores are resized
            bilinearly to the image, and the softmax is averaged over the scales.
        flip: whether to average over the mirror images as well.

    Returns:
        [H, W, C] or [B, H, W, C] float32 in [0, 1]; for a list, a list.

    Raises:
        ValueError: for an image that `fcn_jax.apply` refuses, a scale that is not
            above 0, or an image with more than 2**28 scores (pixels times classes) at
            its own size or at a scale.
    """
    options = {"scales": scales, "flip": flip}
    if isinstance(image, list | tuple):
        return [
            found for _, found in probabilities_many(net, enumerate(image), **options)
        ]
    batch, single = as_batch(image, as_network(net).model.in_channels)
    found = [p for _, p in probabilities_many(net, enumerate(batch), **options)]
    return found[0] if single else np.stack(found)


def probabilities_many(
    net: Network,
    images: Iterable[tuple[Key, AnyImage]],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Return an iterator of (key, `probabilities`) for pairs of (key, image).

    Images are taken as they are needed, and the results keep their order.
    """
    net = as_network(net)
    if not len(scales) or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"scales = {scales} must be finite numbers above 0")
    views = [
        (s, mirror) for s in scales for mirror in ((False, True) if flip else (False,))
    ]
    channels = net.model.in_channels
    return (
        (key, _averaged(net, np.asarray(as_image(image, channels)), views))
        for key, image in images
    )


def _averaged(
    net: Network, image: np.ndarray, views: Sequence[tuple[float, bool]]
) -> np.ndarray:
    """Return the mean probabilities of an image over (scale, mirrored) views."""
    height, width = image.shape[:2]
    sides = net.size or (height, width)
    seen = [
        (tuple(max(1, round(scale * side)) for side in sides), mirror)
        for scale, mirror in views
    ]
    sizes = [(height, width), *(size for size, _ in seen)]
    _check_memory(sizes, net.model.num_classes)
    if any(map(needs_tiles, sizes)):
        return _averaged_tiles(net, image, seen) / len(views)
    batch, size = fill_up([image], bucket((height, width)), 1)
    total = 0.0
    for view, mirror in seen:
        sizes = np.array([view], np.int32)
        total += _view(net, batch, size, sizes, bucket(view), mirror)
    return np.asarray(total)[:height, :width] / len(views)


def _check_memory(sizes: Sequence[tuple[int, int]], num_classes: int) -> None:
    """Raise ValueError if the scores of an image are too many at one of its sizes."""
    pixels = _MAX_SCORES // num_classes
    for height, width in sizes:
        if height * width > pixels:
            raise ValueError(
                f"at {height}x{width} pixels, probabilities of {num_classes} classes "
                f"take more than 1 GiB. They are computed up to {pixels} pixels: use "
                "smaller scales or a smaller image, or predict labels alone, without "
                "scales, flip and probabilities"
            )


def _averaged_tiles(
    net: Network, image: np.ndarray, views: Sequence[tuple[tuple[int, int], bool]]
) -> np.ndarray:
    """Return the sum of probabilities over (size, mirrored) views, tile by tile."""
    total = np.zeros((*image.shape[:2], net.model.num_classes), np.float32)
    for size, mirror in views:
        sized = net.replace(size=() if size == image.shape[:2] else size)
        seen, into = (image[:, ::-1], total[:, ::-1]) if mirror else (image, total)
        for rows, cols, logits in logits_tiled(sized, seen):
            into[rows, cols] += jax.nn.softmax(logits)
    return total


# Sizes are arguments, so that images of one bucket share a program.
@partial(jax.jit, static_argnames=("shape", "mirror"))
def _view(
    net: Network,
    batch: jax.Array,
    size: jax.Array,
    seen: jax.Array,
    shape: tuple[int, int],
    mirror: bool,
) -> jax.Array:
    """Return the probabilities of one image [1, H, W, N] of a true ``size`` [1, 2].

    The network sees it at the size ``seen`` [1, 2], padded to ``shape``, and mirrored
    or not. The result is [H, W, C].
    """
    x = resize_inside(batch, size[0], seen[0], shape)
    # Columns from the last true one backwards; those beyond it are out of reach.
    columns = seen[0, 1] - 1 - jnp.arange(shape[1])
    x = x[:, :, columns] if mirror else x
    logits = net.model.apply({"params": net.params}, x, seen)
    logits = logits[:, :, columns] if mirror else logits
    logits = resize_inside(logits, seen[0], size[0], batch.shape[1:3])
    return jax.nn.softmax(logits)[0]
