"""Fully convolutional networks FCN-32s, FCN-16s and FCN-8s on VGG-16."""

import dataclasses
import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models.convolution import Conv
from fcn_jax.models.extent import Extents, windows, zero_outside
from fcn_jax.models.geometry import (
    CAFFE_PAD,
    body_extents,
    caffe_offsets,
    crop_to,
    window,
)
from fcn_jax.models.upsampling import (
    bilinear_kernel,
    upsample_bilinear,
    upsample_learned,
)
from fcn_jax.models.vgg import VGG16, VGG_MEAN_RGB, is_number, scaled

# The pools each variant fuses with, coarse to fine.
SKIPS = {"fcn32s": (), "fcn16s": ("pool4",), "fcn8s": ("pool4", "pool3")}

_CHOICES = {
    "variant": tuple(SKIPS),
    "geometry": ("same", "caffe"),
    "crop": ("center", "corner"),
    "score_init": ("xavier", "zero"),
    "remat": ("none", "blocks"),
}
_CHECKS = {
    "num_classes": (
        lambda value: _is_whole(value) and 1 <= value < 2**31,  # Labels are int32.
        "a whole number from 1 to 2**31 - 1",
    ),
    "in_channels": (
        # A mean of a million numbers would take the compiler much memory and time.
        lambda value: _is_whole(value) and 3 <= value <= 10_000,
        "a whole number from 3 to 10,000: grey images are read as RGB",
    ),
    "pool_scales": (
        lambda value: _are_numbers(value, 2),
        "a tuple of 2 finite numbers",
    ),
    "dropout": (lambda value: is_number(value) and 0 <= value < 1, "in [0, 1)"),
    "learn_upsampling": (lambda value: isinstance(value, bool), "True or False"),
}
_SCORE_INITS = {
    "xavier": nn.initializers.xavier_uniform(),
    "zero": nn.initializers.zeros,
}


def _is_whole(value: Any) -> bool:
    """Tell whether a value is an integer."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _are_numbers(value: Any, length: int) -> bool:
    """Tell whether a value is a tuple of that many finite numbers."""
    right = isinstance(value, tuple) and len(value) == length
    return right and all(map(is_number, value))


def _check_channels(mean: Any, scale: Any, channels: int) -> None:
    """Raise ValueError unless mean and scale have a usable number for each channel."""
    wanted = f"a tuple of {channels} finite numbers, one for each of in_channels"
    if not _are_numbers(mean, channels):
        raise ValueError(f"mean = {mean!r} must be {wanted}")
    if scale != () and not (_are_numbers(scale, channels) and np.float32(scale).all()):
        raise ValueError(f"scale = {scale!r} must be {wanted}, none of them 0; or ()")


class Upsample(nn.Module):
    """Upsample by a transposed convolution.

    Attributes:
        factor: ratio of the output side to the input side.
        learned: whether the kernel is a parameter, which starts bilinear.
        padding: "SAME", or "VALID" for the uncropped output.
    """

    factor: int
    learned: bool = False
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsample [B, H, W, C] to [B, factor * H, factor * W, C], or uncropped."""
        if not self.learned:
            return upsample_bilinear(x, self.factor, self.padding)

        kernel = self.param(
            "kernel", lambda key: bilinear_kernel(self.factor, x.shape[-1])
        )
        return upsample_learned(x, kernel, self.factor, self.padding)


class Head(nn.Module):
    """Score the maps of the body and fuse the scores from coarse to fine.

    The attributes are those of `FCN`.
    """

    variant: str
    num_classes: int
    geometry: str
    crop: str
    dtype: Any
    score_init: str
    pool_scales: tuple[float, float]
    learn_upsampling: bool

    @nn.compact
    def __call__(
        self,
        maps: dict[str, jax.Array],
        shape: tuple[int, int],
        size: jax.Array | None,
        extents: Extents,
    ) -> jax.Array:
        """Score every pixel.

        Args:
            maps: "fc7" and the pools that the variant fuses with, from the body.
            shape: height and width of the batch of images.
            size: as for `FCN`.
            extents: from `fcn_jax.models.geometry.body_extents`; {} without ``size``.

        Returns:
            logits [B, H, W, C] float32.
        """
        caffe, skips = self.geometry == "caffe", SKIPS[self.variant]

        def score(name: str, x: jax.Array) -> jax.Array:
            init = _SCORE_INITS[self.score_init]
            conv = Conv(
                self.num_classes, 1, dtype=self.dtype, kernel_init=init, name=name
            )
            # The maps are small from here to the last upsampling: float32 is cheap.
            return conv(x).astype(jnp.float32)

        def upsample(x: jax.Array, factor: int, name: str) -> jax.Array:
            padding = "VALID" if caffe else "SAME"
            return Upsample(factor, self.learn_upsampling, padding, name=name)(x)

        *offsets, last_offset = caffe_offsets(skips)  # Geometry "same" ignores these.
        extent = extents.get("fc7")
        x = zero_outside(score("score_fr", maps["fc7"]), extent)
        stride = 32
        names = ("upscore2", "upscore_pool4")
        steps = zip(skips, self.pool_scales, names, offsets, strict=False)
        for pool, scale, name, offset in steps:
            skip = score(f"score_{pool}", maps[pool] * scale)
            x = upsample(x, 2, name)  # [B, 2h, 2w, C] or 2 more
            if caffe:  # The map of the pool is the larger one.
                x += window(skip, offset, offset, x.shape[1:3])
            else:
                x = crop_to(x, skip.shape[1:3], self.crop) + skip
            if size is not None:
                extent = 2 * extent + 2 if caffe else extents[pool]
            x = zero_outside(x, extent)
            stride //= 2
        name = "upscore" if stride == 32 else f"upscore{stride}"
        x = upsample(x, stride, name)
        if caffe:
            return window(x, last_offset, last_offset, shape)
        if size is None or self.crop == "corner":
            return crop_to(x, shape, self.crop)
        # An extent is a size over the stride, rounded up.
        return windows(x, (stride * extent - size) // 2, shape, stride // 2)


class FCN(nn.Module):
    """Score every pixel of an image by a fully convolutional network.

    The parameters are ``{"body": {"conv1_1": ..., ...}, "head": {"score_fr": ...,
    ...}}`` under the names of the original definition, kernels HWIO, all float32.

    Attributes:
        variant: "fcn32s", "fcn16s" or "fcn8s", by the stride of the finest scores.
        num_classes: C.
        geometry: "same", where every convolution keeps the size of its map, or "caffe",
            that of the authors' release, which the published weights need (see
            `fcn_jax.models.geometry`).
        crop: "center" or "corner", the part to keep of an upsampled map that is larger
            than the map it is added to; ignored in geometry "caffe".
        in_channels: channels of the image, from 3 to 10,000. The first three are RGB.
        mean: one number for each channel, subtracted from the image; it belongs to the
            weights of the body.
        scale: one number for each channel, which multiplies the image less its mean; ()
            for 1. The weights of a VGG-16 expect values of the size that RGB less its
            mean has, about 64.
        width: multiplier of the number of filters of the body, for thin networks.
        dropout: rate after fc6 and fc7 in training.
        dtype: dtype of the computation; the logits are always float32.
        score_init: "zero", as in the authors' release, or "xavier".
        pool_scales: factors of pool4 and pool3 before they are scored. The pools of a
            trained VGG-16 have values in the hundreds. To train fcn8s in one stage they
            must be small: (0.01, 0.0001) in the authors' release.
        learn_upsampling: whether the upsampling kernels are parameters, which start
            bilinear.
        remat: "blocks" recomputes most maps of the body in the backward pass to save
            memory; "none" keeps them.

    Reference: Long et al., arXiv:1411.4038, sections 3 and 4.
    """

    variant: str = "fcn8s"
    num_classes: int = 21
    geometry: str = "same"
    crop: str = "center"
    in_channels: int = 3
    mean: tuple[float, ...] = VGG_MEAN_RGB
    scale: tuple[float, ...] = ()
    width: float = 1.0
    dropout: float = 0.5
    dtype: Any = jnp.float32
    score_init: str = "zero"
    pool_scales: tuple[float, float] = (1.0, 1.0)
    learn_upsampling: bool = False
    remat: str = "none"

    def __post_init__(self):
        """Raise ValueError if a field has an invalid value."""
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(
                    f"{field} = {value!r} is not one of {', '.join(choices)}"
                )
        for field, (valid, wanted) in _CHECKS.items():
            value = getattr(self, field)
            if not valid(value):
                raise ValueError(f"{field} = {value!r} must be {wanted}")
        _check_channels(self.mean, self.scale, self.in_channels)
        scaled(1, self.width)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: jax.Array, size: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Score every pixel.

        Args:
            image: [B, H, W, in_channels] of integers or floats, with RGB in [0, 255]
                first; any H and W from 1.
            size: [B, 2] int32, the height and width of each image, from 1 to H and W;
                None if all are H x W. Within them the logits are those of the image
                alone. Beyond them ``image`` may hold anything, and the logits have no
                meaning.
            train: whether to apply dropout, which needs the "dropout" key.

        Returns:
            logits [B, H, W, C] float32.

        Raises:
            ValueError: if ``image`` has another number of channels.
        """
        if image.shape[-1] != self.in_channels:
            raise ValueError(
                f"image is {list(image.shape)}, but the network takes "
                f"{self.in_channels} channels: pass [B, H, W, {self.in_channels}]"
            )
        x = image.astype(jnp.float32) - jnp.asarray(self.mean, jnp.float32)
        if self.scale:
            x *= jnp.asarray(self.scale, jnp.float32)
        x = zero_outside(x, size)
        caffe = self.geometry == "caffe"
        extents = {} if size is None else body_extents(size, caffe=caffe)
        body = VGG16(
            width=self.width,
            dropout=self.dropout,
            dtype=self.dtype,
            pad=CAFFE_PAD if caffe else 1,
            fc6_padding="VALID" if caffe else "SAME",
            remat=self.remat,
            name="body",
        )
        head = Head(
            variant=self.variant,
            num_classes=self.num_classes,
            geometry=self.geometry,
            crop=self.crop,
            dtype=self.dtype,
            score_init=self.score_init,
            pool_scales=self.pool_scales,
            learn_upsampling=self.learn_upsampling,
            name="head",
        )
        maps = body(x, extents, train=train)
        return head(maps, image.shape[1:3], size, extents)


def fields_of(model: FCN) -> dict[str, Any]:
    """Return the fields of a model that belong to its weights, ready for JSON.

    ``dtype`` and ``remat`` are left out, because each computation may choose them.
    """
    hidden = {"dtype", "remat", "parent", "name"}
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in hidden
    }
