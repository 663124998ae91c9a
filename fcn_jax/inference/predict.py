"""From images to scores and labels, for arrays and for files."""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fcn_jax.data.sources import read_image
from fcn_jax.data.transforms import resize_image
from fcn_jax.models.fcn import FCN, model_of
from fcn_jax.visualize import overlay, save_image, save_label_png

Array = np.ndarray | jax.Array


def apply(
    params: dict[str, Any], image: Array, *, model: FCN | None = None
) -> jax.Array:
    """The scores of every class at every pixel.

    Compiled once for each model and image size; works inside jax.jit and jax.grad.

    Args:
        params: of the model.
        image: [H, W, 3] or [B, H, W, 3] uint8 or float, RGB in [0, 255].
        model: the network; read from ``params`` if None, with the default ``mean_rgb``,
            ``crop`` and ``pool_scales``.
    Returns:
        logits [H, W, C] or [B, H, W, C] float32.
    Raises:
        ValueError: if ``image`` is not such an array (the error says what to pass), or
            ``params`` are not those of an FCN.

    Example::

        logits = apply(params, np.asarray(Image.open("cat.jpg").convert("RGB")))
    """
    batch, single = as_batch(image)
    logits = _logits(model or model_of(params), params, batch)
    return logits[0] if single else logits


def predict(
    params: dict[str, Any], image: Array, *, model: FCN | None = None
) -> jax.Array:
    """The class of every pixel: the one of the highest score in `apply`.

    Args:
        params: of the model.
        image: [H, W, 3] or [B, H, W, 3] uint8 or float, RGB in [0, 255].
        model: as for `apply`.
    Returns:
        labels [H, W] or [B, H, W] int32 in [0, C).
    Raises:
        ValueError: as `apply` does.
    """
    batch, single = as_batch(image)
    labels = _labels(model or model_of(params), params, batch)
    return labels[0] if single else labels


def predict_at(
    model: FCN,
    params: dict[str, Any],
    image: np.ndarray,
    *,
    size: tuple[int, int] | tuple[()] = (),
) -> np.ndarray:
    """The class of every pixel of one image, which the network may see at another size.

    Args:
        model: the network.
        params: of the model.
        image: [H, W, 3] uint8, RGB.
        size: (h, w) to resize the image to as in training, whose scores are resized
            bilinearly to the image; () leaves the image as it is.
    Returns:
        labels [H, W] int32 in [0, C).
    Raises:
        ValueError: if a side of ``size`` is below 1.
    """
    if not size:
        return np.asarray(predict(params, image, model=model))
    logits = _logits(model, params, resize_image(image, size)[None])
    return np.asarray(_labels_at(logits, image.shape[:2])[0])


def predict_files(
    model: FCN,
    params: dict[str, Any],
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    size: tuple[int, int] | tuple[()] = (),
) -> list[tuple[Path, str]]:
    """Writes NAME.png, an index PNG, and NAME_overlay.png for each image NAME.*.

    Args:
        model: the network.
        params: of the model.
        paths: image files of any format that Pillow reads.
        out: folder of the results, made if missing.
        size: as for `predict_at`.
    Returns:
        (path, error) of each image that could not be read and was left out.
    Raises:
        ValueError: before anything is written, if two images would share a result or
            a result would replace an image.
    """
    targets = _targets([Path(path) for path in paths], Path(out))
    unread = []
    for path, (label_path, overlay_path) in tqdm(
        targets.items(), desc="predict", unit="image"
    ):
        try:
            image = read_image(path)
        except ValueError as error:
            unread.append((path, str(error)))
            continue
        labels = predict_at(model, params, image, size=size)
        save_label_png(label_path, labels)
        save_image(overlay_path, overlay(image, labels))
    return unread


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


def _targets(paths: list[Path], out: Path) -> dict[Path, tuple[Path, Path]]:
    """Where the results of each image go."""
    taken = {path.resolve(): path for path in paths}
    targets = {}
    for path in dict.fromkeys(paths):
        targets[path] = out / f"{path.stem}.png", out / f"{path.stem}_overlay.png"
        for target in targets[path]:
            if target.resolve() in taken:
                raise ValueError(
                    f"{target}, a result of {path}, would replace "
                    f"{taken[target.resolve()]} or a result of it: rename one of the "
                    "images, or choose another folder for the results"
                )
            taken[target.resolve()] = path
    return targets


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: FCN, params: dict[str, Any], batch: Array) -> jax.Array:
    return model.apply({"params": params}, batch)


@functools.partial(jax.jit, static_argnums=0)
def _labels(model: FCN, params: dict[str, Any], batch: Array) -> jax.Array:
    # In one program with the network, so that only labels leave the device.
    return _labels_at(_logits(model, params, batch), batch.shape[1:3])


# A program of its own: a new image size does not compile the network again.
@functools.partial(jax.jit, static_argnums=1)
def _labels_at(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    shape = (logits.shape[0], *size, logits.shape[-1])
    logits = jax.image.resize(logits, shape, "bilinear")
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
