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

EXTRA_INITS = ("mean", "zero")


def init(
    key: jax.Array,
    variant: str = "fcn8s",
    num_classes: int = 21,
    *,
    vgg16: VGG16Weights | str | Path | None = None,
    extra_init: str = "mean",
    class_names: tuple[str, ...] = (),
    palette: Palette = (),
    size: Size = (),
    channels: tuple[str, ...] = (),
    shown: tuple[int, int, int] = (0, 1, 2),
    **fields: Any,
) -> Network:
    """Make a network with random float32 parameters, on a VGG-16 if one is given.

    Args:
        key: of `jax.random.key`.
        variant: "fcn32s", "fcn16s" or "fcn8s".
        num_classes: C.
        vgg16: trained weights for the body, or a file or name for `load_vgg16`. The
            network subtracts their mean. Layers that they lack start at random.
        extra_init: what the input channels after RGB start with on a VGG-16, as for
            `transplant`.
        class_names: as in `Network`.
        palette: as in `Network`.
        size: as in `Network`.
        channels: as in `Network`.
        shown: as in `Network`.
        fields: other fields of `FCN`, such as ``width=0.25``. With more ``in_channels``
            than RGB, ``mean`` is needed; beside ``vgg16`` it begins with that of the
            weights.

    Raises:
        ValueError: for a field that `FCN` or `Network` refuses, if ``mean`` or
            ``scale`` differ from those of the weights, or if the widths differ.
        OSError: if a download fails.

    Example::

        net = fcn_jax.init(jax.random.key(0), num_classes=11, vgg16="vgg16.npy")
        vgg16 = fcn_jax.load_vgg16("vgg16.npy")
        net = fcn_jax.init(
            jax.random.key(0),
            vgg16=vgg16,
            in_channels=4,
            mean=(*vgg16.mean_rgb, 2500.0),
            scale=(1, 1, 1, 64 / 900),
        )
    """
    given = {}
    if vgg16 is not None:
        vgg16 = vgg16 if isinstance(vgg16, VGG16Weights) else load_vgg16(vgg16)
        if fields.get("in_channels", 3) == 3:
            fields = {"mean": vgg16.mean_rgb} | fields
    model = FCN(variant=variant, num_classes=num_classes, **fields)
    net = Network({}, model, class_names, palette, size, channels, shown)
    if vgg16 is not None:
        given, _ = transplant(vgg16, model, extra_init=extra_init)
    return net.replace(params=init_params(model, key, given))


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
    params = model.init(key, jnp.zeros([1, 1, 1, model.in_channels]))["params"]
    return {
        part: {name: p for name, p in layers.items() if (part, name) not in known}
        for part, layers in params.items()
    }


def normalization(
    source: Network | VGG16Weights,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the scale of each channel that weights were trained with."""
    if isinstance(source, VGG16Weights):
        return tuple(source.mean_rgb), (1.0, 1.0, 1.0)
    model = source.model
    return model.mean, model.scale or (1.0,) * model.in_channels


def check_normalization(
    source: Network | VGG16Weights,
    *,
    mean: tuple[float, ...] = (),
    scale: tuple[float, ...] = (),
) -> None:
    """Raise ValueError if a mean or a scale differs from that of the weights.

    Args:
        source: the weights.
        mean: of the channels of the weights, and perhaps further ones; () for none.
        scale: likewise.
    """
    given = {"mean": mean, "scale": scale}
    for (name, values), known in zip(given.items(), normalization(source), strict=True):
        first = tuple(values)[: len(known)]
        if np.any(np.float32(first) != np.float32(known[: len(first)])):
            raise ValueError(
                f"{name} = {first} differs from the {name} {known} of the weights, "
                "which belongs to them: leave it out or (), or begin with theirs"
            )


def transplant(
    source: Network | VGG16Weights, model: FCN, *, extra_init: str = "mean"
) -> tuple[dict, list[str]]:
    """Return the parameters that a network takes over, such as FCN-16s from FCN-32s.

    The body is always taken. If the number of classes matches, the score layers are
    taken too, and those of a new skip are zero: the network starts as good as the
    coarser one was, whose scores it only upsamples in more steps.

    Weights for RGB fit a network with more input channels too: conv1_1 keeps its
    kernels for RGB, and ``extra_init`` tells what those of the other channels are.

    Args:
        source: the weights.
        model: the network that takes them over.
        extra_init: "mean" for the mean of conv1_1 over red, green and blue, as in the
            authors' network for colour and depth; or "zero", with which the network
            starts as it is without the further channels.

    Returns:
        params: the part of the model's parameters that is decided.
        notes: what could not be taken over as it was, for people to read.

    Raises:
        ValueError: if the widths, the input channels, the means or the scales differ.

    Reference: Long et al., arXiv:1411.4038, sections 4.2 and 5 (NYUDv2);
        nyud-fcn32s-color-d/solve.py in github.com/shelhamer/fcn.berkeleyvision.org.
    """
    if extra_init not in EXTRA_INITS:
        raise ValueError(
            f"extra_init = {extra_init!r} is not one of {', '.join(EXTRA_INITS)}"
        )
    is_vgg16 = isinstance(source, VGG16Weights)
    body = source.params if is_vgg16 else source.params["body"]
    body = _checked_body(body, model)
    scale = model.scale or (1.0,) * model.in_channels
    check_normalization(source, mean=model.mean, scale=scale)
    body["conv1_1"] = _for_channels(body["conv1_1"], model.in_channels, extra_init)
    params = {"body": body, "head": {}}
    if is_vgg16:
        return params, []
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
    """Return the layers that an FCN has.

    Raises:
        ValueError: if their width differs, or their input channels do not fit.
    """
    filters = layers["conv1_1"]["bias"].size
    if filters != 64 * model.width:
        raise ValueError(
            f"the weights have {filters} filters in conv1_1, the network "
            f"{64 * model.width:g}: set width = {filters / 64:g}"
        )
    inputs = layers["conv1_1"]["kernel"].shape[2]
    if inputs not in (3, model.in_channels):
        raise ValueError(
            f"the weights take {inputs} input channels, the network "
            f"{model.in_channels}: set in_channels = {inputs}, or start from weights "
            "for RGB"
        )
    return {name: layer for name, layer in layers.items() if name != "fc8"}


def _for_channels(
    layer: dict[str, Any], channels: int, extra_init: str
) -> dict[str, Any]:
    """Return conv1_1 for a number of input channels, of which it has all or RGB."""
    extra = channels - layer["kernel"].shape[2]
    if not extra:
        return layer
    kernel = np.asarray(layer["kernel"])
    mean = kernel.mean(axis=2, keepdims=True, dtype=np.float64)
    added = np.float32(mean if extra_init == "mean" else 0 * mean)
    return {**layer, "kernel": np.concatenate([kernel, *[added] * extra], axis=2)}
