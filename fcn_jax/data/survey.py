"""Survey a split before training: count its classes, find broken and odd examples."""

import hashlib
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from fcn_jax.data.labels import VOID
from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.data.sources import CheckedSource

BALANCES = ("median_frequency", "inverse_log")  # Rules of `class_weights`.
_MAX_VOID_SHARE = 0.9  # An image with a larger share of void pixels gets a warning.


@dataclass
class Survey:
    """Hold what was found in a split; surveys of its parts add up with ``+=``."""

    class_pixels: np.ndarray  # [C] int64, pixels of each class.
    class_images: np.ndarray  # [C] int64, images in which each class occurs.
    class_image_pixels: np.ndarray  # [C] int64, pixels of those images, void included.
    color_sums: np.ndarray  # [3] int64, sums of red, green and blue over all pixels.
    examples: int = 0  # Usable or not.
    void_pixels: int = 0
    # Of the usable examples: name, (H, W), hash of the pixels.
    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    # One line for each unusable example, and for each thing probably not intended.
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Survey") -> "Survey":
        """Add the counts and lines of more examples."""
        for name, value in vars(other).items():
            setattr(self, name, operator.iadd(getattr(self, name), value))
        return self

    @property
    def shares(self) -> np.ndarray:
        """Return each class's share of the labelled pixels: [C] float."""
        return self.class_pixels / max(1, self.class_pixels.sum())

    @property
    def void_share(self) -> float:
        """Return the share of void pixels in all pixels."""
        return self.void_pixels / max(1, self._pixels)

    @property
    def mean_rgb(self) -> tuple[float, float, float]:
        """Return the mean colour of all pixels, in [0, 255]; black without pixels."""
        return tuple((self.color_sums / max(1, self._pixels)).tolist())

    @property
    def _pixels(self) -> int:
        return int(self.class_pixels.sum()) + self.void_pixels


def survey_source(
    source: Any, *, num_classes: int, threads: int = 4, progress: bool = True
) -> Survey:
    """Read and count every example of a split; record errors instead of raising them.

    Args:
        source: the split, as `fcn_jax.data.sources.CheckedSource` takes it.
        num_classes: C, at most 255.
        threads: number of reading threads. The result does not depend on it.
        progress: whether to show a progress bar.

    Returns:
        The survey; its names and lines are in the order of the source.
    """
    source = CheckedSource(source, num_classes=num_classes)

    def survey_index(i: int) -> Survey:
        try:
            return _survey_example(source[i], num_classes)
        except ValueError as error:
            problem = str(error)
        except Exception as error:  # A user's source may raise anything.
            problem = f"example {i}: {type(error).__name__}: {error}"
        return _empty(num_classes, examples=1, problems=[problem])

    n, total = len(source), _empty(num_classes)
    parts = read_ahead(survey_index, n, threads=threads)
    for part in tqdm(parts, "survey", total=n, unit="image", disable=not progress):
        total += part
    total.warnings = [*_absent_classes(total), *total.warnings, *_duplicates(total)]
    return total


def overlaps(surveys: Mapping[str, Survey]) -> list[str]:
    """List the images that two splits share, by their pixels: one line for each."""
    lines = []
    for (split_a, a), (split_b, b) in itertools.combinations(surveys.items(), 2):
        names = dict(zip(a.digests, a.names, strict=True))
        lines += [
            f"{names[digest]} ({split_a}) and {name} ({split_b}) have the same pixels"
            for name, digest in zip(b.names, b.digests, strict=True)
            if digest in names
        ]
    return lines


def survey_table(surveys: Mapping[str, Survey], class_names: Sequence[str]) -> str:
    """Format surveys as two tables: of the splits, and of the classes in each."""
    splits = [("split", "images", "read", "height x width", "mean RGB", "void")]
    columns = [["class", *class_names]]
    for split, survey in surveys.items():
        counts = str(survey.examples), str(len(survey.names))
        mean = " ".join(f"{value:.1f}" for value in survey.mean_rgb)
        void = f"{100 * survey.void_share:.2f}%"
        splits.append((split, *counts, _size_range(survey.sizes), mean, void))
        columns.append([f"{split} pixels", *map(_percent, survey.shares)])
        columns.append([f"{split} images", *map(str, survey.class_images)])
    return "\n".join([*_aligned(zip(*splits, strict=True)), "", *_aligned(columns)])


def class_weights(survey: Survey, balance: str) -> np.ndarray:
    """Compute class weights for the loss, so that rare classes count more.

    - "median_frequency": the median of all classes' frequencies over the frequency of
      the class, which is its share of the pixels of the images in which it occurs.
      Reference: Eigen and Fergus, arXiv:1411.4734; SegNet, arXiv:1511.00561.
    - "inverse_log": 1 / ln(1.02 + share of the labelled pixels), in [1.4, 50.5].
      Reference: ENet, Paszke et al., arXiv:1606.02147.

    Args:
        survey: survey of the training split.
        balance: one of `BALANCES`.

    Returns:
        [C] float; "median_frequency" gives 0 to a class that never occurs.

    Raises:
        ValueError: if ``balance`` is unknown or no class occurs.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance = {balance!r} is not one of {BALANCES}")
    if not survey.class_pixels.any():
        raise ValueError("no class occurs in the split, so no weights can be computed")
    if balance == "inverse_log":
        return 1 / np.log(1.02 + survey.shares)
    occurs = survey.class_pixels > 0
    frequency = survey.class_pixels[occurs] / survey.class_image_pixels[occurs]
    weights = np.zeros(len(occurs))
    weights[occurs] = np.median(frequency) / frequency
    return weights


def _empty(num_classes: int, **values: Any) -> Survey:
    sizes = (num_classes, num_classes, num_classes, 3)
    return Survey(*(np.zeros(n, np.int64) for n in sizes), **values)


def _survey_example(example: dict, num_classes: int) -> Survey:
    image, label, name = example["image"], example["label"], example["name"]
    class_pixels = np.bincount(label[label != VOID], minlength=num_classes)
    void, warnings = label.size - int(class_pixels.sum()), []
    if void == label.size:
        warnings = [f"{name}: all pixels are void"]
    elif void > _MAX_VOID_SHARE * label.size:
        warnings = [f"{name}: {100 * void / label.size:.1f}% of the pixels are void"]
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
    digest.update(str(image.shape).encode())
    return Survey(
        class_pixels,
        class_images=(class_pixels > 0).astype(np.int64),
        class_image_pixels=label.size * (class_pixels > 0),
        # Summing over rows first is several times as fast as over all pixels at once.
        color_sums=image.sum(axis=0, dtype=np.int64).sum(axis=0),
        examples=1,
        void_pixels=void,
        names=[name],
        sizes=[label.shape],
        digests=[digest.hexdigest()],
        warnings=warnings,
    )


def _absent_classes(survey: Survey) -> list[str]:
    absent = np.flatnonzero(survey.class_pixels == 0).tolist()
    if not absent or not survey.names:
        return []
    count = f"{len(absent)} of {len(survey.class_pixels)} classes never occur"
    return [f"{count}: {', '.join(map(str, absent))}"]


def _duplicates(survey: Survey) -> list[str]:
    first: dict[str, str] = {}
    lines = []
    for name, digest in zip(survey.names, survey.digests, strict=True):
        if digest in first:
            lines.append(f"{first[digest]} and {name} have the same pixels")
        first.setdefault(digest, name)
    return lines


def _size_range(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "-"
    low, high, n = np.min(sizes, axis=0), np.max(sizes, axis=0), len(set(sizes))
    sides = (f"{a}..{b}" if a < b else str(a) for a, b in zip(low, high, strict=True))
    return " x ".join(sides) + (f" ({n} sizes)" if n > 1 else "")


def _percent(share: float) -> str:
    if share == 0:
        return "never"
    return f"{100 * share:.3f}%" if share >= 1e-5 else "<0.001%"


def _aligned(columns: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table: the first column flush left, the others right."""
    padded: list[list[str]] = []
    for column in columns:
        align, width = str.rjust if padded else str.ljust, max(map(len, column))
        padded.append([align(cell, width) for cell in column])
    return ["  ".join(cells) for cells in zip(*padded, strict=True)]
