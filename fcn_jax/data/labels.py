"""The labels of pixels: classes 0 to C - 1, and 255 for void."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.shorten import shorten

VOID = 255  # In every label that a source gives.
_VALUES = 2**16  # A mask has at most 16 bits.


def check_num_classes(num_classes: int) -> None:
    """Raise ValueError if there are more classes than labels beside `VOID`."""
    if num_classes > VOID:
        raise ValueError(
            f"num_classes = {num_classes} must be at most {VOID}: the label {VOID} "
            "marks void pixels"
        )


def to_classes(
    label: np.ndarray,
    where: str | Path,
    *,
    num_classes: int,
    ignore_label: int = VOID,
    label_map: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Map the values of a mask to classes and `VOID`, and refuse all other values.

    Args:
        label: [H, W] int32, the values as the data set stores them.
        where: the file or example, for errors.
        num_classes: C, at most 255.
        ignore_label: the data set's value for void pixels.
        label_map: (old, new) pairs, applied first and all at once: pixels of value
            ``old`` become ``new``, a class or ``ignore_label``. Others stay.

    Returns:
        [H, W] int32 in [0, C), or `VOID`.

    Raises:
        ValueError: if ``num_classes`` is above 255, or if a value is neither a class
            nor ``ignore_label``: the error lists such values.
    """
    check_num_classes(num_classes)
    if label_map:
        label = _mapped(label, label_map)
    void = label == ignore_label
    bad = ((label < 0) | (label >= num_classes)) & ~void
    if bad.any():
        _refuse(label, np.unique(label[bad]), where, num_classes, ignore_label)
    return label if ignore_label == VOID else np.where(void, VOID, label)


def _mapped(label: np.ndarray, label_map: Sequence[tuple[int, int]]) -> np.ndarray:
    table = np.arange(_VALUES, dtype=np.int32)
    old, new = np.array(label_map).T
    table[old] = new
    inside = (label >= 0) & (label < _VALUES)
    return np.where(inside, table[np.where(inside, label, 0)], label)


def _refuse(
    label: np.ndarray,
    values: np.ndarray,
    where: str | Path,
    num_classes: int,
    ignore_label: int,
) -> None:
    if np.isin(label, (0, 255)).all():
        hint = "a mask of 0 and 255 is black and white: save its class as 1"
    else:
        hint = (
            "set ignore_label to the value that marks void pixels, if there is one, "
            "or map values to classes with label_map"
        )
    raise ValueError(
        f"{where}: label values {', '.join(shorten(values))} are neither in [0, "
        f"{num_classes}) (num_classes = {num_classes}) nor the void value "
        f"(ignore_label = {ignore_label}); {hint}"
    )
