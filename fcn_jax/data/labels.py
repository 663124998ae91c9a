"""The labels of pixels: classes 0 to C - 1, and 255 for void."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.shorten import shorten

VOID = 255  # In every label that a source gives.
_VALUES = 2**16  # A mask has at most 16 bits.


def names_of(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Return the class names, or "class 0", "class 1", ... if there are none."""
    return tuple(class_names) or tuple(f"class {i}" for i in range(num_classes))


def check_num_classes(num_classes: int) -> None:
    """Raise ValueError if there are more classes than labels beside `VOID`."""
    if num_classes > VOID:
        raise ValueError(
            f"num_classes = {num_classes} must be at most {VOID}: the label {VOID} "
            "marks void pixels"
        )


class LabelValueError(ValueError):
    """Refuse the values of a mask.

    Attributes:
        values: the values that are neither classes nor void, sorted.
    """

    def __init__(self, message: str, values: Sequence[int]):
        super().__init__(message, values)  # All arguments, for pickle.
        self.values = [int(value) for value in values]

    def __str__(self) -> str:
        return self.args[0]


def classes_needed(
    values: Sequence[int], num_classes: int, ignore_label: int = VOID
) -> int | None:
    """Return the ``num_classes`` with which these values would be classes.

    Args:
        values: values that are no classes now, as `LabelValueError.values`.
        num_classes: C.
        ignore_label: the value of void pixels, which cannot become a class.

    Returns:
        The largest value + 1; None if more classes are not the way out, because
        there are no values, a value is negative, or some are 255 or more.
    """
    if not len(values) or min(values) < num_classes or max(values) >= VOID:
        return None
    needed = int(max(values)) + 1
    return None if num_classes <= ignore_label < needed else needed


def to_classes(
    label: np.ndarray,
    where: str | Path,
    *,
    num_classes: int,
    ignore_label: int = VOID,
    label_map: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
    """Map the values of a mask to classes and `VOID`, and refuse all other values.

    With two classes, a mask that has only 0 and 255, or only 255, may be black and
    white or have void pixels. It is refused unless ``label_map`` maps 255, such as
    ``((255, 1),)`` or ``((255, 255),)``, or ``ignore_label`` is another value.

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
        LabelValueError: if a value is neither a class nor ``ignore_label``: the error
            lists such values. Or if the mask may be black and white.
        ValueError: if ``num_classes`` is above 255.
    """
    check_num_classes(num_classes)
    if num_classes == 2 and ignore_label == VOID:
        _refuse_black_white(label, where, label_map)
    if label_map:
        label = _mapped(label, label_map)
    _check(label, where, num_classes, ignore_label, bool(label_map))
    if ignore_label == VOID:
        return label
    return np.where(label == ignore_label, VOID, label)


def check_classes(label: np.ndarray, where: str | Path, *, num_classes: int) -> None:
    """Raise `LabelValueError` unless each value is in [0, C) or `VOID`.

    Unlike in `to_classes`, 255 is void by definition, so it is never ambiguous.

    Args:
        label: [H, W] int32.
        where: the file or example, for errors.
        num_classes: C, at most 255.
    """
    check_num_classes(num_classes)
    _check(label, where, num_classes, VOID, False)


def _check(
    label: np.ndarray,
    where: str | Path,
    num_classes: int,
    ignore_label: int,
    is_mapped: bool,
) -> None:
    bad = ((label < 0) | (label >= num_classes)) & (label != ignore_label)
    if bad.any():
        values = np.unique(label[bad])
        hint = _way_out(label, values, num_classes, ignore_label, is_mapped)
        raise LabelValueError(
            f"{where}: label values {', '.join(shorten(values))} are neither in [0, "
            f"{num_classes}) (num_classes = {num_classes}) nor the void value "
            f"(ignore_label = {ignore_label}); {hint}",
            values.tolist(),
        )


def _refuse_black_white(
    label: np.ndarray, where: str | Path, label_map: Sequence[tuple[int, int]]
) -> None:
    white = label == VOID
    if any(old == VOID for old, _ in label_map) or not white.any():
        return
    if (white | (label == 0)).all():
        raise LabelValueError(
            f"{where}: the mask has only the values {'0 and ' * (not white.all())}255, "
            "so 255 may be the white of class 1 or void; set label_map=((255, 1),) if "
            "it is class 1. If it is void, set label_map=((255, 255),), or store void "
            "as another value and set ignore_label to that",
            [VOID],
        )


def _mapped(label: np.ndarray, label_map: Sequence[tuple[int, int]]) -> np.ndarray:
    table = np.arange(_VALUES, dtype=np.int32)
    old, new = np.array(label_map).T
    table[old] = new
    inside = (label >= 0) & (label < _VALUES)
    return np.where(inside, table[np.where(inside, label, 0)], label)


def _way_out(
    label: np.ndarray,
    values: np.ndarray,
    num_classes: int,
    ignore_label: int,
    is_mapped: bool,
) -> str:
    if np.isin(label, (0, 255)).all():
        return (
            "a mask of 0 and 255 is black and white: give white its class with "
            "label_map, such as ((255, 1),)"
        )
    hint = (
        "set ignore_label to the value that marks void pixels, if there is one, or map "
        "values to classes with label_map"
    )
    # A map may shift the values, and then the largest does not tell the number.
    needed = classes_needed(values, num_classes, ignore_label)
    return (
        f"raise num_classes to {needed}, {hint}" if needed and not is_mapped else hint
    )
