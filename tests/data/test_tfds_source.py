"""TfdsSource on a data set of TFDS whose features have names of their own."""

import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fcn_jax.data.cache import cache_source
from fcn_jax.data.tfds_source import TfdsSource

COUNTS = {"train": 5, "test": 3}


def photo(split, i):
    rng = np.random.default_rng([i, *split.encode()])
    return rng.integers(0, 256, (5 + i, 7, 3), np.uint8)


def mask(split, i):
    return (photo(split, i)[..., 0] % 4).astype(np.uint8) * 5


def encoded(array, palette=False, exif=None):
    image = Image.fromarray(array)
    if palette:  # Grey levels would differ from the indices.
        image = image.convert("P")
        image.putdata(array.ravel().tolist())
        image.putpalette([(91 * i) % 256 for i in range(768)])
    file = io.BytesIO()
    image.save(file, "png", exif=exif or Image.Exif())
    file.seek(0)
    return file


def tensor(shape, dtype):
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")


class OtherNames(tfds.core.GeneratorBasedBuilder):
    """Stands for any data set: encoded images, masks as images and as tensors."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name)
        for name in ("plain", "named", "id", "sizes", "colours", "arrays")
    ]

    def _info(self):
        features = {
            "photo": tfds.features.Image(),
            "rgb": tensor((None, None, 3), np.uint8),
            "mask": tfds.features.Image(shape=(None, None, 1)),
            "indices": tensor((None, None), np.int64),
            "indices3": tensor((None, None, 1), np.uint8),
            "depth": tensor((None, None), np.float32),
            "label": tfds.features.ClassLabel(num_classes=3),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        }
        if self.builder_config.name == "named":
            features["image/filename"] = tfds.features.Text()
        if self.builder_config.name == "id":
            features["id"] = tfds.features.Scalar(np.int64)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        config = self.builder_config.name
        for i in range(COUNTS[split]):
            label = mask(split, i + (config == "sizes"))
            turned = Image.Exif()
            turned[0x0112] = 6  # Would turn the photo, were it applied.
            example = {
                "photo": encoded(photo(split, i), exif=turned),
                "rgb": photo(split, i),
                "mask": encoded(label, palette=True),
                "indices": label.astype(np.int64),
                "indices3": label[..., None],
                "depth": label.astype(np.float32),
                "label": 1,
                "boxes": [tfds.features.BBox(0.0, 0.0, 1.0, 1.0)] * i,
            }
            if config == "colours":
                example["mask"] = encoded(photo(split, i))
            if config == "arrays":  # TFDS encodes them with TensorFlow.
                example["photo"] = photo(split, i)
            if config == "named":
                example["image/filename"] = f"{split}/{i}.x.JPG"
            if config == "id":
                example["id"] = 100 + i
            yield i, example


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def open_source(data_dir, config="plain", **changes):
    arguments = {"split": "train", "image": "photo", "label": "mask"}
    arguments |= {"num_classes": 21} | changes
    return TfdsSource(f"other_names/{config}", data_dir=data_dir, **arguments)


def numbers(source):
    """Which example of the split each of the source is: TFDS shuffles them."""
    return [example["image"].shape[0] - 5 for example in source]


@pytest.mark.parametrize("image", ["photo", "rgb"])
@pytest.mark.parametrize("label", ["mask", "indices", "indices3"])
def test_source_gives_pixels_as_stored(data_dir, image, label):
    source = open_source(data_dir, image=image, label=label)
    assert len(source) == 5
    found = numbers(source)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for i, example in zip(found, source, strict=True):
        assert example["image"].dtype == np.uint8
        assert example["label"].dtype == np.int32
        np.testing.assert_array_equal(example["image"], photo("train", i))
        np.testing.assert_array_equal(example["label"], mask("train", i))


def test_source_is_cached_under_a_fingerprint_of_files_and_options(data_dir, tmp_path):
    source = open_source(data_dir)
    cached = cache_source(source, tmp_path, name="train")
    for found, expected in zip(cached, source, strict=True):
        assert found["name"] == expected["name"]
        for key in ("image", "label"):
            np.testing.assert_array_equal(found[key], expected[key])
    same = pickle.loads(pickle.dumps(source))
    assert same.fingerprint() == source.fingerprint()
    changes = {"split": "test"}, {"label": "indices"}, {"num_classes": 20}
    changes += {"ignore_label": 5}, {"label_map": ((5, 1),)}
    others = [open_source(data_dir, **change) for change in changes]
    others.append(open_source(data_dir, "named"))
    assert len({one.fingerprint() for one in (source, *others)}) == 1 + len(others)


def test_source_prepared_anew_has_another_fingerprint(tmp_path):
    before = open_source(str(tmp_path)).fingerprint()
    (file,) = (tmp_path / "other_names/plain/1.0.0").glob("*train*")
    os.utime(file, (1, 1))
    assert open_source(str(tmp_path)).fingerprint() != before


def test_source_maps_values_to_classes_and_checks_them(data_dir):
    classes = {"num_classes": 2, "ignore_label": 9}
    mapped = open_source(
        data_dir, label_map=((0, 9), (5, 0), (10, 1), (15, 1)), **classes
    )
    for i, example in zip(numbers(mapped), mapped, strict=True):
        wanted = np.array([255, 0, 1, 1])[mask("train", i) // 5]
        np.testing.assert_array_equal(example["label"], wanted)
    with pytest.raises(ValueError, match=r"example 0 \(train\[0\]\): label values 5"):
        open_source(data_dir, **classes)[0]


def test_source_splits_may_be_parts_and_sums(data_dir):
    assert len(open_source(data_dir, split="test")) == 3
    assert len(open_source(data_dir, split="train[:40%]+test")) == 5


def test_source_name_is_from_the_feature_or_the_index(data_dir):
    assert [e["name"] for e in open_source(data_dir, split="test")] == [
        "test[0]",
        "test[1]",
        "test[2]",
    ]
    for config, name in (("named", "train/{}.x"), ("id", "{}")):
        source = open_source(data_dir, config)
        add = 100 if config == "id" else 0
        expected = [name.format(i + add) for i in numbers(source)]
        assert [example["name"] for example in source] == expected


def test_source_index_out_of_range_ends_iteration(data_dir):
    source = open_source(data_dir)
    for i in (-1, 5):
        with pytest.raises(IndexError, match=f"example {i} of 5"):
            source[i]


def test_source_is_read_by_threads(data_dir):
    source = open_source(data_dir)
    expected = [example["image"] for example in source]
    with ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(source.__getitem__, [i % 5 for i in range(40)]))
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"], expected[i % 5])


def write_voc(root):
    """Write VOC 2012 with an image to train on, a, and one to validate on, b."""
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / part).mkdir(parents=True)
    for i, (split, stem) in enumerate({"train": "a", "val": "b"}.items()):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(stem)
        Image.fromarray(photo(split, i)).save(folder / "JPEGImages" / f"{stem}.jpg")
        image = encoded(mask(split, i), palette=True)
        (folder / "SegmentationClass" / f"{stem}.png").write_bytes(image.read())
    return str(root)


def test_source_in_another_process_needs_neither_builder_nor_tensorflow(
    data_dir, tmp_path
):
    source = open_source(data_dir, "named")
    script = f"""
import pickle, sys
import fcn_jax
from fcn_jax.data.cache import cache_source
from fcn_jax.data.tfds_source import TfdsSource
assert not {{"tensorflow_datasets", "tensorflow"}} & set(sys.modules)
source, expected = pickle.load(sys.stdin.buffer)
for example, wanted in zip(source, expected, strict=True):
    assert example["name"] == wanted["name"]
    assert (example["image"] == wanted["image"]).all()
    assert (example["label"] == wanted["label"]).all()
voc = TfdsSource("voc_segmentation", split="trainval", num_classes=21,
                 manual_dir={write_voc(tmp_path)!r}, data_dir={str(tmp_path)!r})
assert [example["name"] for example in voc] == ["a", "b"]
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", script]
    subprocess.run(command, check=True, input=pickle.dumps((source, list(source))))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "val"}, r"no split 'val': it has train \(5\), test \(3\)"),
        ({"split": "train[:9]"}, r"no split 'train\[:9\]': it has train \(5\)"),
        ({"split": "train[:0%]"}, r"split 'train\[:0%\]' is empty: it has train \(5\)"),
        ({"image": "image"}, "no feature 'image' for the image: it has .*photo"),
        ({"label": "segmentation"}, "no feature 'segmentation' .*: it has .*mask"),
        ({"label": "label"}, "feature 'label' is ClassLabel.* label must be an image"),
        ({"label": "depth"}, "feature 'depth' is Tensor.*float32.* of integers"),
        ({"label": "boxes"}, "feature 'boxes' is .* label must be an image"),
        ({"image": "indices"}, "feature 'indices' is Tensor.* image must be an image"),
    ],
)
def test_source_wrong_argument_names_what_there_is(data_dir, changes, message):
    with pytest.raises(ValueError, match=f"other_names/plain.*{message}"):
        open_source(data_dir, **changes)


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_set", "'no_such_set' is not a data set of TFDS .* prepared in /"),
        ("other_names/none", "data set 'other_names/none': .*none not found"),
        ("other_names/plain:9.0.0", "9.0.0, only: 1.0.0"),
        ("voc_segmentation/voc1999", "voc1999 not found"),
    ],
)
def test_source_unknown_data_set_is_refused(data_dir, name, message):
    with pytest.raises(ValueError, match=message):
        TfdsSource(name, split="train", data_dir=data_dir, num_classes=2)


def test_source_missing_manual_dir_is_named(data_dir, tmp_path):
    open_source(data_dir)
    assert len(open_source(data_dir, manual_dir="nowhere")) == 5  # Needed no more.
    with pytest.raises(ValueError, match="manual_dir: .*nowhere is not a folder"):
        TfdsSource(
            "voc_segmentation",
            split="train",
            num_classes=21,
            data_dir=str(tmp_path),
            manual_dir=str(tmp_path / "nowhere"),
        )


def test_source_sizes_that_differ_name_the_example(data_dir):
    source = open_source(data_dir, "sizes")
    with pytest.raises(
        ValueError, match=r"other_names/sizes, example 0 \(train\[0\]\)"
    ):
        source[0]


def test_source_mask_of_colours_is_refused(data_dir):
    wanted = r"other_names/colours, example 2 \(train\[2\]\), mask: .*mode RGB"
    with pytest.raises(ValueError, match=wanted):
        open_source(data_dir, "colours")[2]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="needs an environment without TensorFlow",
)
def test_source_that_needs_tensorflow_to_prepare_says_so(tmp_path):
    wanted = "arrays cannot be prepared here: .*'tensorflow'.* run `tfds build other"
    with pytest.raises(ValueError, match=wanted):
        open_source(str(tmp_path), "arrays")


def test_source_without_array_record_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)  # As on Windows.
    wanted = "other_names needs the package array_record.*images and masks into folders"
    with pytest.raises(ValueError, match=wanted):
        TfdsSource("other_names", split="train", num_classes=2)


def test_source_prepared_as_tfrecord_names_the_way_out(tmp_path):
    open_source(str(tmp_path))
    info = tmp_path / "other_names/plain/1.0.0/dataset_info.json"
    content = json.loads(info.read_text())
    assert content["fileFormat"] == "array_record"
    info.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    wanted = "is prepared in .*other_names/plain/1.0.0 as tfrecord, .*convert_format"
    with pytest.raises(ValueError, match=wanted):
        open_source(str(tmp_path))
