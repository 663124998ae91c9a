"""One pass over a split: every image at its full size into one confusion matrix."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.evaluation.metrics import confusion_matrix

Predict = Callable[[Iterable[tuple[int, np.ndarray]]], Iterable[tuple[int, np.ndarray]]]
Kept = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def evaluate(
    predict: Predict,
    source: Any,
    *,
    num_classes: int,
    ignore_label: int = 255,
    keep: Collection[int] = (),
    save: Callable[[str, np.ndarray], None] | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, list[Kept]]:
    """Compares the predictions for all images of a source with their labels.

    Args:
        predict: takes pairs of a number and an image [H, W, 3] uint8, gives pairs of
            the number and labels [H, W], in any order.
        source: ``__len__`` and ``__getitem__`` giving examples (fcn_jax.data.sources).
        num_classes: C.
        ignore_label: label of void pixels, which do not count.
        keep: indices of the examples to return, for pictures.
        save: is given the name and the labels of each prediction.
        progress: whether to show a progress bar.
    Returns:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
        kept: (name, image, label, prediction) of each index of ``keep``, in the order
            of the source.
    Raises:
        ValueError: if a prediction has not the shape of its label or is out of range;
            errors of the source pass through.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    kept, waiting = {}, {}

    def images() -> Iterator[tuple[int, np.ndarray]]:
        for i, example in enumerate(read_ahead(source.__getitem__, len(source))):
            waiting[i] = example
            yield i, example["image"]

    bar = tqdm(
        predict(images()),
        desc="evaluate",
        total=len(source),
        unit="image",
        disable=not progress,
    )
    for i, prediction in bar:
        example = waiting.pop(i)
        image, label, name = example["image"], example["label"], example["name"]
        prediction = np.asarray(prediction)
        confusion += confusion_matrix(
            label, prediction, num_classes=num_classes, ignore_label=ignore_label
        )
        if save:
            save(name, prediction)
        if i in keep:
            kept[i] = (name, image, label, prediction)
    return confusion, [kept[i] for i in sorted(kept)]


def spread(n: int, k: int) -> list[int]:
    """The middles of ``k`` equal parts of ``range(n)``; all of it if it is shorter."""
    k = min(n, k)
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]
