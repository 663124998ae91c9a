"""The share of each class in an image, in words and as tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.shorten import printable
from fcn_jax.files import write_csv, write_json

_MOST_NAMED = 5  # Classes in a line; the others are counted.
_COLUMNS = ("image", "class", "pixels", "share", "mean_confidence")


class ClassShares:
    """Count the pixels of each class of an image and sum up their confidence.

    The confidence of a pixel is the probability that the network gives its class. It is
    not calibrated: networks tend to be surer than they are right.

    Args:
        num_classes: C.

    Attributes:
        pixels: [C] int64, of each class.
        confidence: [C] float64, the sum over these pixels.
    """

    def __init__(self, num_classes: int):
        self.pixels = np.zeros(num_classes, np.int64)
        self.confidence = np.zeros(num_classes)

    def add(self, labels: np.ndarray, confidence: np.ndarray) -> None:
        """Add a part of the image.

        Args:
            labels: [...] integers in [0, C).
            confidence: [...] float, in [0, 1].
        """
        labels, count = labels.ravel(), len(self.pixels)
        self.pixels += np.bincount(labels, minlength=count)
        # Weights are summed in float64.
        self.confidence += np.bincount(labels, confidence.ravel(), count)

    @property
    def shares(self) -> np.ndarray:
        """The share of each class in the area, [C] float64."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def mean_confidence(self) -> np.ndarray:
        """The mean confidence of the pixels of each class, [C]; nan if it has none."""
        nan = np.full(len(self.pixels), math.nan)
        return np.divide(self.confidence, self.pixels, out=nan, where=self.pixels > 0)


def in_words(found: ClassShares, class_names: Sequence[str]) -> str:
    """Return the shares of the classes that occur, such as "cat 71 %, dog 29 %"."""
    order = np.argsort(-found.shares, kind="stable")
    order = order[: np.count_nonzero(found.pixels)]
    words = [
        f"{printable(class_names[i])} {_percent(found.shares[i])}"
        for i in order[:_MOST_NAMED]
    ]
    rest = order[_MOST_NAMED:]
    if len(rest):
        words.append(f"{len(rest)} more {_percent(found.shares[rest].sum())}")
    return ", ".join(words)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"


def write_shares_csv(
    path: Path, found: Mapping[Path, ClassShares], class_names: Sequence[str]
) -> None:
    """Write a row for each image and class, also for classes that do not occur.

    Args:
        path: of the file, replaced as a whole.
        found: the shares of each image.
        class_names: C names.
    """
    rows = [
        (str(image), *values.values())
        for image, shares in found.items()
        for values in _rows(shares, class_names)
    ]
    write_csv(path, [_COLUMNS, *rows])


def write_shares_json(
    path: Path, found: Mapping[Path, ClassShares], class_names: Sequence[str]
) -> None:
    """Write what `write_shares_csv` does as JSON, a list of images."""
    images = [
        {"image": str(image), "classes": _rows(shares, class_names)}
        for image, shares in found.items()
    ]
    write_json(path, images)


def _rows(found: ClassShares, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the values of each class under the names of columns, None for nan."""
    columns = found.pixels, found.shares, found.mean_confidence
    values = zip(class_names, *(column.tolist() for column in columns), strict=True)
    return [
        {
            "class": name,
            "pixels": pixels,
            "share": share,
            "mean_confidence": None if math.isnan(confidence) else confidence,
        }
        for name, pixels, share, confidence in values
    ]
