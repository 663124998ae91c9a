"""Survey a split before training: count its classes, find broken and odd examples."""

import contextlib
import functools
import hashlib
import itertools
import math
import operator
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_jax.data.labels import VOID
from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.data.sources import CheckedSource
from fcn_jax.data.statistics import Moments, image_moments, no_moments
from fcn_jax.progress import track

BALANCES = ("median_frequency", "inverse_log")  # Rules of `class_weights`.
_MAX_VOID_SHARE = 0.9  # An image with a larger share of void pixels gets a warning.


@dataclass
class Survey:
    """Hold what was found in a split; surveys of its parts add up with ``+=``."""

    class_pixels: np.ndarray  # [C] int64, pixels of each class.
    class_images: np.ndarray  # [C] int64, images in which each class occurs.
    class_image_pixels: np.ndarray  # [C] int64, pixels of those images, void included.
    channels: Moments  # Mean and deviation of each channel over all pixels.
    examples: int = 0  # Usable or not.
    void_pixels: int = 0
    # Of the usable examples: name, (H, W), hash of the pixels, share of void pixels.
    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    void_shares: list[float] = field(default_factory=list)
    # Values that are neither classes nor void, with the number of masks they are in.
    unknown_values: Counter[int] = field(default_factory=Counter)
    # One line for each fault of an example, and for each thing probably not intended.
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

    def most_void(self, n: int) -> list[tuple[str, float]]:
        """Return the n names of the largest void shares above 0, with the shares."""
        pairs = zip(self.names, self.void_shares, strict=True)
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        return [(name, share) for name, share in ranked[:n] if share > 0]

    @property
    def _pixels(self) -> int:
        return int(self.class_pixels.sum()) + self.void_pixels


def survey_source(
    source: Any,
    *,
    num_classes: int,
    in_channels: int = 3,
    threads: int = 4,
    seconds: float = math.inf,
    progress: bool = True,
) -> Survey:
    """Read and count the examples of a split; record errors instead of raising them.

    Args:
        source: the split, as `fcn_jax.data.sources.CheckedSource` takes it.
        num_classes: C, at most 255.
        in_channels: N, the channels of an image.
        threads: number of reading threads. The result does not depend on it.
        seconds: when to stop reading. With a limit, the examples are read in an order
            whose first part is spread over the whole split.
        progress: whether to show a progress bar.

    Returns:
        The survey; its names and lines are in the order of reading, which without a
        limit is that of the source.
    """
    source = CheckedSource(source, num_classes=num_classes, in_channels=in_channels)
    empty = functools.partial(_empty, num_classes, in_channels)
    n, total, end = len(source), empty(), time.monotonic() + seconds
    order = range(n) if math.isinf(seconds) else _spread(n)

    def survey_index(k: int) -> Survey:
        try:
            return _survey_example(source[order[k]], num_classes)
        except ValueError as error:
            problems = getattr(error, "problems", [str(error)])
            values = Counter(getattr(error, "label_values", ()))
        except Exception as error:  # A user's source may raise anything.
            problems = [f"example {order[k]}: {type(error).__name__}: {error}"]
            values = Counter()
        return empty(examples=1, problems=problems, unknown_values=values)

    with contextlib.closing(read_ahead(survey_index, n, threads=threads)) as parts:
        for part in track(parts, "survey", n, unit="image", shown=progress):
            total += part
            if time.monotonic() > end:
                break
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
    splits = [("split", "images", "read", "height x width", "mean", "std", "void")]
    columns = [["class", *class_names]]
    for split, survey in surveys.items():
        counts = str(survey.examples), str(len(survey.names))
        mean, std = (
            " ".join(f"{value:.1f}" for value in values)
            for values in (survey.channels.mean, survey.channels.std)
        )
        void = f"{100 * survey.void_share:.2f}%"
        splits.append((split, *counts, _size_range(survey.sizes), mean, std, void))
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


def _empty(num_classes: int, in_channels: int, **values: Any) -> Survey:
    counts = (np.zeros(num_classes, np.int64) for _ in range(3))
    return Survey(*counts, no_moments(in_channels), **values)


def _spread(n: int) -> list[int]:
    """Return range(n) in an order of which every beginning is spread over the whole."""
    step = round(0.618 * n) or 1  # The golden ratio leaves the most even gaps.
    while math.gcd(step, n) > 1:
        step += 1
    return [i * step % n for i in range(n)]


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
        channels=image_moments(image),
        examples=1,
        void_pixels=void,
        names=[name],
        sizes=[label.shape],
        digests=[digest.hexdigest()],
        void_shares=[void / label.size],
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
