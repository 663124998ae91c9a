"""A look at every image and label of a split before it is trained on."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fcn_jax.data.labels import to_classes
from fcn_jax.data.read_ahead import read_ahead

_MOST_VOID = 0.9  # Share of void pixels from which an image is suspicious.
_MOST_OVERLAPS = 10  # Lines.


@dataclass
class Survey:
    """What a split holds. Of examples that cannot be read, only ``problems`` tells.

    Args:
        class_pixels: [C] int64, pixels of each class.
        class_images: [C] int64, images in which each class occurs.
        class_image_pixels: [C] int64, pixels of these images, void ones among them.
        color_sums: [3] int64, sums of the red, green and blue of all pixels.
        images: number of images, read or not.
        void_pixels: number of pixels with the void label.
        sizes: number of images of each (H, W).
        names: of the images.
        digests: of the images, the same for the same pixels.
        problems: one line for each example that cannot be used.
        warnings: one line for each thing that is allowed, but hardly meant.
    """

    class_pixels: np.ndarray
    class_images: np.ndarray
    class_image_pixels: np.ndarray
    color_sums: np.ndarray
    images: int = 0
    void_pixels: int = 0
    sizes: Counter = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def shares(self) -> np.ndarray:
        """[C] float, share of each class in the pixels that are not void."""
        return self.class_pixels / max(1, self.class_pixels.sum())

    @property
    def void_share(self) -> float:
        """Share of void in all pixels."""
        return self.void_pixels / max(1, self._pixels)

    @property
    def mean_rgb(self) -> tuple[float, float, float]:
        """Mean colour of all pixels, in [0, 255]; black if there are none."""
        return tuple((self.color_sums / max(1, self._pixels)).tolist())

    @property
    def _pixels(self) -> int:
        return int(self.class_pixels.sum()) + self.void_pixels


class _Look(NamedTuple):
    """What an example adds to a survey: the same counts, of one image."""

    name: str
    size: tuple[int, int]
    digest: str
    color_sums: np.ndarray
    class_pixels: np.ndarray


def check_source(
    source: Any,
    *,
    num_classes: int,
    ignore_label: int = 255,
    threads: int = 4,
    progress: bool = True,
) -> Survey:
    """Reads all of a split, whatever is wrong with it.

    Args:
        source: ``__len__`` and ``__getitem__`` giving examples (fcn_jax.data.sources).
        num_classes: C.
        ignore_label: label of void pixels.
        threads: that read; the result does not depend on their number.
        progress: whether to show a progress bar.
    Returns:
        The survey, lines and names in the order of the source.
    """

    def look(i: int) -> _Look | str:
        try:
            return _look(source[i], num_classes, ignore_label)
        except ValueError as error:
            return str(error)
        except Exception as error:  # Of a source that is not ours: it may raise any.
            return f"example {i}: {type(error).__name__}: {error}"

    counts = (np.zeros(n, np.int64) for n in (num_classes,) * 3 + (3,))
    survey = Survey(*counts, images=len(source))
    looks = read_ahead(look, len(source), threads=threads)
    bar = tqdm(
        looks, desc="check", total=len(source), unit="image", disable=not progress
    )
    for found in bar:
        if isinstance(found, str):
            survey.problems.append(found)
        else:
            _add(survey, found)
    survey.warnings = [*_absent(survey), *survey.warnings, *_twins(survey)]
    return survey


def overlaps(surveys: Mapping[str, Survey]) -> list[str]:
    """The images that two splits share, by their pixels.

    Args:
        surveys: of each split.
    Returns:
        A line for each image of the later split; above ten, the last counts the rest.
    """
    lines = []
    splits = list(surveys)
    for i, split in enumerate(splits):
        for earlier in splits[:i]:
            lines += _shared(earlier, surveys[earlier], split, surveys[split])
    return shortened(lines, _MOST_OVERLAPS)


def report(surveys: Mapping[str, Survey], class_names: Sequence[str]) -> str:
    """The surveys as two tables: the splits, and their classes.

    Args:
        surveys: of each split.
        class_names: C names.
    Returns:
        Lines of text. Shares of classes are those of the pixels that are not void.
    """
    splits = [("split", "images", "read", "height x width", "mean RGB", "void")]
    for split, survey in surveys.items():
        mean = " ".join(f"{value:.1f}" for value in survey.mean_rgb)
        counts = (str(survey.images), str(len(survey.names)))
        void = f"{100 * survey.void_share:.2f}%"
        splits.append((split, *counts, _sizes(survey.sizes), mean, void))
    classes = [("class", *(f"{s} {w}" for s in surveys for w in ("pixels", "images")))]
    columns = []
    for survey in surveys.values():
        columns += [map(_percent, survey.shares), map(str, survey.class_images)]
    classes += zip(class_names, *columns, strict=True)
    return "\n".join([*_table(splits), "", *_table(classes)])


def shortened(lines: Sequence[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], f"... and {more} more"] if more > 0 else list(lines)


def _look(example: dict, num_classes: int, ignore_label: int) -> _Look:
    image, label, name = example["image"], example["label"], example["name"]
    if image.shape != (*label.shape, 3):
        raise ValueError(
            f"{name}: an image {image.shape} and its label {label.shape} must be "
            "[H, W, 3] and [H, W]"
        )
    label = to_classes(label, name, num_classes=num_classes, ignore_label=ignore_label)
    valid = label[label != ignore_label]
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
    digest.update(str(image.shape).encode())
    # Whole rows first: several times as fast as a sum over pixels.
    color_sums = image.sum(axis=0, dtype=np.int64).sum(axis=0)
    class_pixels = np.bincount(valid, minlength=num_classes)
    return _Look(name, label.shape, digest.hexdigest(), color_sums, class_pixels)


def _add(survey: Survey, look: _Look) -> None:
    pixels = look.size[0] * look.size[1]
    void = pixels - int(look.class_pixels.sum())
    survey.class_pixels += look.class_pixels
    survey.class_images += look.class_pixels > 0
    survey.class_image_pixels += np.where(look.class_pixels > 0, pixels, 0)
    survey.color_sums += look.color_sums
    survey.void_pixels += void
    survey.sizes[look.size] += 1
    survey.names.append(look.name)
    survey.digests.append(look.digest)
    if void == pixels:
        survey.warnings.append(f"{look.name}: all pixels are void")
    elif void > _MOST_VOID * pixels:
        share = 100 * void / pixels
        survey.warnings.append(f"{look.name}: {share:.1f}% of the pixels are void")


def _absent(survey: Survey) -> list[str]:
    absent = np.flatnonzero(survey.class_pixels == 0).tolist()
    if not absent or not survey.names:
        return []
    what = f"{len(absent)} of {len(survey.class_pixels)} classes never occur"
    return [f"{what}: {', '.join(map(str, absent))}"]


def _twins(survey: Survey) -> list[str]:
    first: dict[str, str] = {}
    lines = []
    for name, digest in zip(survey.names, survey.digests, strict=True):
        if digest in first:
            lines.append(f"{first[digest]} and {name} have the same pixels")
        first.setdefault(digest, name)
    return lines


def _shared(split_a: str, a: Survey, split_b: str, b: Survey) -> list[str]:
    names = dict(zip(a.digests, a.names, strict=True))
    return [
        f"{names[digest]} ({split_a}) and {name} ({split_b}) have the same pixels"
        for name, digest in zip(b.names, b.digests, strict=True)
        if digest in names
    ]


def _sizes(sizes: Counter) -> str:
    if not sizes:
        return "-"
    low, high = np.min(list(sizes), axis=0), np.max(list(sizes), axis=0)
    if len(sizes) == 1:
        return f"{low[0]} x {low[1]}"
    ranges = (f"{a}..{b}" if a < b else str(a) for a, b in zip(low, high, strict=True))
    return f"{' x '.join(ranges)} ({len(sizes)} sizes)"


def _percent(share: float) -> str:
    if share == 0:
        return "never"
    return f"{100 * share:.3f}%" if share >= 1e-5 else "<0.001%"


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns, the first flush left and the others right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{c:>{w}}" for c, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return lines
