"""A check of the data that a config names, before a run is spent on it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.balance import BALANCES
from fcn_jax.data.survey import Survey, check_source, overlaps, report, shortened
from fcn_jax.files import write_json
from fcn_jax.training.config import Config, check, make_source
from fcn_jax.visualize import class_chart

_MOST_LINES = 20  # Printed of problems or warnings; data.json has them all.
_LEAST_THREADS = 4


def check_data(config: Config, out: Path, *, progress: bool = True) -> int:
    """Reads the training and the evaluation split whole, and tells what they hold.

    Prints tables and findings; writes ``out/data.json``, with all numbers, problems
    and warnings, and ``out/classes.png``.

    Args:
        config: of the run. Its weights need not be there yet.
        out: folder of the results, made if it is missing.
        progress: whether to show progress bars.
    Returns:
        The exit status: 1 if an example or a split cannot be used or the splits
        overlap, else 0. Warnings alone leave it at 0.
    """
    sources, findings = _open(config)
    surveys = {
        split: check_source(
            source,
            num_classes=config.data.num_classes,
            ignore_label=config.data.ignore_label,
            threads=max(_LEAST_THREADS, config.data.threads),
            progress=progress,
        )
        for split, source in sources.items()
    }
    problems = findings + _lines(surveys, "problems")
    shared = overlaps(surveys)
    names = config.class_names()
    if surveys:
        print(report(surveys, names))
    _print_lines("Problems", problems)
    _print_lines("Overlaps", shared)
    _print_lines("Warnings", _lines(surveys, "warnings"))
    if surveys:
        write_json(out / "data.json", _record(surveys, names, findings, shared))
        class_chart(out / "classes.png", surveys, names)
        print(f"\nWritten: {out}/data.json, {out}/classes.png")
    return 1 if problems or shared else 0


def _open(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The sources of the splits, and why others have none."""
    data = config.data
    try:
        check(dataclasses.replace(config, init_from=""))  # Weights may come later.
    except ValueError as error:
        return {}, [str(error)]
    sources, findings = {}, []
    for split in dict.fromkeys((data.train_split, data.eval_split)):
        try:
            sources[split] = make_source(config, split)
        except ValueError as error:
            findings.append(str(error))
    if data.train_split == data.eval_split:
        findings.append(
            f"data.train_split and data.eval_split are both {data.train_split!r}: "
            "images that were trained on show nothing in an evaluation"
        )
    return sources, list(dict.fromkeys(findings))


def _lines(surveys: dict[str, Survey], kind: str) -> list[str]:
    return [
        f"{split}: {line}"
        for split, survey in surveys.items()
        for line in getattr(survey, kind)
    ]


def _print_lines(title: str, lines: Sequence[str]) -> None:
    print("\n  ".join([f"\n{title}:", *shortened(lines or ["none"], _MOST_LINES)]))


def _record(
    surveys: dict[str, Survey],
    class_names: Sequence[str],
    findings: list[str],
    shared: list[str],
) -> dict[str, Any]:
    return {
        "class_names": list(class_names),
        "problems": findings,
        "overlaps": shared,
        "splits": {split: _split_record(survey) for split, survey in surveys.items()},
    }


def _split_record(survey: Survey) -> dict[str, Any]:
    record = {
        "images": survey.images,
        "read": len(survey.names),
        "sizes": {f"{h}x{w}": n for (h, w), n in sorted(survey.sizes.items())},
        "mean_rgb": survey.mean_rgb,
        "void_pixels": survey.void_pixels,
        "class_pixels": survey.class_pixels.tolist(),
        "class_images": survey.class_images.tolist(),
        "class_image_pixels": survey.class_image_pixels.tolist(),
        "problems": survey.problems,
        "warnings": survey.warnings,
    }
    if survey.class_pixels.any():
        for name, balance in BALANCES.items():
            record[name] = np.round(balance(survey), 6).tolist()
    return record
