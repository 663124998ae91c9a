import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.evaluation.evaluate import evaluate
from fcn_jax.inference.predict import apply
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network

NAMES = ("a", "b", "c")
SIZES = [(20, 33), (33, 20), (1, 1), (64, 64), (65, 3), (20, 33), (7, 70)]


@pytest.fixture(scope="module")
def net():
    model = FCN(variant="fcn32s", num_classes=3, width=1 / 32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(
            0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape
        ).astype(np.float32),
        shapes["params"],
    )
    return Network(params, model, NAMES)


class Source:
    """Examples of many sizes; those in ``broken`` cannot be read."""

    def __init__(self, length=7, broken=()):
        self.length, self.broken, self.read = length, broken, []

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i >= self.length:
            raise IndexError(i)
        self.read.append(i)
        if i in self.broken:
            raise ValueError(f"{i}.png: cannot be read")
        rng = np.random.default_rng(i)
        size = SIZES[i % len(SIZES)]
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        label = rng.choice([0, 1, 2, 255], size).astype(np.int32)
        return {"image": image, "label": label, "name": f"{i}.png"}


@pytest.fixture(scope="module")
def alone(net):
    """Labels of each image in a program of its own size."""
    return [np.argmax(apply(net, example["image"]), -1) for example in Source()]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_confusion_counts_the_pixels_of_each_image_alone(net, alone, batch_size):
    found = evaluate(net, Source(), batch_size=batch_size, progress=False)
    expected = np.zeros((3, 3), np.int64)
    for example, prediction in zip(Source(), alone, strict=True):
        valid = example["label"] != 255
        np.add.at(expected, (example["label"][valid], prediction[valid]), 1)
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.confusion.dtype == np.int64 and found.examples == ()
    assert found.class_names == NAMES


def test_figures_follow_from_the_confusion_by_name(net):
    figures = evaluate(net, Source(), progress=False).figures
    confusion = evaluate(net, Source(), progress=False).confusion
    right, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    iu = right / (true + said - right)
    assert figures["iu"] == pytest.approx(dict(zip(NAMES, iu, strict=True)))
    assert figures["mean_iu"] == pytest.approx(iu.mean())
    assert figures["pixel_accuracy"] == pytest.approx(right.sum() / true.sum())


def test_scores_are_the_mean_iu_of_each_image_alone(net, alone):
    scores = evaluate(net, Source(), progress=False).scores
    for example, prediction, score in zip(Source(), alone, scores, strict=True):
        valid = example["label"] != 255
        true, said = example["label"][valid], np.asarray(prediction)[valid]
        iu = [
            ((true == i) & (said == i)).sum() / ((true == i) | (said == i)).sum()
            for i in set(true) | set(said)
        ]
        assert score == (pytest.approx(np.mean(iu)) if valid.any() else None)
    void = [(IMAGE, np.full(LABEL.shape, 255))]
    assert evaluate(net, void, progress=False).scores == (None,)


def test_pairs_and_dicts_without_a_name_are_examples_too(net):
    expected = evaluate(net, Source(), progress=False)
    pairs = [(example["image"], example["label"]) for example in Source()]
    dicts = [{"image": i, "label": label.astype(np.uint8)} for i, label in pairs]
    for source in (pairs, dicts):
        found = evaluate(net, source, progress=False)
        np.testing.assert_array_equal(found.confusion, expected.confusion)


def test_examples_are_spread_and_come_with_their_predictions(net, alone):
    found = evaluate(net, Source(), examples=2, progress=False)
    assert [example.name for example in found.examples] == ["1.png", "5.png"]
    for name, image, label, prediction in found.examples:
        i = int(name.partition(".")[0])
        np.testing.assert_array_equal(image, Source()[i]["image"])
        np.testing.assert_array_equal(label, Source()[i]["label"])
        np.testing.assert_array_equal(prediction, alone[i])
    found = evaluate(net, Source(), examples=100, progress=False)
    assert [e.name for e in found.examples] == [f"{i}.png" for i in range(len(SIZES))]


def test_save_gets_each_prediction_with_its_name(net, alone):
    saved = {}
    evaluate(net, Source(), save=saved.__setitem__, progress=False)
    assert len(saved) == len(SIZES)
    for i, prediction in enumerate(alone):
        np.testing.assert_array_equal(saved[f"{i}.png"], prediction)


def test_error_of_the_source_passes_through_and_ends_the_reading(net):
    source = Source(100, broken=[5])
    with pytest.raises(ValueError, match="5.png: cannot be read"):
        evaluate(net, source, progress=False)
    assert max(source.read) < 15


IMAGE, LABEL = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "the source is a int without __len__"),
        ([IMAGE], "example 0 is a ndarray, want"),
        ([(IMAGE, LABEL, "name")], "example 0 is a tuple, want"),
        ([(IMAGE, LABEL), (IMAGE, LABEL[:3])], r"example 1: .*\[3, 5\]"),
        ([(IMAGE / 255, LABEL)], "example 0: the image is .* float64"),
        ([(IMAGE, LABEL + 0.5)], "example 0: the label is .* float64"),
        ([(IMAGE, LABEL + 3)], "example 0: label values 3 are neither"),
        ([{"image": IMAGE, "label": LABEL - 1, "name": "x"}], "example x: .* -1"),
    ],
)
def test_examples_of_another_form_are_refused_by_name(net, source, message):
    with pytest.raises(ValueError, match=message):
        evaluate(net, source, progress=False)


def test_bare_parameters_are_refused(net):
    with pytest.raises(ValueError, match="pass the Network"):
        evaluate(net.params, Source())


def test_empty_source_gives_an_empty_confusion(net):
    found = evaluate(net, [], progress=False)
    np.testing.assert_array_equal(found.confusion, np.zeros((3, 3)))
    assert found.examples == () and found.figures["mean_iu"] is None


def test_progress_bar_counts_images(net, terminal):
    evaluate(net, Source(3), progress=True)
    assert "0/3" in terminal.readouterr().err
