import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.__main__ import main
from fcn_jax.data.voc_classes import CLASS_NAMES
from fcn_jax.evaluation.summary import RankedImage, Summary
from fcn_jax.training.config import Config, Data
from fcn_jax.training.overrides import read_config
from fcn_jax.training.recipes import voc_data
from fcn_jax.training.report_page import run_facts, write_page, write_run_page

CAMVID = Path(__file__).parents[2] / "configs" / "camvid.py"
URI = "data:image/png;base64,AAAA"
HOSTILE = '</title><script>alert("1")</script><img src=http://x.example/ onerror=a>'


def summary_of(names, split="val"):
    confusion = np.diag(np.arange(1, len(names) + 1))
    confusion[0, -1] += 3
    colors = ((1, 2, 3),) * len(names)
    ranked = (RankedImage("best", HOSTILE, 0.5, URI, URI, URI),)
    return Summary(split, 7, tuple(names), colors, confusion, ranked)


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    """A function that returns the elements of a page."""

    def make(summary, data=None, **fields):
        config = Config(data=data or Data(class_names=summary.class_names))
        path = tmp_path / "page.html"
        facts = run_facts(config, 5)
        write_page(path, summary, config=config, facts=facts, command=HOSTILE, **fields)
        return Elements(path.read_text(encoding="utf-8"))

    return make


def test_names_cannot_become_elements(page):
    names = ("<script>", HOSTILE, "c")
    found = page(summary_of(names), Data(name=HOSTILE, class_names=names))
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert [attrs for _, attrs in found.tags if "onerror" in attrs] == []
    assert "<script>" in found.text


def test_page_loads_nothing(page):
    found = page(summary_of("ab"))
    for tag, attrs in found.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert attrs.get("src", "data:image/").startswith("data:image/")
        assert "href" not in attrs
    (policy,) = (a["content"] for _, a in found.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_title_names_the_data(page):
    for data, name in (
        (Data(root="some/street scenes/"), "street scenes"),
        (Data(name="voc_segmentation/voc2012", root="a"), "voc_segmentation/voc2012"),
        (Data(), "folder"),
    ):
        assert (
            page(summary_of("ab"), data).text.strip().startswith(f"FCN-8s on {name}\n")
        )


def test_figures_and_classes_are_those_of_the_confusion_matrix(page):
    # IU of a: 1 of 1 + 3 pixels, of b: 2 of 2 + 3.
    text = page(summary_of("ab")).text
    assert "25.00 %" in text and "40.00 %" in text
    assert "32.50 %" in text  # Their mean.
    assert "split val, 7 images" in text


def test_matrix_of_many_classes_adds_up_the_smallest(page):
    names = [f"class {i}" for i in range(60)]
    found = page(summary_of(names))
    cells = [a for tag, a in found.tags if tag == "th" and a.get("scope") == "col"]
    columns = len(cells) - 4 - 2  # Less those of the bars and the settings.
    assert columns == 25
    assert "others" in found.text


@pytest.mark.parametrize(
    "split, beside", [("seg11valid", True), ("val", False), (HOSTILE, False)]
)
def test_published_figures_of_voc_tell_whether_they_can_be_compared(
    page, split, beside
):
    text = page(summary_of(CLASS_NAMES, split), voc_data("train", split)).text
    assert "65.51 %" in text  # FCN-8s.
    assert ("cannot be compared" not in text) == beside


def test_other_data_have_no_published_figures(page):
    assert "ublished" not in page(summary_of("ab")).text


def test_network_of_unknown_origin_has_no_settings_and_no_variant(page):
    text = page(summary_of(CLASS_NAMES), settings=False).text
    assert "ublished" not in text and "Settings" not in text


def copied(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run[0], run)
    return run


def test_report_of_a_run_is_the_same_each_time(whole_run, tmp_path, capsys):
    run = copied(whole_run, tmp_path)
    (run / "report.html").unlink(missing_ok=True)
    assert main(["report", "--run", str(run)]) == 0
    assert capsys.readouterr().out == f"Report: {run}/report.html\n"
    first = (run / "report.html").read_bytes()
    assert len(first) < 500_000
    write_run_page(run, command=f"python -m fcn_jax report --run {run}")
    assert (run / "report.html").read_bytes() == first
    text = Elements(first.decode()).text
    step = whole_run[1]["step"]
    assert f"of step {step}" in text
    assert "Learning curves" in text


@pytest.mark.parametrize(
    "name, problem",
    [
        ("evaluation.json", "evaluation.json is not there: python -m fcn_jax evaluate"),
        ("metrics.json", "the run has not been evaluated yet"),
        ("config.json", "config.json is not there"),
    ],
)
def test_run_without_a_file_is_refused(whole_run, tmp_path, capsys, name, problem):
    run = copied(whole_run, tmp_path)
    (run / name).unlink()
    assert main(["report", "--run", str(run)]) == 1
    assert problem in capsys.readouterr().err


def test_summary_of_another_network_is_refused(whole_run, tmp_path):
    run = copied(whole_run, tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"mean_iu": 0.123}))
    with pytest.raises(ValueError, match="of different networks"):
        write_run_page(run, command="")


@pytest.mark.parametrize(
    "split, images, beside",
    [("val", 101, True), ("val", 7, False), ("test", 101, False)],
)
def test_published_figures_of_camvid_are_those_of_its_validation_images(
    page, split, images, beside
):
    data = read_config(CAMVID, []).data
    summary = dataclasses.replace(summary_of(data.class_names, split), images=images)
    text = page(summary, data).text
    assert "73.20 %" in text and "94.50 %" in text  # FCN-8s.
    assert ("cannot be compared" not in text) == beside


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_a_screen_and_its_sliders_move(whole_run, tmp_path, browser, width):
    page = write_run_page(copied(whole_run, tmp_path), command="")
    command, run = browser.execute_cdp_cmd, browser.execute_script
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    command("Emulation.setDeviceMetricsOverride", screen)
    colors = set()
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        command("Emulation.setEmulatedMedia", {"features": media})
        browser.get(page.as_uri())
        assert run("return document.documentElement.scrollWidth") <= width
        body = "getComputedStyle(document.body)"
        colors.add(run(f"return {body}.color + {body}.backgroundColor"))
    assert len(colors) == 2
    shown = run(
        """
        const slider = document.querySelector(".slider");
        const above = slider.closest("figure").querySelector(".above");
        return [0, 100].map(value => {
            slider.value = value;
            slider.dispatchEvent(new Event("input", {bubbles: true}));
            return getComputedStyle(above).clipPath;
        });
        """
    )
    assert shown == ["inset(0px 0px 0px 100%)", "inset(0px 0px 0px 0%)"]
    assert browser.get_log("browser") == []  # Not even a warning.
