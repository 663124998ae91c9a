import numpy as np
import pytest

from fcn_jax.evaluation.evaluate import evaluate, spread
from fcn_jax.evaluation.metrics import confusion_matrix

VOID = 7
OPTIONS = {"num_classes": 3, "ignore_label": VOID, "progress": False}


class Source:
    """Examples of many sizes; those in ``broken`` cannot be read."""

    def __init__(self, length, broken=()):
        self.length, self.broken, self.read = length, broken, []

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        self.read.append(i)
        if i in self.broken:
            raise ValueError(f"{i}.png: cannot be read")
        rng = np.random.default_rng(i)
        label = rng.choice([0, 1, 2, VOID], (1 + i, 1 + i % 3)).astype(np.int32)
        image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
        return {"image": image, "label": label, "name": f"{i}"}


def red_third(image):
    return image[..., 0] // 86


def each(predict):
    """For `evaluate`: one image after the other, some pairs in another order."""

    def predict_all(images):
        pairs = [(i, predict(image)) for i, image in images]
        yield from pairs[::2]
        yield from pairs[1::2]

    return predict_all


def test_confusion_is_that_of_all_pixels_together():
    source = Source(11)
    examples = [source[i] for i in range(11)]
    labels = np.concatenate([example["label"].ravel() for example in examples])
    images = np.concatenate([example["image"].reshape(-1, 3) for example in examples])
    confusion, kept = evaluate(each(red_third), source, **OPTIONS)
    expected = confusion_matrix(
        labels, red_third(images), num_classes=3, ignore_label=VOID
    )
    np.testing.assert_array_equal(confusion, expected)
    assert confusion.dtype == np.int64 and kept == []


def test_images_arrive_in_order_at_full_size():
    seen = []

    def predict(image):
        seen.append(image.shape)
        return np.zeros(image.shape[:2], int)

    evaluate(each(predict), Source(9), **OPTIONS)
    assert seen == [(1 + i, 1 + i % 3, 3) for i in range(9)]


def test_kept_examples_come_with_their_predictions():
    _, kept = evaluate(each(red_third), Source(8), keep=[6, 2], **OPTIONS)
    assert [name for name, *_ in kept] == ["2", "6"]
    for name, image, label, prediction in kept:
        example = Source(8)[int(name)]
        np.testing.assert_array_equal(image, example["image"])
        np.testing.assert_array_equal(label, example["label"])
        np.testing.assert_array_equal(prediction, red_third(image))


def test_error_of_the_source_passes_through_and_ends_the_reading():
    source = Source(100, broken=[5])
    with pytest.raises(ValueError, match="5.png: cannot be read"):
        evaluate(each(red_third), source, **OPTIONS)
    assert max(source.read) < 12


def test_prediction_of_other_size_is_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        evaluate(each(lambda image: image[:0, :, 0]), Source(1), **OPTIONS)


def test_empty_source_gives_an_empty_confusion():
    confusion, kept = evaluate(each(red_third), Source(0), **OPTIONS)
    np.testing.assert_array_equal(confusion, np.zeros((3, 3)))
    assert kept == []


def test_progress_bar_counts_images(capsys):
    evaluate(each(red_third), Source(3), **OPTIONS | {"progress": True})
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "n, k, indices",
    [(10, 2, [2, 7]), (3, 10, [0, 1, 2]), (7, 1, [3]), (0, 4, []), (5, 0, [])],
)
def test_spread_takes_even_indices(n, k, indices):
    assert spread(n, k) == indices
