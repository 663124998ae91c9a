"""A network as one value: its parameters and all that is needed to read them rightly.

Both values here are pytrees whose leaves are the parameters. Everything else is static,
so it passes through `jax.jit`, `jax.grad`, `jax.vmap`, `jax.tree.map`, optax and a
checkpoint unchanged.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fcn_jax.data.labels import names_of
from fcn_jax.models.fcn import FCN

DTYPES = ("float32", "bfloat16")
Size = tuple[int, int] | tuple[()]
Palette = tuple[tuple[int, int, int], ...]


@struct.dataclass
class Network:
    """A fully convolutional network with its parameters.

    Attributes:
        params: ``{"body": ..., "head": ...}``, as `FCN` describes them.
        model: variant, classes, geometry, crop, input channels with their mean and
            scale, width and pool scales. Static.
        class_names: one name for each class, or (). Static.
        palette: one RGB colour in [0, 255] for each class, or () for the colours of
            PASCAL VOC. Static.
        size: the (height, width) that every image is resized to before the network
            sees it, or () where each image keeps its own size. Scores are resized back
            to the image. Static.
        channels: one name for each input channel, or (). Static.
        shown: the three channels, from 0, that pictures show as red, green and blue.
            Static.

    Raises:
        ValueError: if names or colours are not one for each class, ``size`` is not a
            height and a width, or ``channels`` or ``shown`` do not suit the input.

    Example::

        net = fcn_jax.load("runs/camvid")
        net = net.replace(params=jax.tree.map(jnp.zeros_like, net.params))
        logits = net.model.apply({"params": net.params}, images)  # Flax, no resizing
    """

    params: Any
    model: FCN = struct.field(pytree_node=False)
    class_names: tuple[str, ...] = struct.field(pytree_node=False, default=())
    palette: Palette = struct.field(pytree_node=False, default=())
    size: Size = struct.field(pytree_node=False, default=())
    channels: tuple[str, ...] = struct.field(pytree_node=False, default=())
    shown: tuple[int, int, int] = struct.field(pytree_node=False, default=(0, 1, 2))

    def __post_init__(self):
        if not isinstance(self.model, FCN):
            raise ValueError(f"model = {self.model!r} is not an fcn_jax.FCN")
        # Lists would not hash, and jax compares static fields by their hash.
        names, palette = tuple(self.class_names), tuple(map(tuple, self.palette))
        size, classes = tuple(self.size), self.model.num_classes
        for field, values in (("class_names", names), ("palette", palette)):
            if values and len(values) != classes:
                raise ValueError(
                    f"{field} has {len(values)} entries for {classes} classes; pass "
                    "one for each class, or ()"
                )
        _check_strings("class_names", names)
        for color in palette:
            if len(color) != 3 or not all(_is_int(c, 0, 255) for c in color):
                raise ValueError(f"palette has {color!r}, want (red, green, blue)")
        if size and (len(size) != 2 or not all(_is_int(side, 1) for side in size)):
            raise ValueError(f"size = {size!r} must be (height, width) or ()")
        channels, shown = tuple(self.channels), tuple(self.shown)
        _check_channels(channels, shown, self.model.in_channels)
        values = {"class_names": names, "palette": palette, "size": size}
        for field, value in (values | {"channels": channels, "shown": shown}).items():
            object.__setattr__(self, field, value)

    def astype(self, dtype: str) -> "Network":
        """Return the network with parameters of a dtype, in which it also computes.

        In bfloat16 it takes half the memory. It is faster on accelerators and on CPUs
        with AVX512_BF16 or AMX, and gives a few pixels another class. The logits stay
        float32. `fcn_jax.save` writes float32 in any case.

        Args:
            dtype: "float32" or "bfloat16".

        Raises:
            ValueError: if ``dtype`` is another.

        Example::

            labels = fcn_jax.predict(net.astype("bfloat16"), "cat.jpg")
        """
        check_dtype(dtype)
        net = self.replace(model=self.model.clone(dtype=jnp.dtype(dtype)))
        same = all(x.dtype == dtype for x in jax.tree.leaves(net))
        return net if same else _cast(net, dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, or "class 0", "class 1", ... where there are none."""
        return names_of(self.class_names, self.model.num_classes)

    @property
    def background(self) -> int | None:
        """The class that an overlay leaves clear, or None if it tints every class.

        It is class 0 where that is called "background", in any case, or has no name.
        """
        return 0 if self.names[0].lower() in ("background", "class 0") else None


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless a network can compute in a dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} is not one of {', '.join(DTYPES)}")


@partial(jax.jit, static_argnums=1)
def _cast(net: Network, dtype: str) -> Network:
    return jax.tree.map(lambda x: x.astype(dtype), net)


@struct.dataclass
class VGG16Weights:
    """The weights of a VGG-16 and the mean that they expect to be subtracted.

    Attributes:
        params: ``{"conv1_1": {"kernel", "bias"}, ...}``, as `VGG16` describes them,
            without fc6 and fc7 where the file has none, with the classifier fc8 where
            it has one.
        mean_rgb: what to subtract from RGB in [0, 255] before conv1_1. Static.
        source: the kind of file that the weights come from, for people. Static.

    Example::

        vgg16 = fcn_jax.load_vgg16("vgg16.npy")
        net = fcn_jax.init(jax.random.key(0), "fcn8s", num_classes=11, vgg16=vgg16)
    """

    params: Any
    mean_rgb: tuple[float, float, float] = struct.field(pytree_node=False)
    source: str = struct.field(pytree_node=False, default="")


def as_network(net: Network | Mapping[str, Any], model: FCN | None = None) -> Network:
    """Return a `Network`, whether it was given as one or as parameters with a model.

    Args:
        net: a `Network`, or the bare parameters of ``model``.
        model: the network that bare parameters belong to.

    Returns:
        The network. Bare parameters get no class names, no palette and no ``size``.

    Raises:
        ValueError: if bare parameters come without a model, a `Network` comes with one,
            or ``net`` is something else.
    """
    if isinstance(net, Network):
        if model is not None:
            raise ValueError(
                "model= belongs to bare parameters, and this Network has its own "
                "model: leave model= out, or pass net.replace(model=model)"
            )
        return net
    if isinstance(net, Mapping):
        if model is not None:
            return Network(net, model)
        raise ValueError(
            "bare parameters do not tell the mean, geometry, crop, pool scales and "
            "size that they were trained with: pass the Network that fcn_jax.load or "
            "fcn_jax.init gave, fcn_jax.Network(params, model), or model="
        )
    raise ValueError(
        f"net is a {type(net).__name__}, not a Network: pass what fcn_jax.load or "
        "fcn_jax.init gave, as the first argument"
    )


def _check_channels(channels: tuple, shown: tuple, count: int) -> None:
    """Raise ValueError unless names and shown channels suit a number of channels."""
    if channels and len(channels) != count:
        raise ValueError(
            f"channels has {len(channels)} entries for {count} input channels; pass a "
            "name for each, or ()"
        )
    _check_strings("channels", channels)
    if len(shown) != 3 or not all(_is_int(i, 0, count - 1) for i in shown):
        raise ValueError(
            f"shown = {shown!r} must be three input channels from 0 to {count - 1}, "
            "for red, green and blue"
        )


def _check_strings(field: str, values: tuple) -> None:
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{field} has {value!r}, want a string")


def _is_int(value: Any, low: int, high: float = float("inf")) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and low <= value <= high
