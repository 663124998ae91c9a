"""What is wrong with the data of a run, found before the run."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fcn_jax.data.labels import VOID, classes_needed
from fcn_jax.data.shorten import shorten
from fcn_jax.data.survey import Survey, overlaps, survey_source
from fcn_jax.training.config import Config, check, make_source

SECONDS = 10.0  # For the check at the start of a run.
_MAX_LINES = 20
_MIN_THREADS = 4

_log = logging.getLogger("fcn_jax")


@dataclass(frozen=True)
class Faults:
    """Hold one line for each fault.

    Attributes:
        problems: what stops a run.
        overlaps: the images that two splits share, which spoil its figures.
        warnings: what is probably not intended.
    """

    problems: list[str]
    overlaps: list[str]
    warnings: list[str]


def open_splits(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Return the sources of the splits that can be read, and what is wrong."""
    data, sources, problems = config.data, {}, []
    try:
        check(replace(config, init_from=""))  # Weights may come later.
    except ValueError as error:
        problems += str(error).split("\n")  # A line for each field.
    if not 1 <= data.num_classes <= VOID:
        return {}, problems
    for split in dict.fromkeys((data.train_split, data.eval_split)):
        try:
            sources[split] = make_source(config, split, strict=False)
        except ValueError as error:
            problems.append(str(error))
    if data.train_split == data.eval_split:
        problems.append(
            f"config.data.train_split and eval_split are both {data.train_split!r}: a "
            "score on the training images says nothing about other images"
        )
    return sources, list(dict.fromkeys(problems))  # Both splits may fail alike.


def survey_splits(
    config: Config,
    sources: Mapping[str, Any],
    *,
    seconds: float = math.inf,
    progress: bool = True,
) -> dict[str, Survey]:
    """Survey each split, all of it or what can be read within some seconds."""
    return {
        split: survey_source(
            source,
            num_classes=config.data.num_classes,
            in_channels=config.model.in_channels,
            threads=max(_MIN_THREADS, config.data.threads),
            seconds=seconds / len(sources),
            progress=progress,
        )
        for split, source in sources.items()
    }


def find_faults(sources: Mapping[str, Any], surveys: Mapping[str, Survey]) -> Faults:
    """Return the faults of the splits: in their pairing, their files, and together."""
    problems, warnings = [], []
    for split, survey in surveys.items():
        found = [
            *getattr(sources[split], "problems", ()),
            *_too_few_classes(survey),
            *survey.problems,
        ]
        if survey.names and not survey.class_pixels.any():
            found.append("all pixels of all images are void")
        problems += [f"{split}: {line}" for line in found]
        warnings += [f"{split}: {line}" for line in survey.warnings]
    return Faults(problems, overlaps(surveys), warnings)


def check_quickly(
    config: Config, sources: Mapping[str, Any], *, seconds: float = SECONDS
) -> None:
    """Check the part of the data that can be read within some seconds.

    Overlaps and warnings go to the log.

    Args:
        config: the config of the run.
        sources: the training and the validation images by the name of their split.
        seconds: for all splits together.

    Raises:
        ValueError: if anything found stops the run; it lists the problems.
    """
    surveys = survey_splits(config, sources, seconds=seconds)
    faults = find_faults(sources, surveys)
    if faults.problems:
        listed = "\n  ".join(shorten(faults.problems, _MAX_LINES))
        raise ValueError(
            f"the data have {len(faults.problems)} faults that stop a run:\n  {listed}"
            "\nCheck all files with: python -m fcn_jax check-data --config FILE --out "
            "DIR"
        )
    for line in shorten(faults.overlaps + faults.warnings, _MAX_LINES):
        _log.warning("%s", line)


def _too_few_classes(survey: Survey) -> list[str]:
    """Tell in one line how many classes the masks of a split ask for."""
    classes = len(survey.class_pixels)
    # A value of 255 is about void, not about more classes.
    counts = sorted((v, n) for v, n in survey.unknown_values.items() if v < VOID)
    needed = classes_needed([value for value, _ in counts], classes)
    if needed is None:
        return []
    listed = shorten([f"{value} (masks: {count})" for value, count in counts])
    return [
        f"the masks hold values beyond the {classes} classes: {', '.join(listed)}; "
        f"raise num_classes to {needed}, or see label_map and ignore_label"
    ]
