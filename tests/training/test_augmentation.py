import itertools
import sys
import threading

import numpy as np
import pytest

from fcn_jax.data.loader import train_batches
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.training.augmentation import own_transform, training_augment
from fcn_jax.training.config import Config, Data

SOURCE = ShapesSource("train", size=(24, 20), length=5)
EXAMPLE = SOURCE[0]
# As a user writes it: Noise is a stand-in for a transform of albumentations.
MODULE = """
import numpy as np

class Noise:
    def __init__(self, strength, seed):
        self.strength, self.rng = strength, np.random.default_rng(seed)

    def __call__(self, *, image, mask):
        noise = self.rng.normal(0, self.strength, image.shape)
        noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
        return {"image": noisy, "mask": mask}

def add_noise(example, rng):
    transform = Noise(10, seed=rng.integers(2**32))
    found = transform(image=example["image"], mask=example["label"])
    return example | {"image": found["image"], "label": found["mask"]}

constant = 3
"""


def make_config(transform="", **fields):
    return Config(data=Data(num_classes=5, transform=transform, **fields))


def rng(seed=0):
    return np.random.default_rng(seed)


def darken(example, generator):
    """Writes into the array that it was given."""
    example["image"] //= 2
    return example


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current directory has a module that is not on the path."""
    (tmp_path / "own_transforms.py").write_text(MODULE)
    (tmp_path / "broken_transforms.py").write_text("import nothing_such")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    sys.modules.pop("own_transforms", None)


def test_training_augment_has_all_that_the_config_describes():
    config = make_config(size=(30, 40), scale=(0.5, 0.5), crop=(25, 35), rotation=90.0)
    config.data.jitter = (0.5, 0.5, 0.5, 0.1)
    found = training_augment(config, darken)(EXAMPLE, rng(1))
    assert found["image"].shape == (25, 35, 3) and found["image"].dtype == np.uint8
    assert found["label"].shape == (25, 35) and (found["label"] == 255).any()
    assert found["image"].max() <= 127


def test_own_transform_is_found_in_the_current_directory(project):
    found = own_transform(make_config("own_transforms:add_noise"))
    assert found.__module__ == "own_transforms"
    assert own_transform(make_config()) is None


def test_given_callable_replaces_the_name():
    assert own_transform(make_config("nowhere:f"), darken) is darken


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "no_such_module:f",
            "the module no_such_module cannot be imported from .*No m",
        ),
        (
            "broken_transforms:f",
            "cannot be imported from .*No module named 'nothing_su",
        ),
        ("own_transforms:nothing", r"own_transforms.py has no function nothing"),
        ("own_transforms:constant", "constant is a int, want a function"),
    ],
)
def test_name_without_a_function_is_refused(project, name, message):
    with pytest.raises(
        ValueError, match=f"config.data.transform = '{name}': .*{message}"
    ):
        own_transform(make_config(name))


def test_callable_that_processes_cannot_take_is_refused():
    lock = threading.Lock()

    def locked(example, generator):
        with lock:
            return example

    assert own_transform(make_config(workers=0), locked) is locked
    with pytest.raises(
        ValueError, match=r"cannot be sent.*set config.data.workers = 0"
    ):
        own_transform(make_config(workers=2), locked)
    with pytest.raises(ValueError, match="transform is 3, want a function"):
        own_transform(make_config(), 3)


def batches_of(config, start, count):
    batches = train_batches(
        SOURCE,
        training_augment(config),
        batch_size=3,
        seed=1,
        start_step=start,
        workers=config.data.workers,
    )
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_batches_with_all_augmentation_are_those_of_an_unbroken_run(
    project, workers
):
    random = {"rotation": 30.0, "jitter": (0.3, 0.3, 0.3, 0.1), "scale": (0.5, 1.5)}
    config = make_config("own_transforms:add_noise", crop=(16, 18), **random)
    whole = batches_of(config, 0, 6)
    config.data.workers = workers
    for found, expected in zip(batches_of(config, 3, 3), whole[3:], strict=True):
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    assert not np.array_equal(whole[0]["image"], whole[1]["image"])


def test_own_transform_may_write_into_its_arrays():
    config = make_config(flip=False)
    before = EXAMPLE["image"].copy()
    found = training_augment(config, darken)(EXAMPLE, rng())
    np.testing.assert_array_equal(found["image"], before // 2)
    np.testing.assert_array_equal(EXAMPLE["image"], before)
    assert found["name"] == EXAMPLE["name"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_own_transform_may_change_size_and_integer_type_of_the_label(dtype):
    def halve(example, generator):
        return {
            "image": example["image"][::2, ::2],
            "label": example["label"][::2, ::2].astype(dtype),
        }

    found = training_augment(make_config(flip=False), halve)(EXAMPLE, rng())
    assert found["label"].dtype == np.int32 and found["label"].shape == (12, 10)
    np.testing.assert_array_equal(found["label"], EXAMPLE["label"][::2, ::2])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": EXAMPLE["image"] / 255}, r"image \[24, 20, 3\] float64 .*uint8"),
        ({"image": EXAMPLE["image"][..., :1]}, r"image \[24, 20, 1\] uint8 .*, 3\] ui"),
        (
            {"image": EXAMPLE["image"][1:]},
            r"\[23, 20, 3\] uint8 and a label \[24, 20\]",
        ),
        (
            {"label": EXAMPLE["label"] / 2},
            r"label \[24, 20\] float64, want .* integers",
        ),
        ({"label": EXAMPLE["label"] + 5}, "label values .* are neither in"),
        (None, "is a NoneType, want a dict with"),
    ],
)
def test_result_of_another_form_names_function_and_example(changes, message):
    def spoil(example, generator):
        return changes and example | changes

    start = f"example {EXAMPLE['name']}: what the transform .*spoil returned"
    with pytest.raises(ValueError, match=f"{start}.*{message}"):
        training_augment(make_config(), spoil)(EXAMPLE, rng())


def test_result_with_nan_is_refused():
    image = np.zeros((4, 4, 5), np.float32)
    example = {"image": image, "label": np.zeros((4, 4), np.int32), "name": "x"}
    config = make_config(flip=False)
    config.model.in_channels, config.model.mean = 5, (0.0,) * 5
    with pytest.raises(ValueError, match="example x: .*image with NaN or infinity"):
        augment = training_augment(config, lambda e, _: e | {"image": image / 0})
        with np.errstate(invalid="ignore"):
            augment(example, rng())


def test_void_of_two_classes_passes_an_own_transform():
    config = Config(data=Data(num_classes=2, flip=False))
    label = np.where(EXAMPLE["label"] == 255, 255, 0).astype(np.int32)
    assert set(np.unique(label)) == {0, 255}  # As in a mask of black and white.
    augment = training_augment(config, lambda example, generator: example)
    found = augment(EXAMPLE | {"label": label}, rng())
    np.testing.assert_array_equal(found["label"], label)
