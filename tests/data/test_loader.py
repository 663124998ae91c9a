import functools
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.loader import prefetch_to_device, train_batches
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.transforms import augment

SOURCE = ShapesSource("train", size=(24, 20), length=7)
AUGMENT = functools.partial(
    augment,
    size=(),
    scale=(0.5, 2),
    crop=(16, 18),
    flip=True,
    mean=(120, 120, 120),
    rotation=20,
    jitter=(0.3, 0.3, 0.3, 0.1),
)


class Numbered:
    """Example i is a picture of nothing but i."""

    def __init__(self, length, sizes=()):
        self.sizes = sizes or [(2, 2)] * length

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        image = np.full((*self.sizes[i], 3), i, np.uint8)
        label = np.full(self.sizes[i], i, np.int32)
        return {"image": image, "label": label, "name": f"n{i}"}


def unchanged(example, rng):
    return example


def take(count, **options):
    batches = train_batches(SOURCE, AUGMENT, batch_size=3, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def drawn(source, count, **options):
    """The examples drawn, by number, batch after batch."""
    batches = train_batches(source, unchanged, **options)
    batches = itertools.islice(batches, count)
    return [batch["label"][:, 0, 0].tolist() for batch in batches]


def test_train_batches_have_the_promised_form():
    (batch,) = take(1, seed=0)
    assert batch.keys() == {"image", "label"}
    assert batch["image"].shape == (3, 16, 18, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (3, 16, 18) and batch["label"].dtype == np.int32


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_train_batches_resumed_in_threads_are_those_of_an_unbroken_run(threads):
    expected = take(9, seed=4, threads=0)
    assert_same(take(9, seed=4, threads=threads), expected)
    assert_same(take(4, seed=4, threads=threads, start_step=5), expected[5:])


def test_train_batches_resumed_in_processes_are_those_of_an_unbroken_run():
    expected = take(9, seed=4)
    assert_same(take(4, seed=4, workers=2, start_step=5), expected[5:])


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_train_batches_of_all_shards_joined_are_the_batches(count, replacement):
    options = {"batch_size": 6, "seed": 4, "replacement": replacement}
    expected = drawn(Numbered(10), 7, **options)
    for start in (0, 4):
        parts = [
            drawn(Numbered(10), 3, start_step=start, shard=(i, count), **options)
            for i in range(count)
        ]
        joined = [sum(step, []) for step in zip(*parts, strict=True)]
        assert joined == expected[start : start + 3]


def test_train_batches_of_a_shard_are_augmented_as_in_the_batch():
    whole = take(3, seed=4)
    parts = [take(3, seed=4, shard=(i, 3), workers=i == 1) for i in range(3)]
    for batch, shards in zip(whole, zip(*parts, strict=True), strict=True):
        for key in batch:
            joined = np.concatenate([shard[key] for shard in shards])
            np.testing.assert_array_equal(joined, batch[key])


def test_train_batches_of_a_shard_read_no_other_examples():
    read = []

    class Noted(Numbered):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    (part,) = drawn(Noted(6), 1, batch_size=6, seed=0, shard=(1, 3), threads=0)
    assert read == part and len(part) == 2


def test_train_batches_without_equal_shards_name_both_numbers():
    with pytest.raises(ValueError, match="batch_size = 4 is not divisible by 3"):
        train_batches(Numbered(9), unchanged, batch_size=4, seed=0, shard=(0, 3))


def test_train_batches_of_another_seed_differ():
    (first,), (second,) = take(1, seed=0), take(1, seed=1)
    assert not np.array_equal(first["image"], second["image"])


def test_train_batches_draw_every_example_once_an_epoch_in_a_new_order():
    first, second, third = drawn(Numbered(12), 3, batch_size=12, seed=0)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(12))
    assert first != second != third != first


def test_train_batches_with_replacement_draw_each_from_all():
    source = Numbered(10)
    batches = drawn(source, 30, batch_size=100, seed=0, replacement=True)
    counts = np.bincount(sum(batches, []), minlength=10)
    assert counts.sum() == 3000
    assert np.abs(counts - 300).max() < 5 * np.sqrt(3000 * 0.1 * 0.9)
    epochs = np.reshape(batches, (300, 10))
    distinct = np.mean([len(set(epoch)) for epoch in epochs.tolist()])
    assert abs(distinct - 10 * (1 - 0.9**10)) < 0.3  # 6.5 of 10, not 10
    resumed = drawn(source, 3, batch_size=100, seed=0, replacement=True, start_step=5)
    assert resumed == batches[5:8]


def test_train_batches_augment_each_epoch_anew():
    def noise(example, rng):
        return example | {"label": np.full((1, 1), rng.integers(2**31), np.int32)}

    batches = train_batches(Numbered(1), noise, batch_size=1, seed=0)
    values = {int(next(batches)["label"][0, 0, 0]) for _ in range(10)}
    assert len(values) == 10


def test_train_batches_larger_than_the_source_run_through_epochs():
    batches = drawn(Numbered(3), 3, batch_size=5, seed=0)
    flat = sum(batches, [])
    assert [len(batch) for batch in batches] == [5, 5, 5]
    assert all(sorted(flat[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))


def test_train_batches_of_mixed_sizes_name_two_files_and_the_way_out():
    source = Numbered(2, [(2, 3), (4, 5)])
    with pytest.raises(ValueError, match="share a size") as caught:
        drawn(source, 1, batch_size=2, seed=0)
    message = str(caught.value)
    for part in ("n0 is 2x3", "n1 is 4x5", "augment", "bucket", "batch_size = 1"):
        assert part in message


def test_train_batches_of_mixed_sizes_are_filled_up_to_a_bucket():
    source = Numbered(2, [(2, 3), (4, 9)])
    options = {"batch_size": 2, "seed": 0, "bucket": 8}
    batch = next(train_batches(source, unchanged, **options))
    assert batch["image"].shape == (2, 8, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (2, 8, 16) and batch["label"].dtype == np.int32
    assert batch["size"].dtype == np.int32
    assert sorted(batch["size"].tolist()) == [[2, 3], [4, 9]]
    for image, label, (h, w) in zip(
        *map(batch.get, ("image", "label", "size")), strict=True
    ):
        number = 0 if h == 2 else 1
        assert (label[:h, :w] == number).all() and (image[:h, :w] == number).all()
        assert (label == 255).sum() == 8 * 16 - h * w
        assert image.sum() == 3 * number * h * w


@pytest.mark.parametrize("bucket", [0, 8])
def test_train_batches_of_many_channels_are_float_if_one_example_is(bucket):
    images = [np.full((8, 8, 5), 7, np.uint8), np.full((8, 8, 5), 999.5, np.float32)]
    label = np.zeros((8, 8), np.int32)
    source = [{"image": i, "label": label, "name": "x"} for i in images]
    batches = train_batches(source, unchanged, batch_size=2, seed=0, bucket=bucket)
    image = next(batches)["image"]
    assert image.shape == (2, 8, 8, 5) and image.dtype == np.float32
    assert sorted(np.unique(image)) == [7, 999.5]


def test_train_batches_of_mixed_sizes_go_one_by_one():
    source = Numbered(2, [(2, 3), (4, 5)])
    assert sorted(drawn(source, 2, batch_size=1, seed=0)) == [[0], [1]]


def test_train_batches_of_an_empty_source_are_refused():
    with pytest.raises(ValueError, match="the source holds no examples"):
        train_batches(Numbered(0), unchanged, batch_size=1, seed=0)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 1}])
def test_train_batches_pass_on_the_error_of_a_source(tmp_path, options):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.new("L", (30, 30)).save(tmp_path / folder / "a.png")
    (tmp_path / "images" / "a.png").write_text("not an image")
    source = FolderSource(
        tmp_path, images="images", labels="labels", split="train", num_classes=2
    )
    batches = train_batches(source, AUGMENT, batch_size=1, seed=0, **options)
    with pytest.raises(ValueError, match=r"images.a.png: cannot be read as an image"):
        next(batches)
    batches.close()


def test_prefetch_to_device_keeps_depth_batches_ahead():
    started = []
    batches = prefetch_to_device(iter(range(9)), depth=2, put=started.append)
    next(batches)
    assert started == [0, 1, 2]
    next(batches)
    assert started == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_prefetch_to_device_gives_every_batch_in_order(depth):
    batches = prefetch_to_device(range(5), depth=depth, put=lambda batch: 10 * batch)
    assert list(batches) == [0, 10, 20, 30, 40]


def test_prefetch_to_device_gives_jax_arrays():
    (batch,) = prefetch_to_device([{"image": np.arange(3)}])
    assert isinstance(batch["image"], jax.Array)
    np.testing.assert_array_equal(batch["image"], [0, 1, 2])


def test_prefetch_to_device_raises_after_the_batches_before():
    def broken():
        yield from (1, 2)
        raise ValueError("file x.png")

    batches = prefetch_to_device(broken(), depth=4, put=lambda batch: batch)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(ValueError, match="file x.png"):
        next(batches)
