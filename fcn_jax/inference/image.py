"""Is it an image? With what to pass instead where it is not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array


def as_batch(image: Array) -> tuple[Array, bool]:
    """Checks an image, or a batch of images of one size.

    Args:
        image: [H, W, 3] or [B, H, W, 3] of any integer or float dtype, RGB in [0, 255].
    Returns:
        batch: [B, H, W, 3], the same values.
        single: whether ``image`` had no batch axis.
    Raises:
        ValueError: if ``image`` is anything else, with what to pass instead.
    """
    if not isinstance(image, np.ndarray | jax.Array):
        raise ValueError(
            f"image is a {type(image).__name__}, not an array: pass "
            'np.asarray(image.convert("RGB")) of a PIL image, '
            "fcn_jax.data.sources.read_image(path) of a file, or np.asarray(image)"
        )
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(
            "image must be RGB [H, W, 3] or [B, H, W, 3] with no empty side, got "
            f"{list(image.shape)}{_hint(image.shape)}"
        )
    is_float = jnp.issubdtype(image.dtype, jnp.floating)
    if not (is_float or jnp.issubdtype(image.dtype, jnp.integer)):
        raise ValueError(
            f"image must be uint8 or float, RGB in [0, 255], got {image.dtype}"
        )
    if is_float:
        _warn_of_range(image)
    single = image.ndim == 3
    return (image[None] if single else image), single


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return ": for a grey image pass np.stack([image] * 3, axis=-1)"
    if len(shape) not in (3, 4) or 0 in shape:
        return ""
    if shape[-1] == 1:
        return ": for a grey image pass np.repeat(image, 3, axis=-1)"
    if shape[-1] == 4:
        return ": for an RGBA image pass image[..., :3]"
    if shape[-3] == 3:
        return ": for channels first pass np.moveaxis(image, -3, -1)"
    return ""


def _warn_of_range(image: Array) -> None:
    if isinstance(image, jax.core.Tracer):  # No values to look at yet.
        return
    with jax.ensure_compile_time_eval():  # A jax.jit around may close over the image.
        low, high = float(image.min()), float(image.max())
    if low < 0 or 0 < high <= 1:
        warnings.warn(
            f"image values lie in [{low:.3g}, {high:.3g}], but the network takes RGB "
            "in [0, 255] and subtracts the mean itself: pass the image as it was read",
            stacklevel=4,
        )
