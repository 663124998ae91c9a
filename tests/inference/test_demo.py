import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.inference import demo
from fcn_jax.inference.demo import area_legend, segment_file, serve_demo

NAMES = ("sky", "<script>alert(1)</script>", "car", "boat")


@pytest.fixture(scope="module")
def net(reference):
    return reference.network("fcn32s").replace(class_names=NAMES)


@pytest.fixture
def photo(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(image).resize((60, 40)).save(path)
    return path


def test_labels_are_those_of_predict(net, photo):
    found = segment_file(net, photo)
    np.testing.assert_array_equal(found.labels, fcn_jax.predict(net, str(photo)))
    shares = fcn_jax.probabilities(net, str(photo))
    np.testing.assert_allclose(found.confidence, shares.max(axis=-1))


def test_file_that_is_no_image_is_refused(net, tmp_path):
    (tmp_path / "a.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"^a.jpg: cannot be read as an image"):
        segment_file(net, tmp_path / "a.jpg")


def test_image_of_too_many_pixels_is_refused(net, tmp_path):
    Image.new("1", (4097, 4096)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: 4096x4097 pixels are above 16777216"):
        segment_file(net, tmp_path / "a.png")


def test_legend_has_the_area_of_each_class_largest_first(net):
    legend = area_legend(net, np.array([[1, 1, 1], [0, 1, 2], [1, 1, 0], [1, 1, 1]]))
    assert "<script>" not in legend and "boat" not in legend
    places = [legend.index(part) for part in ("&lt;script", "75.00 %", "sky", "16.67")]
    assert places == sorted(places)


def test_network_of_more_channels_is_refused(net):
    net = net.replace(model=net.model.clone(in_channels=4, mean=(0.0,) * 4))
    with pytest.raises(ValueError, match="takes 4 channels, and photographs have 3"):
        serve_demo(net)


def test_missing_gradio_is_named_with_the_way_to_install_it(net, monkeypatch):
    monkeypatch.setattr(demo.os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install 'fcn-jax\[demo\]'"):
        serve_demo(net)


def test_options_reach_the_page(net, tmp_path, monkeypatch):
    fcn_jax.save(tmp_path / "net.safetensors", net)
    calls = []
    monkeypatch.setattr(
        "fcn_jax.commands.demo.serve_demo", lambda net, **options: calls.append(options)
    )
    weights = ["demo", "--weights", str(tmp_path / "net.safetensors")]
    assert main(weights) == 0
    assert main([*weights, "--host", "0.0.0.0", "--port", "1234"]) == 0
    assert calls == [
        {"examples": [], "host": "127.0.0.1", "port": 7860},
        {"examples": [], "host": "0.0.0.0", "port": 1234},
    ]


@contextlib.contextmanager
def served(weights):
    """Run the command; yields the address of its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "fcn_jax", "demo", "--weights", str(weights)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [*command, "--port", port], stdout=-1, stderr=errors, text=True
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            errors.seek(0)
            assert line.startswith("Open http://127.0.0.1:"), errors.read()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.skipif(not find_spec("gradio"), reason="needs pip install '.[demo]'")
def test_page_segments_an_upload_and_refuses_what_is_no_image(
    net, photo, tmp_path, browser
):
    fcn_jax.save(tmp_path / "net.safetensors", net)
    (tmp_path / "text.txt").write_text("no image")
    labels = fcn_jax.predict(net, str(photo))
    mask_file = tmp_path / "downloads" / "mask.png"
    upload = "#photograph input[type=file]"

    def wait(css):
        find = WebDriverWait(browser, 20).until
        return find(lambda d: d.find_elements("css selector", css))[0]

    with served(tmp_path / "net.safetensors") as url:
        browser.get(url)
        wait(upload).send_keys(str(photo))
        wait("#legend td")
        rows = browser.find_elements("css selector", "#legend tbody tr")
        counts = np.bincount(labels.ravel(), minlength=4)
        assert [row.text.rsplit(maxsplit=2) for row in rows] == [
            [NAMES[i], f"{100 * counts[i] / labels.size:.2f}", "%"]
            for i in np.argsort(-counts, kind="stable")
            if counts[i]
        ]
        wait("#overlay img"), wait("#confidence img")
        wait("#mask").click()
        WebDriverWait(browser, 20).until(lambda _: mask_file.exists())
        with Image.open(mask_file) as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), labels)
        loaded = browser.execute_script(
            "return performance.getEntriesByType('resource').map(e => e.name)"
        )
        assert loaded and all(name.startswith(url) for name in loaded)
        browser.get(url)
        wait(upload).send_keys(str(tmp_path / "text.txt"))
        toast = wait(".toast-body")  # It fades in.
        WebDriverWait(browser, 20).until(
            lambda _: "text.txt: cannot be read as an image" in toast.text
        )
