"""From images to scores and labels."""

from typing import Any

import jax
import numpy as np

from fcn_jax.inference.buckets import predict_many
from fcn_jax.inference.image import Array, as_batch
from fcn_jax.inference.programs import labels_of, scores_of
from fcn_jax.models.fcn import FCN, model_of


def apply(
    params: dict[str, Any], image: Array, *, model: FCN | None = None
) -> jax.Array:
    """The scores of every class at every pixel.

    Compiled once for each model and image size; works inside jax.jit and jax.grad.

    Args:
        params: of the model.
        image: [H, W, 3] or [B, H, W, 3] uint8 or float, RGB in [0, 255].
        model: the network; read from ``params`` if None, with the default ``mean_rgb``,
            ``crop`` and ``pool_scales``.
    Returns:
        logits [H, W, C] or [B, H, W, C] float32.
    Raises:
        ValueError: if ``image`` is not such an array (the error says what to pass), or
            ``params`` are not those of an FCN.

    Example::

        logits = apply(params, np.asarray(Image.open("cat.jpg").convert("RGB")))
    """
    batch, single = as_batch(image)
    logits = scores_of(model or model_of(params), params, batch)
    return logits[0] if single else logits


def predict(params: dict[str, Any], image: Array, *, model: FCN | None = None) -> Array:
    """The class of every pixel: the one of the highest score in `apply`.

    Compiled once for each bucket of sizes (fcn_jax.inference.buckets), not for each
    size. Images above 4 million pixels go one by one in tiles, in the memory of a tile
    (fcn_jax.inference.tiles). Works inside jax.jit, too, on whole images of any size.

    Args:
        params: of the model.
        image: [H, W, 3] or [B, H, W, 3] uint8 or float, RGB in [0, 255].
        model: as for `apply`.
    Returns:
        labels [H, W] or [B, H, W] int32 in [0, C), numpy unless inside jax.jit.
    Raises:
        ValueError: as `apply` does.
    """
    batch, single = as_batch(image)
    model = model or model_of(params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, batch))):
        labels = labels_of(model, params, batch)
    else:  # Images of one size, so they keep their order.
        images = enumerate(np.asarray(batch))
        found = predict_many(model, params, images, batch_size=len(batch))
        labels = np.stack([labels for _, labels in found])
    return labels[0] if single else labels
