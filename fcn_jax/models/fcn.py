"""Fully convolutional networks FCN-32s, FCN-16s and FCN-8s on VGG-16."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
from fcn_jax.models.vgg import VGG16, VGG_MEAN_RGB, scaled

# The pools each variant fuses with, coarse to fine.
SKIPS = {"fcn32s": (), "fcn16s": ("pool4",), "fcn8s": ("pool4", "pool3")}

_CHOICES = {
    "variant": tuple(SKIPS),
    "geometry": ("same", "caffe"),
    "crop": ("center", "corner"),
    "score_init": ("xavier", "zero"),
    "remat": ("none", "blocks"),
}
_SCORE_INITS = {
    "xavier": nn.initializers.xavier_uniform(),
    "zero": nn.initializers.zeros,
}


class Upsample(nn.Module):
    """Upsampling by a transposed convolution.

    Attributes:
        factor: how many times larger.
        learned: a dense kernel in the parameters, bilinear at first; else bilinear.
        padding: "SAME", or "VALID" for the uncut output.
    """

    factor: int
    learned: bool = False
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.learned:
            return upsample_bilinear(x, self.factor, self.padding)

        def init(key: jax.Array) -> jax.Array:
            return jnp.asarray(bilinear_kernel(self.factor, x.shape[-1]))

        kernel = self.param("kernel", init)
        return upsample_learned(x, kernel, self.factor, self.padding)


class Head(nn.Module):
    """Scores each map, then fuses them from coarse to fine. Attributes as in `FCN`."""

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
        caffe, skips = self.geometry == "caffe", SKIPS[self.variant]

        def score(name: str, x: jax.Array) -> jax.Array:
            init = _SCORE_INITS[self.score_init]
            conv = Conv(
                self.num_classes, 1, dtype=self.dtype, kernel_init=init, name=name
            )
            # Small maps from here to the last upsampling: sums deserve float32.
            return conv(x).astype(jnp.float32)

        def upsample(x: jax.Array, factor: int, name: str) -> jax.Array:
            padding = "VALID" if caffe else "SAME"
            return Upsample(factor, self.learn_upsampling, padding, name=name)(x)

        *offsets, last_offset = caffe_offsets(skips)  # Of no use in geometry "same".
        extent = extents.get("fc7")
        x = zero_outside(score("score_fr", maps["fc7"]), extent)
        stride = 32
        names = ("upscore2", "upscore_pool4")
        steps = zip(skips, self.pool_scales, names, offsets, strict=False)
        for pool, scale, name, offset in steps:
            skip = score(f"score_{pool}", maps[pool] * scale)
            x = upsample(x, 2, name)  # [B, 2h, 2w, C] or 2 more
            if caffe:  # The pool's map is the larger one.
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
        return windows(x, (stride * extent - size) // 2, shape)


class FCN(nn.Module):
    """A fully convolutional network: an image in, the scores of every pixel out.

    Parameters are ``{"body": VGG16's, "head": {"score_fr": ..., ...}}`` under the names
    of the original definition, kernels HWIO, all float32.

    Attributes:
        variant: "fcn32s", "fcn16s" or "fcn8s", by the stride of the finest scores.
        num_classes: C.
        geometry: "same", where every layer keeps its map's size; or "caffe", that of
            the authors' release, which the published weights need (see geometry.py).
        crop: "center" or "corner", what of an upsampled map is kept beside a smaller;
            of no effect in geometry "caffe".
        mean_rgb: subtracted from the image; it belongs to the weights of the body.
        width: multiplier of the body's filters, for thin networks.
        dropout: rate after fc6 and fc7 in training.
        dtype: of the computation; the logits are float32 always.
        score_init: "xavier", or "zero" as in the authors' release.
        pool_scales: factors on pool4 and pool3 before they are scored. Pools of a
            trained VGG-16 run into the hundreds; training fcn8s at once, not in stages,
            needs them small: (0.01, 0.0001) in the authors' release.
        learn_upsampling: the upsampling kernels are parameters too, bilinear at first.
        remat: "none", or "blocks" to keep less of the body for the gradient and compute
            it again.
    Reference: Long et al., arXiv:1411.4038, sections 3 and 4.
    """

    variant: str = "fcn8s"
    num_classes: int = 21
    geometry: str = "same"
    crop: str = "center"
    mean_rgb: tuple[float, float, float] = VGG_MEAN_RGB
    width: float = 1.0
    dropout: float = 0.5
    dtype: Any = jnp.float32
    score_init: str = "xavier"
    pool_scales: tuple[float, float] = (1.0, 1.0)
    learn_upsampling: bool = False
    remat: str = "none"

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(
                    f"{field} = {value!r} is not one of {', '.join(choices)}"
                )
        if self.num_classes < 1:
            raise ValueError(f"num_classes = {self.num_classes} must be at least 1")
        for field, length in (("mean_rgb", 3), ("pool_scales", 2)):
            value = getattr(self, field)
            if not isinstance(value, tuple) or len(value) != length:
                raise ValueError(f"{field} = {value!r} must be a tuple of {length}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout} must be in [0, 1)")
        scaled(1, self.width)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: jax.Array, size: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Scores every pixel.

        Args:
            image: [B, H, W, 3] uint8 or float, RGB in [0, 255]; any H and W from 1.
            size: [B, 2] int32, the height and width of each image, from 1 to H and W;
                beyond them ``image`` is filled up with anything, and the logits have no
                meaning. Within, they are those of the image alone. Without ``size``,
                every image has H and W.
            train: applies dropout; needs the "dropout" key.
        Returns:
            logits [B, H, W, C] float32.
        """
        x = image.astype(jnp.float32) - jnp.asarray(self.mean_rgb, jnp.float32)
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


def model_of(params: dict[str, Any], **fields: Any) -> FCN:
    """The network that parameters belong to, as far as they tell.

    Args:
        params: as `FCN` has them.
        fields: of `FCN`, where they differ from the defaults (mean_rgb, crop, ...).
    Returns:
        The model: variant, number of classes, width and learned upsampling are read
        from the layers present and their shapes.
    Raises:
        ValueError: if ``params`` are not those of an FCN.
    """
    try:
        head = params["head"]
        skips = tuple(pool for pool in ("pool4", "pool3") if f"score_{pool}" in head)
        variant = {pools: name for name, pools in SKIPS.items()}[skips]
        found = {
            "variant": variant,
            "num_classes": head["score_fr"]["bias"].shape[0],
            "width": params["body"]["conv1_1"]["bias"].shape[0] / 64,
            "learn_upsampling": any(name.startswith("upscore") for name in head),
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            "params are not those of an FCN: expected {'body': {'conv1_1': ...}, "
            f"'head': {{'score_fr': ...}}}}, but reading them failed at {error!r}; "
            "pass what fcn_jax.init or fcn_jax.load gave"
        ) from None
    return FCN(**{**found, **fields})


def fields_of(model: FCN) -> dict[str, Any]:
    """The fields of a model that belong to its weights, ready for JSON.

    ``dtype`` and ``remat`` are left out: they are choices of each computation.
    """
    hidden = {"dtype", "remat", "parent", "name"}
    return {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in hidden
    }
