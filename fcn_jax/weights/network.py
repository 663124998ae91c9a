"""Which network do the layers of a file make?"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.upsampling import bilinear_kernel, kernel_side
from fcn_jax.weights.content import UPSAMPLINGS, Content


def network_of(content: Content) -> FCN | None:
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
