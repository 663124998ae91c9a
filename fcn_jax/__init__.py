"""Fully convolutional networks for semantic segmentation in JAX and Flax.

Reference: Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic
Segmentation, arXiv:1411.4038.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.inference import export
from fcn_jax.inference.predict import apply, predict
from fcn_jax.models.fcn import FCN
from fcn_jax.models.vgg import VGG16
from fcn_jax.visualize import colorize, colormap, overlay
from fcn_jax.weights.load import load, load_vgg16, save

__all__ = [
    "FCN",
    "VGG16",
    "apply",
    "colorize",
    "colormap",
    "export",
    "init",
    "load",
    "load_vgg16",
    "overlay",
    "predict",
    "save",
]


def init(
    key: jax.Array, variant: str = "fcn8s", num_classes: int = 21, **fields: Any
) -> dict[str, Any]:
    """Random parameters of a network.

    Args:
        key: of `jax.random.key`.
        variant: "fcn32s", "fcn16s" or "fcn8s".
        num_classes: C.
        fields: of `FCN` besides, such as ``width=0.25``.
    Returns:
        ``{"body": ..., "head": ...}`` as `FCN` describes them; put the layers of
        `load_vgg16` into "body" to start from a trained VGG-16.
    Raises:
        ValueError: for a field that `FCN` refuses.

    Example::

        params = fcn_jax.init(jax.random.key(0), num_classes=11)
        params["body"].update(fcn_jax.load_vgg16("vgg16.npy"))
    """
    return _init(FCN(variant=variant, num_classes=num_classes, **fields), key)


# Compiled once for each network: without jit, each random array is compiled by itself.
@functools.partial(jax.jit, static_argnums=0)
def _init(model: FCN, key: jax.Array) -> dict[str, Any]:
    return model.init(key, jnp.zeros([1, 1, 1, 3]))["params"]
