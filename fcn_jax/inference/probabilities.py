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
from fcn_jax.network import Network, as_network


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
        ValueError: for an image that `fcn_jax.apply` refuses, or a scale that is not
            above 0.
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
    batch, size = fill_up([image], bucket((height, width)), 1)
    total = 0.0
    for scale, mirror in views:
        seen = [max(1, round(scale * side)) for side in net.size or (height, width)]
        shape = bucket(tuple(seen))
        total += _view(net, batch, size, np.array([seen], np.int32), shape, mirror)
    return np.asarray(total)[:height, :width] / len(views)


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
