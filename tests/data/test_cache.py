import functools
import itertools
import logging
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import cache
from fcn_jax.data.cache import cache_source
from fcn_jax.data.loader import train_batches
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.transforms import augment, resize
from fcn_jax.files import WriteError

COUNT = 5


@pytest.fixture
def root(tmp_path):
    """A folder of pairs of several sizes, as JPEG and PNG."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(COUNT):
        image = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"images/{i}.jpg")
        label = rng.integers(0, 4, (20 + i, 30), np.uint8)  # 3 is void.
        Image.fromarray(label).save(tmp_path / f"labels/{i}.png")
    return tmp_path


def open_source(root, **changes):
    arguments = {"images": "images", "labels": "labels", "split": "train"}
    arguments |= {"num_classes": 3, "ignore_label": 3}
    return FolderSource(root, **arguments | changes)


def assert_equal(found, expected):
    assert found["name"] == expected["name"]
    for key in ("image", "label"):
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key])


def test_cached_examples_are_those_of_the_source(root):
    source = open_source(root)
    cached = cache_source(source, root / "cache", name="train")
    assert len(cached) == COUNT
    for i in range(COUNT):
        assert_equal(cached[i], source[i])
    with pytest.raises(IndexError):
        cached[COUNT]


def test_cached_examples_of_a_size_are_resized_ones(root):
    source = open_source(root)
    cached = cache_source(source, root / "cache", name="train", size=(16, 12))
    for i in range(COUNT):
        assert_equal(cached[i], resize(source[i], (16, 12)))


def test_cached_channels_of_16_bits_stay_float32(root):
    rng = np.random.default_rng(1)
    (root / "depth").mkdir()
    for i in range(COUNT):
        depth = rng.integers(0, 2**16, (20 + i, 30), np.uint16)
        Image.fromarray(depth).save(root / f"depth/{i}.png")
    source = open_source(root, extra_images=("depth",), in_channels=4)
    cached = cache_source(source, root / "cache", name="train")
    assert cached[3]["image"].dtype == np.float32
    assert_equal(cached[3], source[3])


def test_cached_example_may_be_changed_in_place(root):
    source = open_source(root)
    cached = cache_source(source, root / "cache", name="train")
    example = cached[0]
    example["image"][:], example["label"][:] = 0, 0
    assert_equal(cached[0], source[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_cached_source_are_those_of_the_source(root, workers):
    size = (18, 18)
    vary = functools.partial(
        augment,
        size=size,
        scale=(0.5, 2.0),
        crop=(16, 16),
        flip=True,
        mean=(120, 120, 120),
        jitter=(0.3, 0.3, 0.3, 0.05),
    )
    source = open_source(root)
    cached = cache_source(source, root / "cache", name="train", size=size)
    options = {"batch_size": 2, "seed": 3}
    batches = train_batches(cached, vary, workers=workers, **options)
    expected = train_batches(source, vary, **options)
    pairs = zip(batches, expected, strict=True)
    for one, other in itertools.islice(pairs, 4):
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key], other[key])
    batches.close()


def test_second_call_finds_the_file(root, monkeypatch):
    cache_source(open_source(root), root / "cache", name="train")
    (file,) = (root / "cache").iterdir()
    monkeypatch.setattr(cache, "_write", None)
    cached = cache_source(open_source(root), root / "cache", name="train")
    assert [example["name"] for example in cached] == list("01234")
    assert file.name.startswith("train-")


def test_cache_in_another_place_and_time_is_found_by_the_files_alone(root):
    copy = root.with_name("copy")
    shutil.copytree(root, copy)  # Keeps the times of change.
    assert open_source(copy).fingerprint() == open_source(root).fingerprint()


def change_mask(root):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(root / "labels/0.png")


def touch_image(root):
    os.utime(root / "images/0.jpg", (1, 1))


def remove_pair(root):
    (root / "images/4.jpg").unlink()
    (root / "labels/4.png").unlink()


@pytest.mark.parametrize("change", [change_mask, touch_image, remove_pair])
def test_changed_files_are_cached_anew(root, change, caplog):
    cache_source(open_source(root), root / "cache", name="train")
    (old,) = (root / "cache").iterdir()
    change(root)
    source = open_source(root)
    with caplog.at_level(logging.INFO, "fcn_jax"):
        cached = cache_source(source, root / "cache", name="train")
    assert len(list((root / "cache").iterdir())) == 2
    assert old.name in caplog.text
    assert_equal(cached[0], source[0])
    assert len(cached) == len(source)


@pytest.mark.parametrize(
    "changes, size",
    [
        ({"label_map": ((0, 1),)}, ()),
        ({"num_classes": 4, "ignore_label": 255}, ()),
        ({"resize_labels": True}, ()),
        ({"in_channels": 1 + 3}, ()),
        ({"palette": ((0, 0, 0), (1, 1, 1), (2, 2, 2))}, ()),
        ({}, (16, 16)),
    ],
)
def test_other_options_are_another_cache(root, changes, size, monkeypatch):
    written = []
    monkeypatch.setattr(cache, "_write", lambda source, path, *_: written.append(path))
    monkeypatch.setattr(cache, "CachedSource", lambda path: path)
    one = cache_source(open_source(root), root, name="train")
    source = open_source(root, **changes)
    assert cache_source(source, root, name="train", size=size) != one
    assert len(written) == 2


def test_other_version_of_pillow_is_another_cache(root, monkeypatch):
    cache_source(open_source(root), root / "cache", name="train")
    monkeypatch.setattr(cache.PIL, "__version__", "0.1")
    cache_source(open_source(root), root / "cache", name="train")
    assert len(list((root / "cache").iterdir())) == 2


def test_name_of_a_split_expression_becomes_a_file_name(root):
    cache_source(open_source(root), root / "cache", name="train[:90%]/x")
    (file,) = (root / "cache").iterdir()
    assert file.name.startswith("train_90_x-")


def test_faulty_example_leaves_no_file(root):
    (root / "images/3.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="3.jpg: cannot be read"):
        cache_source(open_source(root), root / "cache", name="train")
    assert list((root / "cache").iterdir()) == []


def test_full_disk_is_told_before_anything_is_written(root, monkeypatch):
    usage = namedtuple("Usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    told = r"train, 5 images, takes about 13.* kB, but .*cache has only 1 kB free"
    with pytest.raises(ValueError, match=told):
        cache_source(open_source(root), root / "cache", name="train")
    assert list((root / "cache").iterdir()) == []


def test_failed_write_names_the_file(root, monkeypatch):
    from array_record.python import array_record_module

    class Full:
        def __init__(self, path, options):
            open(path, "wb").close()

        def write(self, record):
            raise RuntimeError("No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(WriteError, match="train-.*array_record: No space left"):
        cache_source(open_source(root), root / "cache", name="train")
    assert list((root / "cache").iterdir()) == []


def test_damage_is_found_when_its_example_is_read(root):
    source = open_source(root)
    cached = cache_source(source, root / "cache", name="train")
    (file,) = (root / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(source[2]["image"].tobytes()) + 100] ^= 1
    file.write_bytes(content)
    cached = pickle.loads(pickle.dumps(cached))  # Opens the file anew.
    assert_equal(cached[1], source[1])
    with pytest.raises(ValueError, match="train-.* is damaged: delete it"):
        cached[2]
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="train-.* is damaged: delete it"):
        cache_source(source, root / "cache", name="train")


def test_source_without_fingerprint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ShapesSource cannot be cached"):
        cache_source(ShapesSource("train"), tmp_path, name="train")


def test_missing_array_record_is_told(root, monkeypatch):
    monkeypatch.setattr(cache.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="array_record, which does not exist for Win"):
        cache_source(open_source(root), root / "cache", name="train")


def test_progress_is_shown_while_the_file_is_written(root, terminal):
    cache_source(open_source(root), root / "cache", name="train")
    assert "cache train" in terminal.readouterr().err
    cache_source(open_source(root), root / "cache", name="other", progress=False)
    assert "cache other" not in terminal.readouterr().err
