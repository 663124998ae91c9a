import math
import threading

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.sources import ExampleError, FolderSource
from fcn_jax.data.survey import (
    class_weights,
    overlaps,
    survey_source,
    survey_table,
)

VOID = 255
OPTIONS = {"num_classes": 3, "progress": False}


class Source(list):
    """Examples; an exception among them is raised."""

    def __getitem__(self, i):
        example = super().__getitem__(i)
        if isinstance(example, BaseException):
            raise example
        return example


def example(name, label, color=(0, 0, 0)):
    label = np.array(label, np.int32)
    return {"image": image_of(label.shape, color), "label": label, "name": name}


def image_of(size, color):
    return np.full((*size, 3), color, np.uint8)


def survey_of(*examples, **changes):
    return survey_source(Source(examples), **OPTIONS | changes)


def named(*names, start=0):
    """A survey of images that all differ, of colours from ``start``."""
    return survey_of(
        *(example(n, [[0, 1, 2]], (start + i, 0, 0)) for i, n in enumerate(names))
    )


def save_pair(root, stem, image, label):
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(np.asarray(array, np.uint8)).save(root / folder / f"{stem}.png")


def save_broken_folder(root):
    """One good pair, f, among pairs that have each something else wrong."""
    image, label = image_of((2, 2), (1, 2, 3)), np.array([[0, 1], [2, 9]])
    save_pair(root, "a_unreadable", image, label)
    (root / "images" / "a_unreadable.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    save_pair(root, "b_size", image, label[:1])
    save_pair(root, "c_colours", image, image)
    save_pair(root, "d_black_white", image, label // 2 % 2 * 255)
    save_pair(root, "e_range", image, label + 1)
    save_pair(root, "f", image, label)
    save_pair(root, "g_label", image, label)
    (root / "labels" / "g_label.png").write_bytes(b"text")


def test_survey_counts_pixels_and_images_by_hand():
    survey = survey_of(
        example("a", [[0, 0, 1], [0, VOID, 1]], (10, 20, 30)),
        example("b", [[0, 0]], (2, 4, 255)),
        example("c", [[1, 1]], (3, 3, 3)),
    )
    np.testing.assert_array_equal(survey.class_pixels, [5, 4, 0])
    np.testing.assert_array_equal(survey.class_images, [2, 2, 0])
    np.testing.assert_array_equal(survey.class_image_pixels, [8, 8, 0])
    assert survey.class_pixels.dtype == np.int64
    assert survey.examples == 3 and survey.names == ["a", "b", "c"]
    assert survey.sizes == [(2, 3), (1, 2), (1, 2)]
    assert survey.void_pixels == 1 and survey.void_share == 0.1
    np.testing.assert_allclose(survey.shares, [5 / 9, 4 / 9, 0])
    # Red: (6 * 10 + 2 * 2 + 2 * 3) / 10, and so on.
    np.testing.assert_allclose(survey.channels.mean, (7.0, 13.4, 69.6))
    pixels = np.repeat([(10, 20, 30), (2, 4, 255), (3, 3, 3)], (6, 2, 2), axis=0)
    np.testing.assert_allclose(survey.channels.std, pixels.std(axis=0))
    assert survey.void_shares == [1 / 6, 0, 0]
    assert survey.most_void(2) == [("a", 1 / 6)]
    assert survey.problems == []


def test_mean_color_of_a_large_bright_image_is_exact():
    size = (4200, 4200)  # Sums above 2**32.
    image = np.broadcast_to(np.uint8([255, 255, 254]), (*size, 3))
    label = np.broadcast_to(np.int32(0), size)
    survey = survey_of({"image": image, "label": label, "name": "a"})
    assert (
        survey.channels.mean.tolist() == [255, 255, 254]
        and survey.channels.std.tolist() == [0] * 3
    )


def test_channels_beyond_colour_are_surveyed():
    image = np.float32([[[1, 2, 3, 1000], [1, 2, 3, 3000]]])
    one = {"image": image, "label": np.int32([[0, 1]]), "name": "a"}
    survey = survey_of(one, in_channels=4)
    assert survey.problems == []
    np.testing.assert_allclose(survey.channels.mean, (1, 2, 3, 2000))
    np.testing.assert_allclose(survey.channels.std, (0, 0, 0, 1000))


def test_survey_within_no_time_reads_a_part_spread_over_the_split():
    examples = [example(f"{i}", [[0, 1, 2]]) for i in range(100)]
    survey = survey_of(*examples, seconds=0, threads=1)
    assert 0 < survey.examples < 10
    many = survey_of(*examples, seconds=1000)
    assert sorted(map(int, many.names)) == list(range(100))
    first = sorted(int(name) for name in many.names[:10])
    assert max(np.diff([0, *first, 100])) <= 20


def test_every_fault_of_an_example_is_a_line_and_its_values_are_counted():
    survey = survey_of(
        ExampleError(["a: bad image", "a: bad label"], (3, 7)),
        ExampleError(["b: bad"], (3, 7)),
    )
    assert survey.problems == ["a: bad image", "a: bad label", "b: bad"]
    assert survey.unknown_values == {3: 2, 7: 2} and survey.examples == 2


def test_bad_files_are_named_and_the_others_counted(tmp_path):
    save_broken_folder(tmp_path)
    source = FolderSource(
        tmp_path,
        images="images",
        labels="labels",
        split="train",
        num_classes=3,
        ignore_label=9,
    )
    survey = survey_source(source, **OPTIONS)
    texts = (
        r"a_unreadable.png: cannot be read as an image",
        r"b_size.png is 2x2 .* its label .*b_size.png is 1x2",
        r"c_colours.png: a mask must hold class indices .* mode RGB",
        r"d_black_white.png: label values 255 .* label_map, such as",
        r"e_range.png: label values 3, 10 are neither in \[0, 3\)",
        r"g_label.png: cannot be read as an image",
    )
    assert len(survey.problems) == len(texts)
    for problem, text in zip(survey.problems, texts, strict=True):
        with pytest.raises(ValueError, match=text):
            raise ValueError(problem)
    assert survey.examples == 7 and survey.names == ["f"]
    np.testing.assert_array_equal(survey.class_pixels, [1, 1, 1])
    assert survey.channels.mean.tolist() == [1, 2, 3] and survey.warnings == []


def test_sources_without_checks_of_their_own_are_checked():
    example_of_two_sizes = example("b", [[0, 1]])
    example_of_two_sizes["label"] = np.zeros((2, 2), np.int32)
    flat = {"image": image_of((2,), (0, 0, 0)), "label": np.zeros(2, int), "name": "e"}
    survey = survey_of(
        example("a", [[0, 3]]),
        example_of_two_sizes,
        KeyError("image"),
        example("d", [[0, 1, 2]]),
        flat,
    )
    assert len(survey.problems) == 4 and survey.names == ["d"]
    assert survey.problems[0].startswith(
        "example a: label values 3 are neither in [0, 3)"
    )
    assert (
        "example b: the image is [1, 2, 3] uint8, its label [2, 2]"
        in survey.problems[1]
    )
    assert survey.problems[2] == "example 2: KeyError: 'image'"
    assert survey.problems[3].startswith("example e: the label is [2] int64, want")


def test_threads_leave_the_order_as_it_is():
    turn = [threading.Event() for _ in range(40)]

    class Backwards(Source):
        """Each even example is ready only after the one that follows it."""

        def __getitem__(self, i):
            if i % 2 == 0:
                assert turn[i + 1].wait(10)
            turn[i].set()
            return super().__getitem__(i)

    rng = np.random.default_rng(0)
    examples = [
        ValueError(f"bad {i}")
        if i % 7 == 3
        else example(f"{i}", rng.integers(0, 3, (2, 2)), (i % 5, 0, 0))
        for i in range(40)
    ]
    many = survey_source(Backwards(examples), threads=4, **OPTIONS)
    one = survey_source(Source(examples), threads=1, **OPTIONS)
    assert many.problems == one.problems == [f"bad {i}" for i in range(3, 40, 7)]
    assert many.names == one.names and many.digests == one.digests
    assert many.warnings == one.warnings and len(many.warnings) > 20
    np.testing.assert_array_equal(many.class_pixels, one.class_pixels)


def test_reading_stays_a_few_examples_ahead():
    class Watched(Source):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    class Interrupt(BaseException):
        pass

    seen = []
    examples = [example("a", [[0]])] * 50
    examples[5] = Interrupt()
    with pytest.raises(Interrupt):
        survey_source(Watched(examples), threads=1, **OPTIONS)
    assert max(seen) < 20


def test_allowed_but_odd_things_are_warnings():
    survey = survey_of(
        example("a", [[0] * 10]),
        example("b", [[VOID] * 10], (1, 1, 1)),
        example("c", [[VOID] * 19 + [0]], (2, 2, 2)),
        example("d", [[VOID] * 9 + [0]], (3, 3, 3)),  # 90% are let pass.
        example("e", [[0] * 10]),
    )
    assert survey.warnings == [
        "2 of 3 classes never occur: 1, 2",
        "b: all pixels are void",
        "c: 95.0% of the pixels are void",
        "a and e have the same pixels",
    ]
    assert survey.problems == []


def test_same_bytes_of_another_shape_are_another_image():
    survey = survey_of(example("a", [[0, 1, 2]]), example("b", [[0], [1], [2]]))
    assert survey.warnings == []


def test_nothing_readable_gives_zeros():
    survey = survey_of(ValueError("bad"))
    assert survey.channels.mean.tolist() == [0, 0, 0] and survey.void_share == 0
    np.testing.assert_array_equal(survey.shares, np.zeros(3))
    assert survey.warnings == [] and survey.problems == ["bad"]
    assert "0.00%" in survey_table({"train": survey}, "abc")
    assert survey_of().examples == 0


def test_progress_bar_counts_images(terminal):
    survey_of(example("a", [[0]]), ValueError("bad"), progress=True)
    assert "0/2" in terminal.readouterr().err


def test_overlaps_name_both_files():
    surveys = {
        "train": named("a", "b", "c"),
        "val": named("x", "b", start=1),  # The colours of b and c.
        "test": named("c", "y", start=50),  # A name alone says nothing.
    }
    assert overlaps(surveys) == [
        "b (train) and x (val) have the same pixels",
        "c (train) and b (val) have the same pixels",
    ]


def test_splits_apart_have_no_overlaps():
    assert overlaps({"train": named("a"), "val": named("b", start=1)}) == []


def test_survey_table_has_the_splits_and_the_classes():
    train = survey_of(
        example("a", [[0] * 4], (10, 20, 30)),
        example("b", [[0, 0, 1, VOID]] * 2, (10, 20, 30)),
        ValueError("bad"),
    )
    common = np.zeros((1000, 300), np.int32)
    common[0, 0] = 1
    val = survey_of(example("c", common))
    assert survey_table({"train": train, "val": val}, ["sky", "road", "boat"]) == (
        "split  images  read      height x width            mean          std    void\n"
        "train       3     2  1..2 x 4 (2 sizes)  10.0 20.0 30.0  0.0 0.0 0.0  16.67%\n"
        "val         1     1          1000 x 300     0.0 0.0 0.0  0.0 0.0 0.0   0.00%\n"
        "\n"
        "class  train pixels  train images  val pixels  val images\n"
        "sky         80.000%             2    100.000%           1\n"
        "road        20.000%             1     <0.001%           1\n"
        "boat          never             0       never           0"
    )


# Classes 0, 1, 2 have 5, 2 and 1 pixels, in images of 10, 10 and 4; class 3 has none.
RARE = example("a", [[0, 0, 0, 0, 1, VOID]]), example("b", [[0, 1], [2, VOID]])


def test_median_frequency_is_that_computed_by_hand():
    # Frequencies 0.5, 0.2 and 0.25.
    weights = class_weights(survey_of(*RARE, num_classes=4), "median_frequency")
    np.testing.assert_allclose(weights, [0.5, 1.25, 1, 0], rtol=1e-12)


def test_median_frequency_of_an_even_number_is_between_the_middle_two():
    # Frequencies 0.8 and 0.2.
    survey = survey_of(example("a", [[0, 0, 0, 0, 1]]))
    weights = class_weights(survey, "median_frequency")
    np.testing.assert_allclose(weights, [0.625, 2.5, 0], rtol=1e-12)


def test_inverse_log_is_that_computed_by_hand():
    weights = class_weights(survey_of(*RARE, num_classes=4), "inverse_log")
    expected = [1 / math.log(1.02 + n / 8) for n in (5, 2, 1, 0)]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert weights[3] == pytest.approx(50.498, abs=1e-3)


@pytest.mark.parametrize("balance", ["median_frequency", "inverse_log"])
def test_class_weights_without_classes_are_refused(balance):
    with pytest.raises(ValueError, match="no class occurs"):
        class_weights(survey_of(example("a", [[VOID, VOID]])), balance)


def test_class_weights_of_an_unknown_balance_are_refused():
    with pytest.raises(ValueError, match="balance = 'mean' is not one of"):
        class_weights(survey_of(*RARE), "mean")
