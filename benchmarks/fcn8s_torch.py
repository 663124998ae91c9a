"""FCN-8s in plain PyTorch, written for speed, and the work that speed.py times with it.

Memory is channels last. Maps are upsampled bilinearly by `interpolate` with a border of
zeros, which equals the transposed convolution with a bilinear kernel and the centre
crop, and is faster.
"""

from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

CONVOLUTIONS = (2, 2, 3, 3, 3)  # In each block.
MEAN_RGB = (123.68, 116.779, 103.939)
DEVICE = "cpu" if jax.default_backend() == "cpu" else "cuda"

Runs = dict[str, Callable[[], torch.Tensor]]


class FCN8s(nn.Module):
    """Score every pixel: [B, 3, H, W] uint8 RGB in, [B, C, H, W] float32 out.

    Args:
        params: the parameters of an `fcn_jax.FCN`, which are copied.
        dropout: rate after fc6 and fc7 in training.
    """

    def __init__(self, params: dict, dropout: float = 0.5):
        super().__init__()
        for part in params.values():
            for layer, arrays in part.items():
                self.add_module(layer, convolution(**arrays))
        self.dropout = dropout
        mean = torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.to(DEVICE, memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.float() - self.mean.float()
        x = x.to(self.conv1_1.weight.dtype, memory_format=torch.channels_last)
        pools = {}
        for block, count in enumerate(CONVOLUTIONS, start=1):
            for i in range(1, count + 1):
                x = functional.relu(getattr(self, f"conv{block}_{i}")(x), inplace=True)
            x = pools[block] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        for layer in (self.fc6, self.fc7):
            x = functional.relu(layer(x), inplace=True)
            x = functional.dropout(x, self.dropout, self.training)
        x = self.score_fr(x).float()
        for block, score in ((4, self.score_pool4), (3, self.score_pool3)):
            skip = score(pools[block]).float()
            x = upsample(x, 2, skip.shape[2:]) + skip
        return upsample(x, 8, image.shape[2:])


def convolution(kernel: jax.Array, bias: jax.Array) -> nn.Conv2d:
    """Return the layer with a kernel HWIO and a bias."""
    side, _, channels, filters = kernel.shape
    layer = nn.Conv2d(channels, filters, side, padding=side // 2)
    weight = torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1))
    layer.load_state_dict({"weight": weight, "bias": torch.tensor(np.asarray(bias))})
    return layer


def upsample(x: torch.Tensor, factor: int, size: torch.Size) -> torch.Tensor:
    """Upsample a map bilinearly, fading to zero outside, and crop it at its centre."""
    tall, wide = (factor * side for side in x.shape[2:])
    top, left = factor + (tall - size[0]) // 2, factor + (wide - size[1]) // 2
    x = functional.interpolate(
        functional.pad(x, (1, 1, 1, 1)), scale_factor=factor, mode="bilinear"
    )
    return x[:, :, top : top + size[0], left : left + size[1]]


def synchronize() -> None:
    """Wait for everything that torch has begun."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def product(side: int, dtype: str) -> Callable[[], torch.Tensor]:
    """Return a run that multiplies two square matrices."""
    a = torch.ones(side, side, dtype=getattr(torch, dtype), device=DEVICE)
    return lambda: torch.matmul(a, a)


def scores(params: dict, image: np.ndarray, dtype: str) -> np.ndarray:
    """Return the scores [B, H, W, C] of images [B, H, W, 3]."""
    with torch.inference_mode(), autocast(dtype):
        logits = FCN8s(params).eval()(to_torch(image))
    return logits.permute(0, 2, 3, 1).cpu().numpy()


def inference(params: dict, image: np.ndarray, dtype: str, compiled: bool) -> Runs:
    """Return the runs that label images, with parameters cast before."""
    network = FCN8s(params).eval().to(getattr(torch, dtype))
    pixels = to_torch(image)

    def run(form: Callable) -> Callable[[], torch.Tensor]:
        return torch.inference_mode()(lambda: form(pixels).argmax(1))

    return {name: run(form) for name, form in forms(network, compiled).items()}


def training(
    params: dict,
    image: np.ndarray,
    label: np.ndarray,
    dtype: str,
    compiled: bool,
    *,
    rate: float,
    momentum: float,
    decay: float,
) -> Runs:
    """Return the runs that take a step of SGD, which decays kernels alone."""
    network = FCN8s(params).train()
    pixels, labels = to_torch(image), torch.from_numpy(label).long().to(DEVICE)
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1]},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0},
    ]
    options = {"lr": rate, "momentum": momentum, "weight_decay": decay}

    def run(form: Callable) -> Callable[[], torch.Tensor]:
        optimizer = torch.optim.SGD(groups, **options, fused=True)

        def step() -> torch.Tensor:
            with autocast(dtype):
                loss = functional.cross_entropy(form(pixels), labels, ignore_index=255)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        return step

    return {name: run(form) for name, form in forms(network, compiled).items()}


def forms(network: FCN8s, compiled: bool) -> dict[str, Callable]:
    """Return the ways to run a network: eager, and compiled if asked for."""
    eager = {"torch eager": network}
    return eager | {"torch.compile": torch.compile(network)} if compiled else eager


def to_torch(image: np.ndarray) -> torch.Tensor:
    """Return images [B, H, W, 3] as [B, 3, H, W] on the device, channels last."""
    return torch.from_numpy(image).to(DEVICE).permute(0, 3, 1, 2)


def autocast(dtype: str) -> torch.autocast:
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
