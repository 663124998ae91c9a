"""Batches for training: shuffled, augmented, read ahead, placed on the device."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fcn_jax.data.padding import bucket as bucket_of
from fcn_jax.data.padding import fill_up

# Without end in practice; grain's own infinity overflows in batches of one.
_ENDLESS = 2**62


def train_batches(
    source: Any,
    augment: Callable[[dict, np.random.Generator], dict],
    *,
    batch_size: int,
    seed: int,
    replacement: bool = False,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    bucket: int = 0,
    ignore_label: int = 255,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches without end, each epoch in an order of its own.

    The batch of a step is a pure function of (source, augment, batch_size, seed,
    step): neither ``start_step`` nor the number of threads and workers changes it, so
    a resumed run sees what it would have seen. An epoch that is no multiple of the
    batch runs on into the next; nothing is dropped.

    Args:
        source: ``__len__`` and ``__getitem__`` giving examples (fcn_jax.data.sources).
        augment: makes an example of the training shape; pickled if ``workers`` > 0.
        batch_size: examples per batch.
        seed: decides order and augmentation.
        replacement: draws each example from all, as the authors' release does, instead
            of each once an epoch.
        start_step: step of the first batch.
        shard: (i, n) reads part i of n equal parts of each batch, and no other: joined
            in order, the parts are the batch. For n processes that share each step.
        bucket: fills images of different sizes up to sides that are multiples of this,
            and adds "size" [B, 2] int32 to the batch; 0 wants one size.
        ignore_label: of the label that is filled up.
        threads: threads that read, in this process or in each worker, each a batch.
        workers: processes that read, 0 for none; ``close()`` on the iterator ends
            them. They are spawned: a script needs ``if __name__ == "__main__":``.
    Returns:
        Iterator of {"image": [B / n, H, W, 3] uint8, "label": [B / n, H, W] int32}.
    Raises:
        ValueError: if the source is empty, the shapes in a batch differ or it has no n
            equal parts. An error of the source or of ``augment`` arrives as raised,
            when its batch is due.
    """
    if not len(source):
        raise ValueError("the source holds no examples")
    index, count = shard
    if batch_size % count:
        raise ValueError(f"batch_size = {batch_size} has no {count} equal parts")
    if replacement:
        draw = functools.partial(_draw, source)
        examples = grain.MapDataset.range(_ENDLESS).seed(seed).random_map(draw)
    else:
        examples = grain.MapDataset.source(source).seed(seed).shuffle()
        examples = examples.repeat(_ENDLESS // len(source))
    stack = functools.partial(_fill_up, bucket, ignore_label) if bucket else _stack
    # Every count-th of these smaller batches is this shard's.
    parts = examples.random_map(augment).batch(batch_size // count, batch_fn=stack)
    batches = parts[start_step * count + index :: count]
    batches = batches.to_iter_dataset(grain.ReadOptions(threads, threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # In a notebook; grain has flags of its own.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers))
    return iter(batches)


def prefetch_to_device(
    batches: Iterable[Any],
    *,
    depth: int = 2,
    put: Callable[[Any], Any] = jax.device_put,
) -> Iterator[Any]:
    """Keeps ``depth`` batches on their way to the device ahead of the one in use.

    Args:
        batches: host batches.
        depth: batches ahead; 0 for none.
        put: starts the transfer of one batch and returns it.
    Yields:
        ``put(batch)`` in order. An exception surfaces after the batches before it.
    """
    batches = iter(batches)
    ahead: collections.deque = collections.deque()
    end: Exception | None = None
    while True:
        while end is None and len(ahead) <= depth:
            try:
                ahead.append(put(next(batches)))
            except Exception as error:  # StopIteration among them.
                end = error
        if not ahead:
            break
        yield ahead.popleft()
    if not isinstance(end, StopIteration):
        raise end


def _draw(source: Any, _: int, rng: np.random.Generator) -> dict:
    return source[int(rng.integers(len(source)))]


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    first = examples[0]
    for other in examples:
        if other["label"].shape != first["label"].shape:
            raise ValueError(
                "images of one batch must share a size, but {} is {}x{} and {} is "
                "{}x{} (height x width): set data.crop, or data.size with no random "
                "scale, or a batch size of 1".format(
                    first["name"],
                    *first["label"].shape,
                    other["name"],
                    *other["label"].shape,
                )
            )
    return {
        key: np.stack([example[key] for example in examples])
        for key in ("image", "label")
    }


def _fill_up(
    step: int, ignore_label: int, examples: list[dict]
) -> dict[str, np.ndarray]:
    sizes = [example["label"].shape for example in examples]
    shape = bucket_of(np.max(sizes, axis=0), step)
    image, size = fill_up([e["image"] for e in examples], shape, len(examples))
    label = np.full((len(examples), *shape), ignore_label, np.int32)
    for i, example in enumerate(examples):
        h, w = sizes[i]
        label[i, :h, :w] = example["label"]
    return {"image": image, "label": label, "size": size}
