"""Translate the names and layouts of PyTorch's VGG-16 and FCNs, without PyTorch.

Reference: ``torchvision.models.vgg16`` (dense classifier) and timm's ``vgg16`` (the
classifier as convolutions), both trained on RGB in [0, 1], normalised per channel;
github.com/wkentaro/pytorch-fcn, which has the released FCNs under the original names.
"""

import logging
from collections.abc import Mapping

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import (
    BODY,
    FCN_MEAN_RGB,
    SCORES,
    UPSAMPLINGS,
    WeightFile,
    from_chw,
    is_float,
    reversed_colors,
)

_log = logging.getLogger("fcn_jax")

_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])

# Positions of the convolutions in ``features``, where ReLUs and pools count too.
_FEATURES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_NAMES = {
    f"features.{position}": f"conv{block}_{number}"
    for block, positions in enumerate(_FEATURES, 1)
    for number, position in enumerate(positions, 1)
} | {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
    "pre_logits.fc1": "fc6",
    "pre_logits.fc2": "fc7",
    "head.fc": "fc8",
}
_NAMES |= {name: name for name in (*BODY, *SCORES, *UPSAMPLINGS)}

# The second filter of conv1_1 in Caffe's VGG-16, [I, H, W], blue first. Some copies of
# these weights use torchvision's names (vgg16_from_caffe.pth, vgg16-00b39a1b.pth) but
# need Caffe's pixels, and only the numbers show it. Read as torchvision's weights, they
# load and run, and the results are silently bad. Unlike a checksum, the numbers survive
# saving and fine-tuning. The first filter treats all colours alike, so it could not
# tell blue first from red first.
_CAFFE_FILTER = np.array(
    [
        [[0.1173, 0.1621, 0.1357], [0.1484, 0.2023, 0.1617], [0.1293, 0.1716, 0.1387]],
        [[0.0209, 0.0473, 0.0419], [0.0310, 0.0658, 0.0463], [0.0317, 0.0547, 0.0423]],
        [
            [-0.1727, -0.1704, -0.1544],
            [-0.1876, -0.1776, -0.1744],
            [-0.1660, -0.1667, -0.1570],
        ],
    ]
)
# A seventh of the root mean square of the filter; fine-tuning changes it by less.
_TOLERANCE = 0.02

_SOURCES = {
    "torchvision": "PyTorch state dict, RGB, O, I, H, W",
    "bgr": "PyTorch state dict of Caffe's weights, BGR, O, I, H, W",
    "rgb": "PyTorch state dict of Caffe's weights, RGB, O, I, H, W",
}


def from_state_dict(tensors: Mapping[str, np.ndarray]) -> WeightFile:
    """Turn the state dict of torchvision's or timm's VGG-16 or of an FCN into layers.

    torchvision's networks take ``(rgb / 255 - mean) / std``, which equals ``(rgb - 255
    * mean) / (255 * std)``: the divisor goes into conv1_1, and ``mean_rgb`` becomes
    ``255 * mean``. The pixels are Caffe's if the names are the original ones or conv1_1
    is that of Caffe's VGG-16.

    Args:
        tensors: arrays by their PyTorch names, with or without the "module." of
            ``DataParallel``. Those of other types than floats are left unused.

    Returns:
        The layers; none if the names belong to another network.
    """
    keys = {
        key.removeprefix("module."): key for key in tensors if is_float(tensors[key])
    }
    layers, used = {}, set()
    for torch_name, name in _NAMES.items():
        parts = {"kernel": f"{torch_name}.weight", "bias": f"{torch_name}.bias"}
        if name in UPSAMPLINGS:
            del parts["bias"]
        if keys.keys() >= set(parts.values()):
            layers[name] = {part: tensors[keys[key]] for part, key in parts.items()}
            layers[name]["kernel"] = from_chw(name, layers[name]["kernel"])
            used.update(keys[key] for key in parts.values())
    original = "conv1_1.weight" in keys
    pixels = "bgr" if original else "torchvision"
    if "conv1_1" in layers:
        kernel = layers["conv1_1"]["kernel"]
        pixels = _caffe_pixels(kernel) or pixels
        layers["conv1_1"]["kernel"] = _for_rgb(kernel, pixels)
    if "score_pool3" in layers:
        _log.warning(
            "a PyTorch file of an FCN-8s does not tell whether it was trained in one "
            "stage, with scaled pools; if so, use model.clone(pool_scales=(0.01, "
            "0.0001))"
        )
    mean_rgb = FCN_MEAN_RGB if original and "score_fr" in layers else VGG_MEAN_RGB
    if pixels == "torchvision":
        mean_rgb = tuple((255 * _MEAN).tolist())
    unused = tuple(key for key in tensors if key not in used)
    return WeightFile(layers, mean_rgb, _SOURCES[pixels], unused)


def _caffe_pixels(kernel: np.ndarray) -> str | None:
    """Return "bgr" or "rgb" if conv1_1 is that of Caffe's VGG-16, else None."""
    if kernel.shape[:3] != (3, 3, 3) or kernel.shape[3] < 2:
        return None
    second = kernel[..., 1].astype(np.float64).transpose(2, 0, 1)
    for pixels, planes in (("bgr", second), ("rgb", second[::-1])):
        if np.allclose(planes, _CAFFE_FILTER, rtol=0, atol=_TOLERANCE):
            return pixels
    return None


def _for_rgb(kernel: np.ndarray, pixels: str) -> np.ndarray:
    """Return the kernel of conv1_1 for RGB in [0, 255] less the mean."""
    if kernel.ndim != 4 or kernel.shape[2] != 3:
        return kernel
    if pixels == "torchvision":
        # Computed in float64, without an array of it.
        scaled = np.empty(kernel.shape, np.result_type(kernel, np.float32))
        return np.divide(kernel, (255 * _STD)[:, None], out=scaled, casting="same_kind")
    return reversed_colors("conv1_1", kernel) if pixels == "bgr" else kernel
