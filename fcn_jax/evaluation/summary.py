"""What a report page shows of an evaluation, and the file that keeps it."""

import base64
import dataclasses
import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.evaluation.evaluate import Evaluation, Example, evaluate_example
from fcn_jax.evaluation.report import ranked_images
from fcn_jax.files import reading, replacing
from fcn_jax.network import Network
from fcn_jax.visualize import colorize

_LONGEST_SIDE = 480  # Of a picture, in pixels.
_DATA_URI = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


@dataclasses.dataclass(frozen=True)
class RankedImage:
    """An image with its place among all images, by the mean IU of its own pixels.

    Attributes:
        rank: "best", "median" or "worst".
        name: of the image.
        mean_iu: in [0, 1].
        image: a small picture of it, as a data URI.
        label: likewise of its true classes, in colour.
        prediction: likewise of its predicted classes.
    """

    rank: str
    name: str
    mean_iu: float
    image: str
    label: str
    prediction: str

    def __post_init__(self):
        for uri in (self.image, self.label, self.prediction):
            if not _DATA_URI.fullmatch(uri):
                raise ValueError(f"{uri[:40]!r} is not a picture in a data URI")


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a network on a split, as a report page shows it.

    Attributes:
        split: that was evaluated.
        images: their number.
        class_names: C names.
        colors: C RGB colours.
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
        ranked: the best, the median and the worst image.
    """

    split: str
    images: int
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    confusion: np.ndarray
    ranked: tuple[RankedImage, ...]

    @functools.cached_property
    def figures(self) -> dict[str, Any]:
        """The figures of the `Evaluation`."""
        return Evaluation(self.confusion, self.class_names).figures


def summarize_evaluation(
    net: Network, source: Any, found: Evaluation, *, split: str
) -> Summary:
    """Return the summary of an evaluation, with small pictures of three images.

    Only these images are read and predicted again.

    Args:
        net: the network.
        source: the images that ``found.scores`` belong to.
        found: what `evaluate` returned.
        split: the name of the split.
    """
    colors = colorize(np.arange(len(found.class_names)), net.palette).tolist()
    ranked = []
    for i, rank in _ranks(found.scores).items():
        example = evaluate_example(net, source, i)
        ranked.append(_ranked_image(rank, found.scores[i], example, net))
    return Summary(
        split,
        len(found.scores),
        found.class_names,
        tuple(map(tuple, colors)),
        found.confusion,
        tuple(ranked),
    )


def _ranks(scores: tuple[float | None, ...]) -> dict[int, str]:
    """Return the indices of the best, the median and the worst score."""
    order = ranked_images(scores)
    if not order:
        return {}
    places = {"best": order[0], "worst": order[-1], "median": order[len(order) // 2]}
    ranks: dict[int, str] = {}
    for rank, i in places.items():  # One or two images have no median.
        ranks.setdefault(i, rank)
    return {i: ranks[i] for i in order if i in ranks}


def _ranked_image(
    rank: str, score: float, example: Example, net: Network
) -> RankedImage:
    small = example.shrunk(_LONGEST_SIDE)
    maps = []
    for labels in (small.label, small.prediction):
        colored = Image.fromarray(labels)
        colored.putpalette(colorize(np.arange(256), net.palette).tobytes())
        maps.append(_data_uri(colored, "png", optimize=True))
    picture = _data_uri(Image.fromarray(small.image), "jpeg", quality=85)
    return RankedImage(rank, example.name, score, picture, *maps)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def write_summary(path: Path, summary: Summary) -> None:
    """Write a summary as JSON."""
    values = dataclasses.asdict(summary) | {"confusion": summary.confusion.tolist()}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_summary(path: Path) -> Summary:
    """Read a summary that `write_summary` wrote.

    Raises:
        ValueError: if the file is damaged.
        OSError: if it is missing or cannot be read.
    """
    with reading(path):
        content = path.read_bytes()
    try:
        values = json.loads(content)
        confusion = np.array(values.pop("confusion"), np.int64)
        ranked = tuple(RankedImage(**image) for image in values.pop("ranked"))
        values["class_names"] = tuple(map(str, values["class_names"]))
        values["colors"] = tuple(tuple(map(int, c)) for c in values["colors"])
        summary = Summary(confusion=confusion, ranked=ranked, **values)
        classes = len(summary.class_names)
        if confusion.shape != (classes, classes) or len(summary.colors) != classes:
            raise ValueError("its sizes do not fit together")
        return summary
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
