"""Make new networks: random parameters, and those taken over from trained ones."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.network import Network, Palette, Size, VGG16Weights
from fcn_jax.weights.layers import shapes_of
from fcn_jax.weights.load import load_vgg16


def init(
    key: jax.Array,
    variant: str = "fcn8s",
    num_classes: int = 21,
    *,
    vgg16: VGG16Weights | str | Path | None = None,
    class_names: tuple[str, ...] = (),
    palette: Palette = (),
    size: Size = (),
    **fields: Any,
) -> Network:
    """Make a network with random float32 parameters, on a VGG-16 if one is given.

    Args:
        key: of `jax.random.key`.
        variant: "fcn32s", "fcn16s" or "fcn8s".
        num_classes: C.
        vgg16: trained weights for the body, or a file or name for `load_vgg16`. The
            network subtracts their mean. Layers that they lack start at random.
        class_names: as in `Network`.
        palette: as in `Network`.
        size: as in `Network`.
        fields: other fields of `FCN`, such as ``width=0.25``.

    Raises:
        ValueError: for a field that `FCN` or `Network` refuses, for a ``mean_rgb``
            beside ``vgg16``, or if the widths differ.
        OSError: if a download fails.

    Example::

        net = fcn_jax.init(jax.random.key(0), num_classes=11, vgg16="vgg16.npy")
    """
    if vgg16 is not None and "mean_rgb" in fields:
        raise ValueError("mean_rgb belongs to the weights: vgg16 brings its own")
    model = FCN(variant=variant, num_classes=num_classes, **fields)
    body = {}
    if vgg16 is not None:
        weights = vgg16 if isinstance(vgg16, VGG16Weights) else load_vgg16(vgg16)
        model = model.clone(mean_rgb=weights.mean_rgb)
        body = _checked_body(weights.params, model)
    params = init_params(model, key, {"body": body})
    return Network(params, model, class_names, palette, size)


def init_params(model: FCN, key: jax.Array, given: dict[str, Any]) -> dict[str, Any]:
    """Return float32 JAX parameters: those given, and random ones for the others.

    ``given`` is ``{"body": layers, "head": layers}``; parts and layers may be missing.
    """
    known = frozenset((part, layer) for part in given for layer in given[part])
    params = _random_params(model, known, key)
    for part, layers in given.items():
        params[part] |= jax.tree.map(jnp.asarray, layers)
    return params


# Compiled once for each network: without jit, each random array is compiled by itself.
@partial(jax.jit, static_argnums=(0, 1))
def _random_params(model: FCN, known: frozenset, key: jax.Array) -> dict[str, Any]:
    """Return random parameters, except for the known layers as (part, name)."""
    params = model.init(key, jnp.zeros([1, 1, 1, 3]))["params"]
    return {
        part: {name: p for name, p in layers.items() if (part, name) not in known}
        for part, layers in params.items()
    }


def transplant(source: Network | VGG16Weights, model: FCN) -> tuple[dict, list[str]]:
    """Return the parameters that a network takes over, such as FCN-16s from FCN-32s.

    The body is always taken. If the number of classes matches, the score layers are
    taken too, and those of a new skip are zero: the network starts as good as the
    coarser one was, whose scores it only upsamples in more steps.

    Returns:
        params: the part of the model's parameters that is decided.
        notes: what could not be taken over as it was, for people to read.

    Raises:
        ValueError: if the widths differ.

    Reference: Long et al., arXiv:1411.4038, section 4.2.
    """
    if isinstance(source, VGG16Weights):
        return {"body": _checked_body(source.params, model), "head": {}}, []
    params = {"body": _checked_body(source.params["body"], model), "head": {}}
    old, scores, head, notes = source.model, source.params["head"], params["head"], []
    if old.num_classes != model.num_classes:
        notes.append(
            f"{old.num_classes} classes there, {model.num_classes} here: the body is "
            "taken, the score layers start afresh"
        )
        return params, notes
    for name, shapes in unflatten_dict(dict(shapes_of(model)), sep="/")["head"].items():
        if name in scores:
            head[name] = scores[name]
        elif name.startswith("score"):
            head[name] = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}
            notes.append(f"{name} is new and starts at zero")
    scales = zip(SKIPS["fcn8s"], old.pool_scales, model.pool_scales, strict=True)
    for pool, before, now in scales:
        layer = head.get(f"score_{pool}")
        if layer and before != now:  # The scaled scores stay the same.
            kernel = np.float32(layer["kernel"] * (before / now))
            head[f"score_{pool}"] = {**layer, "kernel": kernel}
    if old.learn_upsampling and not model.learn_upsampling:
        notes.append("the learned upsampling is replaced by the bilinear one")
    return params, notes


def _checked_body(layers: dict[str, Any], model: FCN) -> dict[str, Any]:
    """Return the layers that an FCN has; raise ValueError if their width differs."""
    filters = layers["conv1_1"]["bias"].size
    if filters != 64 * model.width:
        raise ValueError(
            f"the weights have {filters} filters in conv1_1, the network "
            f"{64 * model.width:g}: set width = {filters / 64:g}"
        )
    return {name: layer for name, layer in layers.items() if name != "fc8"}
