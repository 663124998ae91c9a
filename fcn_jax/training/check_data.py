"""The check-data command: survey the splits that a config names, before a run."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.loader import train_batches
from fcn_jax.data.shorten import shorten
from fcn_jax.data.survey import (
    BALANCES,
    Survey,
    class_weights,
    overlaps,
    survey_source,
    survey_table,
)
from fcn_jax.files import write_json
from fcn_jax.training.augmentation import training_augment
from fcn_jax.training.config import Config, check, fields, make_source
from fcn_jax.visualize import augmented_rows, class_chart

_MAX_LINES = 20  # Printed lines of problems or warnings; data.json has all of them.
_MAX_OVERLAPS = 10
_MIN_THREADS = 4
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
        The exit status: 1 if an example or a split cannot be used or the splits
        overlap, else 0. Warnings alone give 0.
    """
    sources, problems = _open_sources(config)
    surveys = {
        split: survey_source(
            source,
            num_classes=config.data.num_classes,
            threads=max(_MIN_THREADS, config.data.threads),
            progress=progress,
        )
        for split, source in sources.items()
    }
    if augmented and config.data.train_split in sources:
        problems += _draw_augmented(config, sources[config.data.train_split], out)
    names, shared = config.class_names(), shorten(overlaps(surveys), _MAX_OVERLAPS)
    report = {"Problems": problems.copy(), "Overlaps": shared, "Warnings": []}
    for split, survey in surveys.items():
        report["Problems"] += [f"{split}: {line}" for line in survey.problems]
        report["Warnings"] += [f"{split}: {line}" for line in survey.warnings]
    if surveys:
        print(survey_table(surveys, names))
    for title, lines in report.items():
        print("\n  ".join([f"\n{title}:", *shorten(lines or ["none"], _MAX_LINES)]))
    if surveys:
        record = {"class_names": names, "problems": problems, "overlaps": shared}
        splits = {split: _record(survey) for split, survey in surveys.items()}
        write_json(out / "data.json", {**record, "splits": splits})
        shares = {split: survey.shares for split, survey in surveys.items()}
        class_chart(out / "classes.png", shares, names)
        print(f"\nWritten: {out}/data.json, {out}/classes.png")
    return 1 if report["Problems"] or shared else 0


def _open_sources(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Return the sources of the splits that can be read, and what is wrong."""
    data = config.data
    try:
        check(dataclasses.replace(config, init_from=""))  # Weights may come later.
    except ValueError as error:
        return {}, [str(error)]
    sources, problems = {}, []
    for split in dict.fromkeys((data.train_split, data.eval_split)):
        try:
            sources[split] = make_source(config, split)
        except ValueError as error:
            problems.append(str(error))
    if data.train_split == data.eval_split:
        problems.append(
            f"config.data.train_split and eval_split are both {data.train_split!r}: a "
            "score on the training images says nothing about other images"
        )
    return sources, list(dict.fromkeys(problems))  # Both splits may fail alike.


def _draw_augmented(config: Config, source: Any, out: Path) -> list[str]:
    """Draw the first training examples of the run; return what prevents it."""
    pairs = []
    try:
        augment = training_augment(config)

        def note(example: dict, rng: np.random.Generator) -> dict:
            example = augment(example, rng)
            pairs.append((example["name"], example["image"], example["label"]))
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
        "mean_rgb": survey.mean_rgb,
        "void_pixels": survey.void_pixels,
        "class_pixels": survey.class_pixels.tolist(),
        "class_images": survey.class_images.tolist(),
        "class_image_pixels": survey.class_image_pixels.tolist(),
        "problems": survey.problems,
        "warnings": survey.warnings,
    }
    for balance in BALANCES if survey.class_pixels.any() else ():
        record[balance] = class_weights(survey, balance).round(6).tolist()
    return record
