"""Batches for training: shuffled, augmented, prefetched, placed on the device."""

import collections
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fcn_jax.data.labels import VOID
from fcn_jax.data.padding import bucket as bucket_of
from fcn_jax.data.padding import fill_up

# Endless in practice. grain's own infinity overflows with a batch size of 1.
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
    threads: int = 2,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Read training batches without end, shuffled anew in each epoch.

    The batch of a step is a pure function of (source, augment, batch_size, seed,
    step). Neither ``start_step`` nor the number of threads and workers changes it, so
    a resumed run sees the batches it would have seen. A batch may span two epochs:
    no example is dropped.

    Args:
        source: a source of examples (fcn_jax.data.sources).
        augment: turns an example into one of the training shape, with a random
            generator; pickled if ``workers`` > 0.
        batch_size: examples per batch.
        seed: seed of the order and the augmentation.
        replacement: whether to draw each example from all, as the authors' release
            does, instead of each example once per epoch.
        start_step: step of the first batch.
        shard: (i, n): read only the i-th of n equal parts of each batch. The n parts
            in order make up the batch. For n processes that share each step.
        bucket: pad images of different sizes to sides that are multiples of this, and
            add "size" [B, 2] int32 to the batch. 0 expects images of one size.
        threads: reading threads, in this process or in each worker; each reads whole
            batches.
        workers: reading processes; 0 for none. ``close()`` on the iterator ends them.
            They are spawned, so a script needs ``if __name__ == "__main__":``.

    Returns:
        Iterator of {"image": [B / n, H, W, N] uint8 or float32, "label": [B / n, H, W]
        int32}. An image with float32 examples is float32.

    Raises:
        ValueError: if the source is empty, ``batch_size`` is not divisible by n, or the
            shapes in a batch differ. An error of the source or of ``augment`` arrives
            unchanged when its batch is due.
    """
    if not len(source):
        raise ValueError("the source holds no examples")
    index, count = shard
    if batch_size % count:
        raise ValueError(
            f"batch_size = {batch_size} is not divisible by {count}, the shards"
        )
    if replacement:
        draw = functools.partial(_draw, source)
        examples = grain.MapDataset.range(_ENDLESS).seed(seed).random_map(draw)
    else:
        examples = grain.MapDataset.source(source).seed(seed).shuffle()
        examples = examples.repeat(_ENDLESS // len(source))
    stack = functools.partial(_fill_up, bucket) if bucket else _stack
    # Batches of the size of a shard: every count-th belongs to this shard.
    parts = examples.random_map(augment).batch(batch_size // count, batch_fn=stack)
    batches = parts[start_step * count + index :: count]
    batches = batches.to_iter_dataset(grain.ReadOptions(threads, threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # In a notebook; grain reads absl flags.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(workers), worker_init_fn=_end_with_parent
        )
    return iter(batches)


def prefetch_to_device(
    batches: Iterable[Any],
    *,
    depth: int = 2,
    put: Callable[[Any], Any] = jax.device_put,
) -> Iterator[Any]:
    """Start the transfer of ``depth`` batches ahead of the one in use.

    Args:
        batches: batches in host memory.
        depth: batches ahead; 0 for none.
        put: starts the transfer of one batch and returns it.

    Yields:
        ``put(batch)`` in order. An exception is raised after the batches before it.
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


def _end_with_parent(worker: int, workers: int) -> None:
    """End this reading process when its parent is killed, which could not end it.

    Shared memory is then freed too, by the tracker that Python starts for it.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw(source: Any, _: int, rng: np.random.Generator) -> dict:
    return source[int(rng.integers(len(source)))]


def _stack(examples: list[dict]) -> dict[str, np.ndarray]:
    first = examples[0]
    for other in examples:
        if other["label"].shape != first["label"].shape:
            raise ValueError(
                "images of one batch must share a size, but {} is {}x{} and {} is "
                "{}x{} (height x width): let augment crop or resize them to one size, "
                "or set bucket, or set batch_size = 1".format(
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


def _fill_up(step: int, examples: list[dict]) -> dict[str, np.ndarray]:
    sizes = [example["label"].shape for example in examples]
    shape = bucket_of(np.max(sizes, axis=0), step)
    image, size = fill_up([e["image"] for e in examples], shape, len(examples))
    label = np.full((len(examples), *shape), VOID, np.int32)
    for i, example in enumerate(examples):
        h, w = sizes[i]
        label[i, :h, :w] = example["label"]
    return {"image": image, "label": label, "size": size}
