"""From the values in a mask to classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_VALUES = 2**16  # A mask has at most 16 bits.


def to_classes(
    label: np.ndarray,
    where: str | Path,
    *,
    num_classes: int,
    ignore_label: int,
    label_map: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Maps the values of a mask and checks that they are classes or void.

    Args:
        label: [H, W] int32.
        where: the file or example, for errors.
        num_classes: C.
        ignore_label: the void value, as it is after the mapping.
        label_map: (value in the mask, value wanted) pairs; others stay.
    Returns:
        [H, W] int32 in [0, C) or ``ignore_label``.
    Raises:
        ValueError: naming the values that are neither.
    """
    if label_map:
        table = np.arange(_VALUES, dtype=np.int32)
        old, new = np.array(label_map).T
        table[old] = new
        inside = (label >= 0) & (label < _VALUES)
        label = np.where(inside, table[np.where(inside, label, 0)], label)
    bad = ((label < 0) | (label >= num_classes)) & (label != ignore_label)
    if not bad.any():
        return label
    values = np.unique(label[bad]).tolist()
    some = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
    if np.isin(label, (0, 255)).all():
        hint = "a mask of 0 and 255 is black and white: save its class as 1"
    else:
        hint = (
            "set data.ignore_label to the one that marks void pixels, if any, or map "
            "values to classes with data.label_map"
        )
    raise ValueError(
        f"{where}: label values {some} are neither in [0, {num_classes}) "
        f"(data.num_classes = {num_classes}) nor the void value (data.ignore_label = "
        f"{ignore_label}); {hint}"
    )
