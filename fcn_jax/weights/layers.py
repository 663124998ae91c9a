"""What a reader hands over: the layers of a file, in this library's layout."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.upsampling import bilinear_kernel, kernel_side
from fcn_jax.models.vgg import BLOCKS

# The names of the original definitions; of the upsamplings with their factors.
BODY = tuple(
    f"conv{block}_{i}"
    for block, (convolutions, _) in enumerate(BLOCKS, start=1)
    for i in range(1, convolutions + 1)
) + ("fc6", "fc7", "fc8")
SCORES = ("score_fr", "score_pool4", "score_pool3")
SCALES = ("scale_pool4", "scale_pool3")
UPSAMPLINGS = {
    "upscore": 32,
    "upscore2": 2,
    "upscore16": 16,
    "upscore_pool4": 2,
    "upscore8": 8,
}
NAMES = frozenset((*BODY, *SCORES, *SCALES, *UPSAMPLINGS))

# BGR mean that the released FCNs subtract, as RGB: of 2012's images, not of VGG's.
FCN_MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)


class WeightFile(NamedTuple):
    """The layers of a weight file, not yet compared with any network.

    Attributes:
        layers: by name, those of `NAMES`. Of a convolution or a dense layer
            ``{"kernel": HWIO, "bias": [O]}``, that of conv1_1 for RGB less
            ``mean_rgb``, in the float type of the file; of an upsampling
            ``{"kernel": [k, k, I, O]}``, what each pixel adds around itself; of a scale
            ``{"scale": [C]}``.
        mean_rgb: what the network subtracts from RGB in [0, 255].
        source: the kind of file and its layout, for people to read.
        unused: names of what else the file holds, in the file's own words.
        model: the network, where the file describes it.
        class_names: one for each class, or none.
    """

    layers: dict[str, dict[str, np.ndarray]]
    mean_rgb: tuple[float, float, float]
    source: str
    unused: tuple[str, ...] = ()
    model: FCN | None = None
    class_names: tuple[str, ...] = ()


def from_hwc(name: str, kernel: np.ndarray) -> np.ndarray:
    """The kernel of a convolution over RGB, of a layer that has channels last and BGR.

    Args:
        name: the layer; fc6 sees 7x7, its dense rows are in H, W, C order.
        kernel: [H, W, I, O] or, of a dense layer, [H*W*I, O]; other shapes are
            returned as they are.
    Returns:
        [H, W, I, O].
    """
    area = _area(name)
    if kernel.ndim == 2 and kernel.shape[0] % area == 0:
        side = math.isqrt(area)
        return kernel.reshape(side, side, kernel.shape[0] // area, kernel.shape[1])
    return reversed_colors(name, kernel)


def from_chw(name: str, weight: np.ndarray) -> np.ndarray:
    """The kernel of a convolution, of a layer that has channels first.

    Args:
        name: the layer; fc6 sees 7x7, its dense columns are in C, H, W order.
        weight: [O, I, H, W]; of a dense layer [O, I*H*W]; of an upsampling
            [I, O, k, k]; other shapes are returned as they are.
    Returns:
        [H, W, I, O].
    """
    area = _area(name)
    if weight.ndim == 2 and weight.shape[1] % area == 0:
        side = math.isqrt(area)
        weight = weight.reshape(weight.shape[0], weight.shape[1] // area, side, side)
    if weight.ndim != 4:
        return weight
    return weight.transpose((2, 3, 0, 1) if name in UPSAMPLINGS else (2, 3, 1, 0))


def reversed_colors(name: str, kernel: np.ndarray) -> np.ndarray:
    """The kernel [H, W, I, O] for RGB of one for BGR, if it sees the image."""
    return kernel[:, :, ::-1] if name == "conv1_1" and kernel.ndim == 4 else kernel


def _area(name: str) -> int:
    """Positions that a dense layer sees."""
    return 49 if name == "fc6" else 1


def network_of(content: WeightFile) -> FCN | None:
    """The FCN that a file holds, or None where it has no scores: a classifier.

    Files of other programs hold layers and no description; the released networks all
    have the geometry "caffe".

    Raises:
        ValueError: if the layers do not make any of the three variants.
    """
    layers = content.layers
    if content.model or "score_fr" not in layers:
        return content.model
    skips = tuple(pool for pool in ("pool4", "pool3") if f"score_{pool}" in layers)
    variants = {pools: variant for variant, pools in SKIPS.items()}
    if skips not in variants:
        raise ValueError("it has score_pool3 but no score_pool4: no FCN is like that")
    filters = layers.get("conv1_1", {}).get("bias", np.empty(64)).size
    return FCN(
        variant=variants[skips],
        num_classes=layers["score_fr"]["bias"].size,
        geometry="caffe",
        mean_rgb=content.mean_rgb,
        width=filters / 64,
        pool_scales=(_scale(layers, "scale_pool4"), _scale(layers, "scale_pool3")),
        learn_upsampling=any(
            not _is_bilinear(layers[name]["kernel"], factor)
            for name, factor in UPSAMPLINGS.items()
            if name in layers
        ),
    )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of a network, by its path in them."""
    image = jnp.zeros([1, 1, 1, 3])
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def _scale(layers: dict[str, dict[str, np.ndarray]], name: str) -> float:
    """The one factor of a scale layer, 1 where there is none."""
    scale = layers.get(name, {}).get("scale", np.ones(1, np.float32))
    if not scale.size or (scale != scale[0]).any():
        raise ValueError(f"{name} has a factor for each channel, want one for all")
    return float(str(np.float32(scale[0])))  # 0.01 was meant, not 0.00999999977...


def _is_bilinear(kernel: np.ndarray, factor: int) -> bool:
    """Whether an upsampling kernel is bilinear on each class and zero between them.

    Args:
        kernel: [k, k, I, O]; with groups, one for each class, [k, k, C, 1].
        factor: of the upsampling.
    """
    k = kernel_side(factor)
    if kernel.ndim != 4 or kernel.shape[:2] != (k, k):
        return False
    classes = kernel.shape[-1]
    if classes not in (1, kernel.shape[2]):
        return False
    return np.allclose(kernel, bilinear_kernel(factor, classes), atol=1e-6)
