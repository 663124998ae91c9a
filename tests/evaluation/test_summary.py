import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.evaluation.evaluate import evaluate
from fcn_jax.evaluation.summary import (
    read_summary,
    summarize_evaluation,
    write_summary,
)

SIZE = (24, 40)


def source_of(net, wrong_shares):
    """Images of which the network gets about these shares of the pixels wrong."""
    rng = np.random.default_rng(0)
    source = []
    for i, share in enumerate(wrong_shares):
        image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        label = np.full(SIZE, 255)
        if share is not None:
            label = fcn_jax.predict(net, image)
            wrong = rng.random(SIZE) < share
            label = np.where(wrong, (label + 1) % 4, label)
        source.append({"image": image, "label": label, "name": f"image {i}"})
    return source


@pytest.fixture(scope="module")
def net(reference):
    return reference.network("fcn32s")


def summarized(net, wrong_shares):
    source = source_of(net, wrong_shares)
    found = evaluate(net, source, progress=False)
    return summarize_evaluation(net, source, found, split="val")


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize(
    "wrong, names",
    [
        ([0.5, None, 0.0, 0.2, 0.9], ["best 2", "median 0", "worst 4"]),
        ([0.5, 0.1], ["best 1", "worst 0"]),
        ([0.1], ["best 0"]),
        ([None], []),
    ],
)
def test_images_are_ranked_by_their_own_mean_iu(net, wrong, names):
    summary = summarized(net, wrong)
    found = [f"{each.rank} {each.name.split()[1]}" for each in summary.ranked]
    assert found == names
    assert summary.images == len(wrong)


def test_pictures_show_image_truth_and_prediction(net):
    source = source_of(net, [0.3])
    found = evaluate(net, source, progress=False)
    best = summarize_evaluation(net, source, found, split="val").ranked[0]
    with opened(best.label) as picture:
        np.testing.assert_array_equal(np.asarray(picture), source[0]["label"])
    with opened(best.image) as picture:
        assert picture.size == SIZE[::-1]


def test_pictures_of_a_large_image_are_small(net):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (700, 20, 3), np.uint8)
    source = [(image, np.zeros((700, 20), np.int32))]
    found = evaluate(net, source, progress=False)
    best = summarize_evaluation(net, source, found, split="val").ranked[0]
    for uri in (best.image, best.label, best.prediction):
        with opened(uri) as picture:
            assert picture.height == 480


def test_written_summary_is_read_back(net, tmp_path):
    summary = summarized(net, [0.1, 0.4])
    write_summary(tmp_path / "s.json", summary)
    read = read_summary(tmp_path / "s.json")
    np.testing.assert_array_equal(read.confusion, summary.confusion)
    assert read.figures == summary.figures
    assert (read.ranked, read.colors) == (summary.ranked, summary.colors)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("confusion"),
        lambda values: values["class_names"].pop(),
        lambda values: values["ranked"][0].update(image="https://example.org/a.png"),
        lambda values: values["ranked"][0].update(label='data:,"onerror="x'),
        lambda values: values.update(confusion="none"),
    ],
)
def test_damaged_summary_is_refused(net, tmp_path, change):
    path = tmp_path / "s.json"
    write_summary(path, summarized(net, [0.1]))
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="s.json is damaged"):
        read_summary(path)
