"""FCN-8s in plain PyTorch, to be compared with: written for speed, by its own habits.

Channels last; bilinear upsampling by `interpolate` of the map with a border of zeros,
which is the transposed convolution with a bilinear kernel and centre crop, only faster.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
MEAN_RGB = (123.68, 116.779, 103.939)


class FCN8s(nn.Module):
    """[B, 3, H, W] uint8 RGB in, [B, C, H, W] float32 scores out."""

    def __init__(self, num_classes: int, dropout: float = 0.5):
        super().__init__()
        channels = 3
        for block, (convolutions, filters) in enumerate(BLOCKS, start=1):
            for i in range(1, convolutions + 1):
                conv = nn.Conv2d(channels, filters, 3, padding=1)
                self.add_module(f"conv{block}_{i}", conv)
                channels = filters
        self.fc6 = nn.Conv2d(512, 4096, 7, padding=3)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.score_fr = nn.Conv2d(4096, num_classes, 1)
        self.score_pool4 = nn.Conv2d(512, num_classes, 1)
        self.score_pool3 = nn.Conv2d(256, num_classes, 1)
        self.dropout = dropout
        mean = torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.float() - self.mean.float()
        x = x.to(self.conv1_1.weight.dtype, memory_format=torch.channels_last)
        pools = {}
        for block, (convolutions, _) in enumerate(BLOCKS, start=1):
            for i in range(1, convolutions + 1):
                x = functional.relu(getattr(self, f"conv{block}_{i}")(x), inplace=True)
            x = pools[block] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        for layer in (self.fc6, self.fc7):
            x = functional.relu(layer(x), inplace=True)
            x = functional.dropout(x, self.dropout, self.training)
        x = self.score_fr(x).float()
        for block, score in ((4, self.score_pool4), (3, self.score_pool3)):
            skip = score(pools[block]).float()
            x = upsampled(x, 2, skip.shape[2:]) + skip
        return upsampled(x, 8, image.shape[2:])


def upsampled(x: torch.Tensor, factor: int, size: torch.Size) -> torch.Tensor:
    """The map upsampled bilinearly, fading to zero outside, and cut to its centre."""
    tall, wide = (factor * side for side in x.shape[2:])
    top, left = factor + (tall - size[0]) // 2, factor + (wide - size[1]) // 2
    x = functional.interpolate(
        functional.pad(x, (1, 1, 1, 1)), scale_factor=factor, mode="bilinear"
    )
    return x[:, :, top : top + size[0], left : left + size[1]]


def load(model: FCN8s, params: dict) -> None:
    """Copies the parameters of `fcn_jax.models.fcn.FCN` of the same shapes."""
    state = {}
    for part in params.values():
        for layer, arrays in part.items():
            kernel = np.asarray(arrays["kernel"]).transpose(3, 2, 0, 1)
            state[f"{layer}.weight"] = torch.tensor(kernel)
            state[f"{layer}.bias"] = torch.tensor(np.asarray(arrays["bias"]))
    model.load_state_dict(state)
