"""Augmentation of the training images as a config describes it."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np

from fcn_jax.data.labels import check_classes
from fcn_jax.data.transforms import augment
from fcn_jax.training.config import Config, fields, make_model

Transform = Callable[[dict, np.random.Generator], dict]


def training_augment(config: Config, transform: Transform | None = None) -> Transform:
    """Return the augmentation of a config, from example to training example.

    Args:
        config: the config of the run; for more channels than RGB, with their mean.
        transform: own transform, applied last; None takes that of
            ``config.data.transform``.

    Raises:
        ValueError: as `own_transform` does.
    """
    own = own_transform(config, transform)
    return functools.partial(
        augment,
        mean=make_model(config).mean,
        transform=own
        and functools.partial(
            _apply_checked, transform=own, num_classes=config.data.num_classes
        ),
        **fields(config.data, "size", "rotation", "scale", "crop", "flip", "jitter"),
    )


def own_transform(
    config: Config, transform: Transform | None = None
) -> Transform | None:
    """Return the own transform of a run, ready for its reading processes, or None.

    Args:
        config: the config of the run. ``config.data.transform`` names a function as
            "package.module:function"; its module is imported, if need be from the
            current directory.
        transform: a callable to take instead.

    Raises:
        ValueError: if the function is not found or cannot be called, or there are
            reading processes and it cannot be sent to them.
    """
    if transform is None and config.data.transform:
        transform = _import(config.data.transform)
    if transform is None:
        return None
    if not callable(transform):
        raise ValueError(f"transform is {transform!r}, want a function")
    if config.data.workers:
        try:
            cloudpickle.dumps(transform)
        except Exception as error:  # Pickling runs code of the user.
            raise ValueError(
                f"the transform {_name(transform)} cannot be sent to reading processes "
                f"({error}): make it a function of a module, or set "
                f"config.data.workers = 0 instead of {config.data.workers}"
            ) from error
    return transform


def _import(name: str) -> Any:
    """Return the attribute that "package.module:attribute" names."""
    module_name, _, attribute = name.partition(":")
    # The folder of a script is importable, but not the directory it is run from.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    where = f"config.data.transform = {name!r}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # An import runs code of the user.
        raise ValueError(
            f"{where}: the module {module_name} cannot be imported from "
            f"{os.getcwd()}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(
            f"{where}: the module {module.__file__} has no function {attribute}"
            if found is None
            else f"{where}: {attribute} is a {type(found).__name__}, want a function"
        )
    return found


def _apply_checked(
    example: dict, rng: np.random.Generator, *, transform: Transform, num_classes: int
) -> dict:
    """Apply an own transform to copies, and refuse a result of another form."""
    image, name = example["image"], example.get("name", "")
    # Copies, because a transform may write into arrays that belong to the source.
    copies = {"image": image.copy(), "label": example["label"].copy()}
    where = f"example {name}: what the transform {_name(transform)} returned"
    found = transform(example | copies, rng)
    if not (isinstance(found, dict) and {"image", "label"} <= found.keys()):
        raise ValueError(
            f'{where} is a {type(found).__name__}, want a dict with "image" and "label"'
        )
    new, label = np.asarray(found["image"]), np.asarray(found["label"])
    channels = image.shape[2]
    if new.shape != (*label.shape, channels) or new.dtype != image.dtype:
        raise ValueError(
            f"{where} has an image {list(new.shape)} {new.dtype} and a label "
            f"{list(label.shape)}: want [H, W, {channels}] {image.dtype} and [H, W]"
        )
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise ValueError(
            f"{where} has a label {list(label.shape)} {label.dtype}, want [H, W] of "
            "integers"
        )
    if new.dtype != np.uint8 and not np.isfinite(new).all():
        raise ValueError(f"{where} has an image with NaN or infinity")
    label = label.astype(np.int32)
    check_classes(label, where, num_classes=num_classes)
    return example | {"image": new, "label": label}


def _name(transform: Transform) -> str:
    name = getattr(transform, "__qualname__", None)
    return f"{transform.__module__}:{name}" if name else repr(transform)
