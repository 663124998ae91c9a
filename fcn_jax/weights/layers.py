"""Define what readers share: layers, their names and layouts, their network, errors."""

import contextlib
import functools
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.upsampling import bilinear_weights
from fcn_jax.models.vgg import BLOCKS
from fcn_jax.network import Palette, Size

# The layers of the original definitions, and the factors of the upsamplings.
BODY = tuple(
    f"conv{block}_{i}"
    for block, (convolutions, _) in enumerate(BLOCKS, start=1)
    for i in range(1, convolutions + 1)
) + ("fc6", "fc7", "fc8")
SCORES = ("score_fr", "score_pool4", "score_pool3")
SCALES = ("scale_pool4", "scale_pool3")
UPSAMPLINGS = {"upscore": 32, "upscore2": 2, "upscore16": 16}
UPSAMPLINGS |= {"upscore_pool4": 2, "upscore8": 8}
NAMES = frozenset((*BODY, *SCORES, *SCALES, *UPSAMPLINGS))

# The BGR mean that the released FCNs subtract, as RGB. VGG-16's mean differs.
FCN_MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)


class WeightFile(NamedTuple):
    """The layers of a weight file, not yet compared with any network.

    Attributes:
        layers: by the names of `NAMES`, in the float type of the file. A convolution or
            a dense layer is ``{"kernel": [H, W, I, O], "bias": [O]}``; conv1_1 takes
            RGB less ``mean_rgb``. An upsampling is ``{"kernel": [k, k, I, O]}``: what
            each pixel adds around itself. A scale is ``{"scale": [C]}``.
        mean_rgb: what the network subtracts from RGB in [0, 255]. The mean and scale of
            further channels are in ``model``.
        source: the kind of file and its layout, for people to read.
        unused: the file's names for its other content.
        model, class_names, palette, size, channels, shown: as in `Network`, where the
            file tells them.
    """

    layers: dict[str, dict[str, np.ndarray]]
    mean_rgb: tuple[float, float, float]
    source: str
    unused: tuple[str, ...] = ()
    model: FCN | None = None
    class_names: tuple[str, ...] = ()
    palette: Palette = ()
    size: Size = ()
    channels: tuple[str, ...] = ()
    shown: tuple[int, int, int] = (0, 1, 2)


@contextlib.contextmanager
def naming_file(path: str | Path, kind: str) -> Iterator[None]:
    """Turn each error of the body into a ValueError naming the file and its kind."""
    try:
        yield
    except Exception as error:  # Garbled files cause errors of many types.
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path} is not a readable {kind}: {reason}") from error


def mapped(file: BinaryIO) -> memoryview:
    """Map an open file, so that its arrays are views of it and nothing is read twice.

    The map lives as long as the views do. An empty file raises ValueError.
    """
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_claim(what: str, claimed: int, size: int) -> None:
    """Raise ValueError if parts of a file claim more bytes than its size."""
    if claimed > size:
        raise ValueError(f"its {what} claim more bytes than it has")


def is_float(array: np.ndarray) -> bool:
    """Tell whether an array has a type that weights are stored in."""
    return array.dtype.name in ("bfloat16", "float16", "float32", "float64")


def from_hwc(name: str, kernel: np.ndarray) -> np.ndarray:
    """Return the kernel [H, W, I, O] for RGB of a layer with channels last, for BGR.

    A dense kernel [H*W*I, O] has its rows in H, W, I order, and fc6 sees 7x7. Other
    shapes are returned unchanged.
    """
    side = 7 if name == "fc6" else 1
    if kernel.ndim == 2 and kernel.shape[0] % side**2 == 0:
        return kernel.reshape(side, side, kernel.shape[0] // side**2, kernel.shape[1])
    return reversed_colors(name, kernel)


def from_chw(name: str, weight: np.ndarray) -> np.ndarray:
    """Return the kernel [H, W, I, O] of a layer with channels first.

    A convolution is [O, I, H, W] and an upsampling [I, O, k, k]. A dense weight
    [O, I*H*W] has its columns in I, H, W order, and fc6 sees 7x7. Other shapes are
    returned unchanged.
    """
    side = 7 if name == "fc6" else 1
    if weight.ndim == 2 and weight.shape[1] % side**2 == 0:
        weight = weight.reshape(len(weight), weight.shape[1] // side**2, side, side)
    if weight.ndim != 4:
        return weight
    return weight.transpose((2, 3, 0, 1) if name in UPSAMPLINGS else (2, 3, 1, 0))


def reversed_colors(name: str, kernel: np.ndarray) -> np.ndarray:
    """Return a kernel [H, W, I, O] for RGB made from one for BGR.

    Only conv1_1 sees the image; other layers are returned unchanged.
    """
    return kernel[:, :, ::-1] if name == "conv1_1" and kernel.ndim == 4 else kernel


def network_of(path: str | Path, content: WeightFile) -> FCN | None:
    """Return the FCN that a file holds, or None for a classifier without scores.

    If the file does not describe its network, the layers tell it. The geometry is then
    "caffe", as all released networks have it.

    Raises:
        ValueError: if the layers do not make any of the three variants; names ``path``.
    """
    try:
        return _network_of(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no network: {error}") from error


def _network_of(content: WeightFile) -> FCN | None:
    layers = content.layers
    if content.model or "score_fr" not in layers:
        return content.model
    skips = tuple(pool for pool in ("pool4", "pool3") if f"score_{pool}" in layers)
    variants = {pools: variant for variant, pools in SKIPS.items()}
    if skips not in variants:
        raise ValueError("it has score_pool3 but no score_pool4: no FCN is like that")
    if "bias" not in layers["score_fr"]:
        raise ValueError("score_fr has no bias: it tells the number of classes")
    filters = layers.get("conv1_1", {}).get("bias", np.empty(64)).size
    return FCN(
        variant=variants[skips],
        num_classes=layers["score_fr"]["bias"].size,
        geometry="caffe",
        mean=content.mean_rgb,
        width=filters / 64,
        pool_scales=(_scale(layers, "scale_pool4"), _scale(layers, "scale_pool3")),
        learn_upsampling=any(
            not _is_bilinear(layers[name].get("kernel"), factor)
            for name, factor in UPSAMPLINGS.items()
            if name in layers
        ),
    )


@functools.lru_cache
def shapes_of(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each parameter of a network, by its path."""
    channels = getattr(model, "in_channels", 3)  # A VGG-16 takes RGB.
    image = jax.ShapeDtypeStruct((1, 1, 1, channels), jnp.float32)

    def init(image: jax.Array) -> dict:
        # A key made out here would start JAX's backend, which takes 50 MB.
        return model.init(jax.random.key(0), image)

    params = jax.eval_shape(init, image)["params"]
    arrays = flatten_dict(params, sep="/")
    return MappingProxyType({name: array.shape for name, array in arrays.items()})


def _scale(layers: dict[str, dict[str, np.ndarray]], name: str) -> float:
    """Return the factor that all channels of a scale layer share, or 1 without it."""
    scale = layers.get(name, {}).get("scale", np.ones(1, np.float32)).reshape(-1)
    if not scale.size:
        raise ValueError(f"{name} is empty")
    with np.errstate(over="ignore"):  # a float64 too large counts as infinite
        factor = np.float32(scale[0])
    if not np.isfinite(factor):
        raise ValueError(f"{name} holds NaN or infinity")
    if (scale != scale[0]).any():
        raise ValueError(f"{name} has a factor for each channel, want one for all")
    return float(str(factor))  # 0.01 was meant, not 0.00999999977...


def _is_bilinear(kernel: np.ndarray | None, factor: int) -> bool:
    """Tell whether a kernel [k, k, C, C or 1] is bilinear and keeps classes apart."""
    weights = bilinear_weights(factor)
    bilinear = np.outer(weights, weights)[..., None]
    if kernel is None or kernel.ndim != 4 or kernel.shape[:2] != bilinear.shape[:2]:
        return False
    classes, outputs = kernel.shape[2:]
    # Class by class: a dense kernel to compare with would be as large as the file. With
    # groups, the only output of a class is the class itself.
    return outputs in (1, classes) and all(
        np.allclose(rows, bilinear * (np.arange(outputs) == i % outputs), atol=1e-6)
        for i, rows in enumerate(np.moveaxis(kernel, 2, 0))
    )
