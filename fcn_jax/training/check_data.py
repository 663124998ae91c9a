"""The check-data command: survey the splits that a config names, before a run."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.charts import class_chart
from fcn_jax.data.labels import names_of
from fcn_jax.data.loader import train_batches
from fcn_jax.data.shorten import shorten
from fcn_jax.data.survey import BALANCES, Survey, class_weights, survey_table
from fcn_jax.files import write_json
from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.rows import augmented_rows
from fcn_jax.training.augmentation import training_augment
from fcn_jax.training.config import Config, fields, with_normalization
from fcn_jax.training.faults import Faults, find_faults, open_splits, survey_splits
from fcn_jax.training.start import normalization_of
from fcn_jax.visualize import as_picture

_MAX_LINES = 20  # Printed lines of a kind; data.json has all of them.
_MAX_OVERLAPS = 10
_MOST_VOID = 5
_AUGMENTED = 12  # Training examples in augmented.png.


def check_data(
    config: Config, out: Path, *, augmented: bool = False, progress: bool = True
) -> int:
    """Read the training and the evaluation split whole and report what they hold.

    It prints tables, problems and warnings. It writes ``out/data.json``, which has all
    numbers and lines, and ``out/classes.png``.

    Args:
        config: the config of the run; its weights may be missing.
        out: folder for the results, created if it is missing.
        augmented: whether to draw the first training examples of the run, augmented, as
            ``out/augmented.png``.
        progress: whether to show progress bars.

    Returns:
        The exit status: 1 if anything would stop a run or spoil its figures, else 0.
        Warnings alone give 0.
    """
    sources, problems = open_splits(config)
    surveys = survey_splits(config, sources, progress=progress)
    faults = find_faults(sources, surveys)
    if augmented and config.data.train_split in sources:
        split = config.data.train_split
        problems += _draw_augmented(config, sources[split], surveys[split], out)
    faults = Faults(problems + faults.problems, faults.overlaps, faults.warnings)
    names = config.class_names()
    if len(names) != config.data.num_classes:
        names = names_of((), config.data.num_classes)
    if surveys:
        print(survey_table(surveys, names))
        _print_list("Most void", _most_void(surveys))
    _print_list("Problems", faults.problems)
    _print_list("Overlaps", shorten(faults.overlaps, _MAX_OVERLAPS))
    _print_list("Warnings", faults.warnings)
    if surveys:
        splits = {split: _record(survey) for split, survey in surveys.items()}
        record = {"class_names": names, **vars(faults), "splits": splits}
        write_json(out / "data.json", record)
        shares = {split: survey.shares for split, survey in surveys.items()}
        palette = config.data.palette
        class_chart(out / "classes.png", shares, names, palette=palette)
        print(f"\nWritten: {out}/data.json, {out}/classes.png")
    return 1 if faults.problems or faults.overlaps else 0


def _print_list(title: str, lines: list[str]) -> None:
    print("\n  ".join([f"\n{title}:", *shorten(lines or ["none"], _MAX_LINES)]))


def _most_void(surveys: dict[str, Survey]) -> list[str]:
    return [
        f"{split}: {name}, {100 * share:.1f}%"
        for split, survey in surveys.items()
        for name, share in survey.most_void(_MOST_VOID)
    ]


def _draw_augmented(
    config: Config, source: Any, survey: Survey, out: Path
) -> list[str]:
    """Draw the first training examples of the run; return what prevents it."""
    mean, scale = normalization_of(survey.channels, 3)
    config = with_normalization(config, VGG_MEAN_RGB + mean, (1.0, 1.0, 1.0, *scale))
    shown, pairs = fields(config.model, "mean", "scale"), []
    shown |= fields(config.data, "shown")
    try:
        augment = training_augment(config)

        def note(example: dict, rng: np.random.Generator) -> dict:
            example = augment(example, rng)
            picture = as_picture(example["image"], **shown)
            pairs.append((example["name"], picture, example["label"]))
            return example

        # Examples of a run do not depend on its batch size.
        options = fields(config, "seed") | fields(config.data, "replacement")
        batches = train_batches(source, note, batch_size=1, threads=0, **options)
        while len(pairs) < _AUGMENTED:
            next(batches)
    except ValueError as error:
        return [f"augmented.png: {error}"]
    names, palette = config.class_names(), config.data.palette
    augmented_rows(out / "augmented.png", pairs, names, palette=palette)
    print(f"Written: {out}/augmented.png")
    return []


def _record(survey: Survey) -> dict[str, Any]:
    record = {
        "images": survey.examples,
        "read": len(survey.names),
        "sizes": {f"{h}x{w}": n for (h, w), n in sorted(Counter(survey.sizes).items())},
        "mean": survey.channels.mean.tolist(),
        "std": survey.channels.std.tolist(),
        "void_pixels": survey.void_pixels,
        "void_shares": dict(survey.most_void(len(survey.names))),
        "class_pixels": survey.class_pixels.tolist(),
        "class_images": survey.class_images.tolist(),
        "class_image_pixels": survey.class_image_pixels.tolist(),
    }
    for balance in BALANCES if survey.class_pixels.any() else ():
        record[balance] = class_weights(survey, balance).round(6).tolist()
    return record
