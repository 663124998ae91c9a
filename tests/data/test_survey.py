import threading

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.sources import FolderSource
from fcn_jax.data.survey import check_source, overlaps, report, shortened
from fcn_jax.visualize import class_chart, colormap

VOID = 9
OPTIONS = {"num_classes": 3, "ignore_label": VOID, "progress": False}


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
    return check_source(Source(examples), **OPTIONS | changes)


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
    image, label = image_of((2, 2), (1, 2, 3)), np.array([[0, 1], [2, VOID]])
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
    assert survey.images == 3 and survey.names == ["a", "b", "c"]
    assert survey.sizes == {(2, 3): 1, (1, 2): 2}
    assert survey.void_pixels == 1 and survey.void_share == 0.1
    np.testing.assert_allclose(survey.shares, [5 / 9, 4 / 9, 0])
    # Red: (6 * 10 + 2 * 2 + 2 * 3) / 10, and so on.
    assert survey.mean_rgb == pytest.approx((7.0, 13.4, 69.6))
    assert survey.problems == []


def test_mean_color_of_a_large_bright_image_is_exact():
    size = (4200, 4200)  # Sums above 2**32.
    image = np.broadcast_to(np.uint8([255, 255, 254]), (*size, 3))
    label = np.broadcast_to(np.int32(0), size)
    survey = survey_of({"image": image, "label": label, "name": "a"})
    assert survey.mean_rgb == (255, 255, 254)


def test_bad_files_are_named_and_the_others_counted(tmp_path):
    save_broken_folder(tmp_path)
    source = FolderSource(
        tmp_path,
        images="images",
        labels="labels",
        split="train",
        num_classes=3,
        ignore_label=VOID,
    )
    survey = check_source(source, **OPTIONS)
    texts = (
        r"a_unreadable.png: cannot be read as an image",
        r"b_size.png is 2x2 .* its label .*b_size.png is 1x2",
        r"c_colours.png: a mask must hold class indices .* mode RGB",
        r"d_black_white.png: label values 255 .* save its class as 1",
        r"e_range.png: label values 3, 10 are neither in \[0, 3\)",
        r"g_label.png: cannot be read as an image",
    )
    assert len(survey.problems) == len(texts)
    for problem, text in zip(survey.problems, texts, strict=True):
        with pytest.raises(ValueError, match=text):
            raise ValueError(problem)
    assert survey.images == 7 and survey.names == ["f"]
    np.testing.assert_array_equal(survey.class_pixels, [1, 1, 1])
    assert survey.mean_rgb == (1, 2, 3) and survey.warnings == []


def test_sources_without_checks_of_their_own_are_checked():
    example_of_two_sizes = example("b", [[0, 1]])
    example_of_two_sizes["label"] = np.zeros((2, 2), np.int32)
    survey = survey_of(
        example("a", [[0, 3]]),
        example_of_two_sizes,
        KeyError("image"),
        example("d", [[0, 1, 2]]),
    )
    assert len(survey.problems) == 3 and survey.names == ["d"]
    assert survey.problems[0].startswith("a: label values 3 are neither in [0, 3)")
    assert survey.problems[1].startswith("b: an image (1, 2, 3) and its label (2, 2)")
    assert survey.problems[2] == "example 2: KeyError: 'image'"


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
    many = check_source(Backwards(examples), threads=4, **OPTIONS)
    one = check_source(Source(examples), threads=1, **OPTIONS)
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
        check_source(Watched(examples), threads=1, **OPTIONS)
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
    assert survey.mean_rgb == (0, 0, 0) and survey.void_share == 0
    np.testing.assert_array_equal(survey.shares, np.zeros(3))
    assert survey.warnings == [] and survey.problems == ["bad"]
    assert "0.00%" in report({"train": survey}, "abc")
    assert survey_of().images == 0


def test_progress_bar_counts_images(capsys):
    survey_of(example("a", [[0]]), ValueError("bad"), progress=True)
    assert "2/2" in capsys.readouterr().err


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


def test_many_overlaps_are_counted():
    names = [f"{i:02d}" for i in range(13)]
    lines = overlaps({"train": named(*names), "val": named(*names)})
    assert len(lines) == 11 and lines[-1] == "... and 3 more"


@pytest.mark.parametrize(
    "most, lines", [(1, ["a", "... and 2 more"]), (3, ["a", "b", "c"])]
)
def test_shortened_lines_are_counted(most, lines):
    assert shortened(["a", "b", "c"], most) == lines


def test_report_is_a_table_of_splits_and_of_classes():
    train = survey_of(
        example("a", [[0] * 4], (10, 20, 30)),
        example("b", [[0, 0, 1, VOID]] * 2, (10, 20, 30)),
        ValueError("bad"),
    )
    common = np.zeros((1000, 300), np.int32)
    common[0, 0] = 1
    val = survey_of(example("c", common))
    assert report({"train": train, "val": val}, ["sky", "road", "boat"]) == (
        "split  images  read      height x width        mean RGB    void\n"
        "train       3     2  1..2 x 4 (2 sizes)  10.0 20.0 30.0  16.67%\n"
        "val         1     1          1000 x 300     0.0 0.0 0.0   0.00%\n"
        "\n"
        "class  train pixels  train images  val pixels  val images\n"
        "sky         80.000%             2    100.000%           1\n"
        "road        20.000%             1     <0.001%           1\n"
        "boat          never             0       never           0"
    )


def colors_in(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(2**22)}


def test_class_chart_of_one_split_has_the_colors_of_the_classes(tmp_path):
    survey = survey_of(example("a", [[0, 1, 1, 1, 1]]))
    class_chart(tmp_path / "classes.png", {"train": survey}, ["_a_", "$b$", "c" * 99])
    colors = colors_in(tmp_path / "classes.png")
    black, red, green = (tuple(map(int, color)) for color in colormap(3))
    assert colors >= {black, red} and green not in colors  # Class 2 never occurs.
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]


def test_class_chart_of_two_splits_has_a_color_for_each(tmp_path):
    surveys = {"train": named("a"), "_val": named("b")}
    class_chart(tmp_path / "classes.png", surveys, "abc")
    assert colors_in(tmp_path / "classes.png") >= {(31, 119, 180), (255, 127, 14)}


def test_class_chart_takes_many_classes_and_none_that_occurs(tmp_path):
    rng = np.random.default_rng(0)
    label = (150 * rng.random((300, 300)) ** 3).astype(int)
    survey = survey_of(example("a", label), num_classes=150)
    names = [f"class {i}" for i in range(150)]
    class_chart(tmp_path / "many.png", {"train": survey}, names)
    class_chart(tmp_path / "none.png", {"train": survey_of()}, "abc")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width > 1000 and picture.height > 1000
