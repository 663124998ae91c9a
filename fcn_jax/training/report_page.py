"""A report on a network as one HTML file, which needs nothing beside it."""

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import fcn_jax
from fcn_jax.charts import curve
from fcn_jax.data.voc_classes import CLASS_NAMES
from fcn_jax.evaluation.report import PUBLISHED_FIGURES, PUBLISHED_SPLIT, SCORES
from fcn_jax.evaluation.summary import RankedImage, Summary, read_summary
from fcn_jax.files import reading, replacing
from fcn_jax.markup import Html, element, join, table
from fcn_jax.training.config import CONFIG_FILE, Config, Data, flat, load_config
from fcn_jax.training.line_chart import Curve, line_chart
from fcn_jax.training.log import LOG_FILE, read_log
from fcn_jax.training.page_style import SCRIPT, STYLE
from fcn_jax.training.validation import METRICS_FILE, SUMMARY_FILE

PAGE_FILE = "report.html"  # In a run directory.
_MOST_CLASSES = 24  # Rows of the confusion matrix.
_LONGEST_VALUE = 200  # Letters of a setting.
_STRONGEST = 55  # Per cent of a cell's colour, so that its text stays readable.

_CAMVID = (  # The classes of CamVid in configs/camvid.py.
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence"),
    *("Car", "Pedestrian", "Bicyclist"),
)
# On its 101 validation images, in per cent, in the order of SCORES. Reference: the
# README of github.com/fmahoudeau/FCN-Segmentation-TensorFlow.
_CAMVID_FIGURES = {
    "fcn32s": (92.6, 73.4, 65.0),
    "fcn16s": (93.9, 79.2, 70.4),
    "fcn8s": (94.5, 81.0, 73.2),
}


def write_run_page(workdir: Path, *, command: str) -> Path:
    """Write the report of a run from the files in its directory.

    Args:
        workdir: directory of the run.
        command: the command that writes the report, for the report.

    Returns:
        The path of the report.

    Raises:
        ValueError: if the run has no best network yet, or a file is missing, damaged or
            of another step.
        OSError: if a file cannot be read or written.
    """
    config = load_config(workdir / CONFIG_FILE)
    figures = _read_figures(workdir / METRICS_FILE)
    advice = (
        f"python -m fcn_jax evaluate --run {workdir} evaluates the network anew and "
        "writes a report of that"
    )
    try:
        summary = read_summary(workdir / SUMMARY_FILE)
    except FileNotFoundError as error:
        raise ValueError(f"{workdir / SUMMARY_FILE} is not there: {advice}") from error
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    step = figures.pop("step", None)
    if summary.figures != figures:
        raise ValueError(
            f"{workdir / SUMMARY_FILE} and {workdir / METRICS_FILE} are of different "
            f"networks; {advice}"
        )
    facts = run_facts(config, step)
    records = read_log(workdir / LOG_FILE)
    path = workdir / PAGE_FILE
    write_page(
        path, summary, config=config, facts=facts, records=records, command=command
    )
    return path


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        with reading(path):
            return dict(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is not there: the run has not been evaluated yet"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def run_facts(config: Config, step: int | None = None) -> dict[str, str]:
    """Return what a run trained on what, as names and values for `write_page`."""
    data, model, optim = config.data, config.model, config.optim
    return {
        "Network": f"{_title(model.variant)}, width {model.width:g}, geometry "
        f"{model.geometry}, {data.num_classes} classes",
        "Start": config.init_from or "random parameters",
        "Data": f"{data.name} {data.root}".strip(),
        "Trained on": f"split {data.train_split}",
        "Steps": f"{config.steps:,} of {config.batch_size} images",
        "Optimiser": f"{optim.name}, learning rate {optim.learning_rate:g}, "
        f"schedule {optim.schedule}",
        "Best network": "" if step is None else f"of step {step:,}",
    }


def write_page(
    path: Path,
    summary: Summary,
    *,
    config: Config,
    facts: Mapping[str, str],
    records: Sequence[dict[str, Any]] = (),
    settings: bool = True,
    command: str,
) -> None:
    """Write a report.

    Args:
        path: of the file, replaced as a whole.
        summary: of the evaluation.
        config: the config of the run, or of the data that were evaluated.
        facts: names and values for the top of the page.
        records: the log of the run; () shows no curves.
        settings: whether the config is that of the network and is shown.
        command: the command that writes the report.
    """
    content = [
        _summary_section(summary, facts),
        _published_section(summary, config, known=settings),
        _curves_section(records) if records else "",
        _classes_section(summary),
        _confusion_section(summary),
        _images_section(summary),
        _settings_section(config) if settings else "",
        _versions_section(command),
    ]
    title = f"{facts['Network'].partition(',')[0]} on {_data_name(config.data)}"
    with replacing(path) as unfinished:
        unfinished.write_text(_document(title, content), encoding="utf-8")


def _document(title: str, content: Sequence[object]) -> str:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # No browser loads anything for this page or runs another script in it.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    main = element("main", element("h1", title), *content)
    body = element("body", main, element("script", Html(SCRIPT)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _section(title: str, *children: object) -> Html:
    return element("section", element("h2", title), *children)


def _summary_section(summary: Summary, facts: Mapping[str, str]) -> Html:
    figures = [
        element("div", element("dt", name), element("dd", _percent(summary.figures[k])))
        for k, name in SCORES.items()
    ]
    scored = f"split {summary.split}, {summary.images:,} images at their full size"
    facts = facts | {"Evaluated on": scored}
    rows = [[name, value] for name, value in facts.items() if value]
    return element(
        "section",
        element("dl", *figures, class_="figures"),
        element(
            "table",
            *(
                element("tr", element("th", name, scope="row"), element("td", value))
                for name, value in rows
            ),
            class_="facts",
        ),
    )


def _published_section(summary: Summary, config: Config, *, known: bool) -> object:
    """Return published figures of the same data set, or nothing."""
    data, variant = config.data, config.model.variant
    if not known:
        return ""
    if summary.class_names == CLASS_NAMES:
        values = PUBLISHED_FIGURES[f"{variant}-heavy-pascal"]
        where = f"the authors' {_title(variant)} on PASCAL VOC, split {PUBLISHED_SPLIT}"
        is_same = _is_voc(data) and summary.split == PUBLISHED_SPLIT
    elif summary.class_names == _CAMVID:
        values = _CAMVID_FIGURES[variant]
        where = (
            f"{_title(variant)} on CamVid's 101 validation images "
            "(github.com/fmahoudeau/FCN-Segmentation-TensorFlow)"
        )
        is_same = summary.split == "val" and summary.images == 101
    else:
        return ""
    rows = [
        [SCORES[score], _percent(summary.figures[score]), f"{value:.2f} %"]
        for score, value in zip(SCORES, values, strict=False)
    ]
    note = f"Published: {where}."
    if not is_same:
        note += (
            f" The figures of this page are of other images: split {summary.split} of "
            f"{_data_name(data)}. So the two cannot be compared directly."
        )
    columns = ["Score", "This network", "Published"]
    return _section("Beside published figures", table(columns, rows), _note(note))


def _data_name(data: Data) -> str:
    """Return the name of a data set, which for a folder is the folder's."""
    return Path(data.root).name or data.name if data.name == "folder" else data.name


def _is_voc(data: Data) -> bool:
    return data.name == "voc_segmentation/voc2012_sbd"


def _curves_section(records: Sequence[dict[str, Any]]) -> Html:
    loss = {"training loss": _curve(records, "loss")}
    scores = {
        name: _curve(records, score)
        for score, name in SCORES.items()
        if score in ("mean_iu", "pixel_accuracy")
    }
    return _section(
        "Learning curves",
        element(
            "div",
            line_chart("Training loss", loss, limits=None),
            line_chart("Validation scores", scores, limits=(0.0, 1.0)),
            class_="two",
        ),
    )


def _curve(records: Sequence[dict[str, Any]], key: str) -> Curve:
    steps, values = curve(records, key)
    known = np.isfinite(values)
    return steps[known], values[known]


def _classes_section(summary: Summary) -> Html:
    pixels = summary.confusion.sum(axis=1)
    shares = pixels / max(pixels.sum(), 1)
    rows = []
    values = zip(summary.class_names, summary.colors, shares, strict=True)
    for name, color, share in values:
        iu = summary.figures["iu"][name]
        bar = element("span", class_="bar", style=f"width: {100 * (iu or 0):.1f}%")
        rows.append(
            [
                join(_swatch(color), name),
                element("span", bar, class_="track"),
                _percent(iu),
                _percent(share),
            ]
        )
    head = ["Class", Html("<span class=hidden>Bar</span>"), "IU", "Pixels"]
    return _section(
        "Intersection over union of each class", table(head, rows, class_="bars")
    )


def _confusion_section(summary: Summary) -> Html:
    names, confusion = _largest(summary)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    corner = element("td")
    head = [element("th", element("span", n), scope="col") for n in names]
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(_cell(share, i == j) for j, share in enumerate(row)),
        )
        for i, (name, row) in enumerate(zip(names, shares, strict=True))
    ]
    matrix = element("table", element("tr", corner, *head), *rows, class_="matrix")
    note = (
        "A row is a true class, a column a predicted one. A cell is the share of the "
        "true class's pixels, in per cent."
    )
    if len(names) < len(summary.class_names):
        note += (
            f" These are the {_MOST_CLASSES} classes of the most pixels; the others "
            "are added up."
        )
    label = "Confusion matrix, can be scrolled"
    scrolled = element(
        "div", matrix, class_="scroll", tabindex=0, role="region", aria_label=label
    )
    return _section("Confusion matrix", _note(note), scrolled)


def _largest(summary: Summary) -> tuple[list[str], np.ndarray]:
    """Return the confusion matrix with all but the largest classes added up."""
    names, confusion = list(summary.class_names), summary.confusion
    if len(names) <= _MOST_CLASSES:
        return names, confusion
    order = np.argsort(-confusion.sum(axis=1), kind="stable")
    kept = sorted(order[:_MOST_CLASSES])
    place = np.full(len(names), _MOST_CLASSES)
    place[kept] = np.arange(_MOST_CLASSES)
    groups = np.eye(_MOST_CLASSES + 1, dtype=np.int64)[place]  # [C, K + 1]
    return [names[i] for i in kept] + ["others"], groups.T @ confusion @ groups


def _cell(share: float, is_right: bool) -> Html:
    percent = 100 * share
    text = "" if percent == 0 else "<1" if percent < 0.5 else f"{percent:.0f}"
    color = "var(--right)" if is_right else "var(--wrong)"
    mixed = f"color-mix(in srgb, {color} {_STRONGEST * share:.0f}%, transparent)"
    return element("td", text, style=f"background: {mixed}")


def _images_section(summary: Summary) -> object:
    if not summary.ranked:
        return ""
    note = (
        "Images are ranked by the mean IU of their own pixels. Move the slider to see "
        "the image or the prediction."
    )
    images = [_compared(image, f"slider{i}") for i, image in enumerate(summary.ranked)]
    return _section("Best, median and worst image", _note(note), *images)


def _compared(image: RankedImage, name: str) -> Html:
    below = element("img", src=image.image, alt=f"Image {image.name}")
    above = element("img", src=image.prediction, alt="Prediction", class_="above")
    slider = element(
        "input", type="range", min=0, max=100, value=50, id=name, class_="slider"
    )
    label = element("label", "image", for_=name)
    caption = f"{image.rank.capitalize()}: {image.name}, mean IU "
    return element(
        "figure",
        element("figcaption", caption, _percent(image.mean_iu)),
        element(
            "div",
            element(
                "div",
                element("div", below, above, class_="compared"),
                element("div", label, slider, "prediction", class_="choice"),
            ),
            element(
                "div",
                element("img", src=image.label, alt="True classes"),
                element("p", "True classes"),
            ),
            class_="two",
        ),
    )


def _settings_section(config: Config) -> Html:
    defaults = {name: value for name, _, value in flat(Config())}
    rows = []
    for name, _, value in flat(config):
        text = repr(value)
        if len(text) > _LONGEST_VALUE:
            text = text[:_LONGEST_VALUE] + "…"
        changed = value != defaults[name]
        rows.append([name, element("strong", text) if changed else text])
    head = ["Field of the config", "Value (bold: not the default)"]
    wide = element("div", table(head, rows), class_="scroll")
    return element("details", element("summary", "Settings"), wide)


def _versions_section(command: str) -> Html:
    versions = {
        "fcn_jax": fcn_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return _section(
        "This page",
        element("p", "Written by: ", element("code", command)),
        element("p", f"With {text}."),
    )


def _note(text: str) -> Html:
    return element("p", text, class_="note")


def _swatch(color: tuple[int, int, int]) -> Html:
    return element("span", class_="swatch", style=f"background: rgb{color}")


def _percent(value: float | None) -> str:
    return "does not occur" if value is None else f"{100 * value:.2f} %"


def _title(variant: str) -> str:
    return f"FCN-{variant.removeprefix('fcn')}"
