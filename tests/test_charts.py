import numpy as np
import pytest
from PIL import Image

from fcn_jax.charts import class_chart, confusion_chart, learning_curves
from fcn_jax.visualize import colormap

PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 250))
BEST = (255, 127, 14)  # The colour of the best step.


def colors_in(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(2**22)}


@pytest.mark.parametrize(
    "losses, scores",
    [([], []), ([2.5], [0.3]), ([5.0, 0.01], []), ([1.0, float("nan")], [0.1, 0.2])],
)
def test_learning_curves_draw_whatever_was_logged(losses, scores, tmp_path):
    records = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    records += [
        {"step": i, "mean_iu": score, "pixel_accuracy": score}
        for i, score in enumerate(scores)
    ]
    learning_curves(tmp_path / "curves.png", records)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1600, 900)


def test_learning_curves_take_the_last_entry_of_a_step(tmp_path):
    once = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    learning_curves(tmp_path / "once.png", once)
    learning_curves(tmp_path / "twice.png", [{"step": 2, "loss": 9.0}, *once])
    first, second = ((tmp_path / f"{n}.png").read_bytes() for n in ("once", "twice"))
    assert first == second


def test_class_chart_of_one_split_has_the_colors_of_the_classes(tmp_path):
    shares = {"train": np.array([0.2, 0.8, 0])}
    class_chart(tmp_path / "classes.png", shares, ["_a_", "$b$", "c" * 99])
    colors = colors_in(tmp_path / "classes.png")
    black, red, green = (tuple(map(int, color)) for color in colormap(3))
    assert colors >= {black, red} and green not in colors  # Class 2 never occurs.
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]


def test_class_chart_of_two_splits_has_a_color_for_each(tmp_path):
    shares = {"train": np.array([0.2, 0.8, 0]), "_val": np.array([0.5, 0.2, 0.3])}
    class_chart(tmp_path / "classes.png", shares, "abc")
    assert colors_in(tmp_path / "classes.png") >= {(31, 119, 180), (255, 127, 14)}


def test_class_chart_takes_many_classes_and_none_that_occurs(tmp_path):
    shares = np.random.default_rng(0).random(150) ** 9
    shares[7] = 0
    names = [f"class {i}" for i in range(150)]
    class_chart(tmp_path / "many.png", {"train": shares / shares.sum()}, names)
    class_chart(tmp_path / "none.png", {"train": np.zeros(3)}, "abc")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width > 1000 and picture.height > 1000


def test_class_chart_has_the_palette_of_the_data(tmp_path):
    shares = {"train": np.array([0.2, 0.5, 0.3])}
    class_chart(tmp_path / "classes.png", shares, "abc", palette=PALETTE)
    assert colors_in(tmp_path / "classes.png") >= set(PALETTE)


def test_learning_curves_mark_the_best_step_and_shade_the_iu(tmp_path):
    path, viridis = tmp_path / "curves.png", {(68, 1, 84), (253, 231, 37)}
    records = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "mean_iu": 0.5, "iu": {"$a$": 1.0, "b": 0.0, "never": None}},
        {"step": 4, "mean_iu": 0.4, "iu": {"$a$": 1.0, "b": 0.0, "never": None}},
    ]
    learning_curves(path, records)
    assert colors_in(path) >= {BEST, *viridis}
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))[:, 800:]
    marks = np.flatnonzero((pixels == BEST).all(-1).sum(axis=0) > 50)
    # The dotted line of step 2 stands in the middle of the steps 0 to 4.
    shaded = np.flatnonzero((pixels == (68, 1, 84)).all(-1).sum(axis=0) > 100)
    assert abs(marks.mean() - (shaded.min() + shaded.max()) / 2) < 25
    learning_curves(path, records[:1])
    assert BEST not in colors_in(path)


@pytest.mark.parametrize("count", [1, 25, 26, 61])
def test_confusion_chart_takes_any_number_of_classes(tmp_path, count):
    confusion = np.diag(np.arange(count))  # Class 0 never occurs.
    names = [f"_${i}^" * 9 for i in range(count)]
    confusion_chart(tmp_path / "confusion.png", confusion, names)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size == (1600, 900)
    dark, never = (8, 48, 107), (211, 211, 211)  # All of a class, and none.
    colors = colors_in(tmp_path / "confusion.png")
    assert never in colors and (dark in colors) == (count > 1)


def test_confusion_chart_normalises_rows_and_draws_the_iu(tmp_path):
    path = tmp_path / "confusion.png"
    confusion_chart(path, [[10, 0], [500, 500]], "ab", palette=PALETTE[1:])
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    dark = (pixels == (8, 48, 107)).all(-1)  # 1, of row a alone: b has two halves.
    assert 50_000 < dark.sum() < 200_000
    red, blue = ((pixels == color).all(-1).sum(axis=1).max() for color in PALETTE[1:])
    # IU: 10 / 510 and 500 / 1000.
    assert red < 15 and 200 < blue < 300
