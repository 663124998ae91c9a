"""VGG-16 from PyTorch's names and layouts, without PyTorch.

Reference: ``torchvision.models.vgg16`` (dense classifier) and timm's ``vgg16`` (the
classifier as convolutions), both trained on RGB in [0, 1], normalised per channel.
"""

from collections.abc import Mapping

import numpy as np

_MEAN = np.array([0.485, 0.456, 0.406])
_STD = np.array([0.229, 0.224, 0.225])

# The blocks' positions in ``features``, where ReLUs and pools count too.
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


def from_state_dict(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict, tuple[float, float, float]]:
    """Turns a state dict of torchvision's or timm's VGG-16 into layers.

    Those networks take ``(rgb / 255 - mean) / std``, which is ``(rgb - 255 * mean) /
    (255 * std)``: the divisor goes into conv1_1, the mean stays with the network.

    Args:
        tensors: float arrays by their PyTorch names; others are left out.
    Returns:
        ``(layers, mean_rgb)``: ``layers[name]`` is ``{"kernel": HWIO, "bias": [O]}``,
        dense layers as convolutions, for RGB in [0, 255] less ``mean_rgb``.
    """
    layers = {}
    for torch_name, name in _NAMES.items():
        if {f"{torch_name}.weight", f"{torch_name}.bias"} <= tensors.keys():
            kernel = _kernel(name, tensors[f"{torch_name}.weight"])
            layers[name] = {"kernel": kernel, "bias": tensors[f"{torch_name}.bias"]}
    return layers, tuple((255 * _MEAN).tolist())


def _kernel(name: str, weight: np.ndarray) -> np.ndarray:
    """Returns a layer's weights as the kernel of a convolution over RGB, HWIO.

    Args:
        name: the layer; fc6 sees 7x7, its dense columns are in C, H, W order.
        weight: [O, I, H, W] or, of a dense layer, [O, I*H*W]; other shapes are
            returned as they are.
    """
    side = 7 if name == "fc6" else 1
    if weight.ndim == 2 and weight.shape[1] % side**2 == 0:
        outputs, inputs = weight.shape[0], weight.shape[1] // side**2
        weight = weight.reshape(outputs, inputs, side, side)
    if weight.ndim != 4:
        return weight
    kernel = weight.transpose(2, 3, 1, 0)
    if name == "conv1_1" and kernel.shape[2] == 3:
        kernel = kernel / (255 * _STD)[:, None]
    return kernel
