"""One pass over a split: every image at its full size into one confusion matrix."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.data.sources import CheckedSource
from fcn_jax.evaluation.metrics import (
    confusion_matrix,
    iu_per_class,
    mean_iu,
    summarize,
)
from fcn_jax.inference.predict import predict_many
from fcn_jax.network import Network, as_network
from fcn_jax.processes import merge_shards, process_shard, sum_over_processes
from fcn_jax.progress import track
from fcn_jax.visualize import as_picture


class Example(NamedTuple):
    """A picture of an image, its label and the network's prediction, all of one size.

    The picture is [H, W, 3] uint8, which is the image itself if that is RGB.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray

    def shrunk(self, longest_side: int) -> "Example":
        """Return the example with sides of at most so many pixels, its labels uint8."""

        def shrink(pixels: np.ndarray, kind: Image.Resampling) -> np.ndarray:
            picture = Image.fromarray(pixels)
            picture.thumbnail((longest_side, longest_side), kind)
            return np.asarray(picture)

        maps = (each.astype(np.uint8) for each in (self.label, self.prediction))
        return Example(
            self.name,
            shrink(self.image, Image.Resampling.LANCZOS),
            # A label between two classes would be a third class.
            *(shrink(each, Image.Resampling.NEAREST) for each in maps),
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of a network on a split.

    Attributes:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
        class_names: C names.
        examples: some images of the split with their predictions, for pictures.
        scores: the mean IU of each image alone, in the order of the source, or None
            where all of its pixels are void.
    """

    confusion: np.ndarray
    class_names: tuple[str, ...]
    examples: tuple[Example, ...] = ()
    scores: tuple[float | None, ...] = ()

    @property
    def figures(self) -> dict[str, Any]:
        """The four metrics and the IU of each class, ready for JSON.

        "pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu" in [0, 1],
        and "iu": {class name: IU}. None stands for what no pixel tells.
        """
        figures = {k: _or_none(v) for k, v in summarize(self.confusion).items()}
        per_class = map(_or_none, iu_per_class(self.confusion))
        return figures | {"iu": dict(zip(self.class_names, per_class, strict=True))}


def evaluate(
    net: Network,
    source: Any,
    *,
    batch_size: int = 0,
    examples: int = 0,
    save: Callable[[str, np.ndarray], None] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Compare the predictions for all images of a source with their labels.

    Args:
        net: the network.
        source: anything with ``__len__`` and ``__getitem__(i)`` that gives (image,
            label), or a dict with "image", "label" and perhaps "name": an image
            [H, W, 3] uint8 RGB, or [H, W, N] uint8 or float32 for a network of N
            channels, and a label [H, W] of integers in [0, C), or 255 where the pixel
            does not count.
        batch_size: as for `predict_many`.
        examples: how many examples to return, spread evenly over the source.
        save: is called with the name and the labels of each prediction.
        progress: whether to show a progress bar.

    Returns:
        The confusion matrix and what follows from it.

    Raises:
        ValueError: if ``net`` is not a `Network`, or an example is none of the above,
            naming it.

    Example::

        figures = fcn_jax.evaluate(net, [(image, label)]).figures
        print(figures["mean_iu"])
    """
    net = as_network(net)
    classes = net.model.num_classes
    channels = net.model.in_channels
    source = CheckedSource(source, num_classes=classes, in_channels=channels)
    keep, waiting, kept = set(_spread(len(source), examples)), {}, {}
    confusion = np.zeros((classes, classes), np.int64)
    scores: list[float | None] = [None] * len(source)

    def images() -> Iterator[tuple[int, np.ndarray]]:
        for i, example in enumerate(read_ahead(source.__getitem__, len(source))):
            waiting[i] = example
            yield i, example["image"]

    results = predict_many(net, images(), batch_size=batch_size, progress=progress)
    results = track(results, "evaluate", len(source), unit="image", shown=progress)
    for i, prediction in results:
        image, label, name = (waiting[i][key] for key in ("image", "label", "name"))
        del waiting[i]
        counts = confusion_matrix(label, prediction, num_classes=classes)
        confusion += counts
        scores[i] = _or_none(mean_iu(counts))
        if save:
            save(name, prediction)
        if i in keep:
            picture = as_picture(image, net.model.mean, net.model.scale, net.shown)
            kept[i] = Example(name, picture, label, prediction)
    shown = tuple(kept[i] for i in sorted(kept))
    return Evaluation(confusion, net.names, shown, tuple(scores))


def evaluate_over_processes(net: Network, source: Any, **options: Any) -> Evaluation:
    """Evaluate with all processes of a run, each with its share of the images.

    All processes must call this. It takes what `evaluate` does. The result is the same
    in every process, but for its examples, which are of the process's own share.
    """
    own = evaluate(net, process_shard(source), **options)
    scores = [math.nan if score is None else score for score in own.scores]
    merged = map(_or_none, merge_shards(scores, len(source)))
    confusion = sum_over_processes(own.confusion)
    return dataclasses.replace(own, confusion=confusion, scores=tuple(merged))


def evaluate_example(net: Network, source: Any, i: int) -> Example:
    """Return an example of a source with its prediction; takes what `evaluate` does."""
    model = net.model
    source = CheckedSource(
        source, num_classes=model.num_classes, in_channels=model.in_channels
    )
    (example,) = evaluate(net, [source[i]], examples=1, progress=False).examples
    return example


def _spread(n: int, k: int) -> list[int]:
    """Return the middles of ``k`` equal parts of ``range(n)``, or all of it."""
    k = min(n, k)
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def _or_none(value: float) -> float | None:
    """Return None for NaN, which is not JSON."""
    return None if math.isnan(value) else float(value)
