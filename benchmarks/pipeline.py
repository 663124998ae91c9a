"""Images a second, decoded and augmented: `train_batches` beside torch's DataLoader.

    python benchmarks/pipeline.py --out pipeline.json

Both read the same JPEGs and PNG label maps with Pillow, scale, crop and flip them at
random with Pillow and numpy, and stack them; nothing uses the batches. torch's data set
is written as one does: with Pillow alone, the whole image resized and then cropped.
Without --root, images of VOC's usual sizes are made: noise that falls off as the detail
of a photograph does, saved at VOC's quality, so that files are as large (90 KB) and as
slow to decode.

"one core" reads in the caller's thread; the others have --cores threads or processes,
of which torch has only the latter. All stay alive and take turns. A turn first empties
what has been read ahead, so neither that nor the start of processes is timed. torch is
wanted, but without it the rest is measured.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.loader import train_batches
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.transforms import augment

IMAGES, LABELS = "JPEGImages", "SegmentationClass"
SIZES = (375, 500), (333, 500), (500, 375), (500, 333)  # Height, width.
CLASSES, VOID = 21, 255
SCALE = 0.5, 2.0
MEAN = 123, 117, 104


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help=f"folder with {IMAGES} and {LABELS}, as VOC's")
    parser.add_argument("--list-file", default="", help="under --root: stems to use")
    parser.add_argument("--images", type=int, default=200, help="made without --root")
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=30, help="timed in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.root:
            make_images(Path(folder), args.images)
        source = FolderSource(
            args.root or folder,
            images=IMAGES,
            labels=LABELS,
            split="",
            num_classes=CLASSES,
            list_file=args.list_file,
        )
        found = compare(source, args)
    show(found, args.cores)
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"arguments": vars(args), "images/s": found}, file, indent=2)


def compare(source: FolderSource, args: argparse.Namespace) -> dict:
    """Images a second by way and library: the median of the rounds."""
    pipelines = {
        ("one core", "fcn_jax"): ours(source, args, threads=0),
        ("threads", "fcn_jax"): ours(source, args, threads=args.cores),
        ("processes", "fcn_jax"): ours(source, args, threads=1, workers=args.cores),
    }
    if torch_found():
        pipelines["one core", "torch"] = theirs(source, args, workers=0)
        pipelines["processes", "torch"] = theirs(source, args, workers=args.cores)
    seconds: dict[tuple, list[float]] = {key: [] for key in pipelines}
    for _ in range(args.rounds):
        for key, batches in pipelines.items():
            for batch in itertools.islice(batches, 1 + 5 * args.cores):
                check(batch, args)
            start = time.perf_counter()
            for _ in itertools.islice(batches, args.batches):
                pass
            seconds[key].append(time.perf_counter() - start)
    images = args.batches * args.batch_size
    return {
        way: {
            library: images / statistics.median(seconds[way, library])
            for library in ("fcn_jax", "torch")
            if (way, library) in seconds
        }
        for way in ("one core", "threads", "processes")
    }


def ours(
    source: FolderSource, args: argparse.Namespace, *, threads: int, workers: int = 0
) -> Iterator[dict]:
    vary = functools.partial(
        augment,
        size=(),
        scale=SCALE,
        crop=(args.crop, args.crop),
        flip=True,
        ignore_label=VOID,
        mean_rgb=MEAN,
    )
    return train_batches(
        source,
        vary,
        batch_size=args.batch_size,
        seed=0,
        threads=threads,
        workers=workers,
    )


def theirs(
    source: FolderSource, args: argparse.Namespace, *, workers: int
) -> Iterator[dict]:
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.set_num_threads(1)  # As in its workers: "one core" is to use one.
    dataset = Pairs(source.pairs, args.crop)
    return iter(
        DataLoader(
            dataset,
            batch_size=args.batch_size,
            sampler=RandomSampler(dataset, replacement=True, num_samples=2**40),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
    )


class Pairs:
    """A data set as one writes it for torch, with Pillow alone."""

    def __init__(self, pairs: list[tuple], crop: int):
        self.pairs, self.crop = pairs, crop

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict:
        _, image_path, label_path = self.pairs[i]
        image, label = Image.open(image_path).convert("RGB"), Image.open(label_path)
        rng = np.random.default_rng()
        factor = rng.uniform(*SCALE)
        size = [max(1, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        label = label.resize(size, Image.Resampling.NEAREST)
        spare = np.subtract(self.crop, size)
        corner = rng.integers(np.minimum(spare, 0), np.maximum(spare, 0), endpoint=True)
        image = self.window(image, MEAN, corner)
        label = self.window(label, VOID, corner)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"image": np.array(image), "label": np.array(label, np.int32)}

    def window(
        self, image: Image.Image, fill: int | tuple[int, ...], corner: np.ndarray
    ) -> Image.Image:
        window = Image.new(image.mode, (self.crop, self.crop), fill)
        window.paste(image, tuple(corner.tolist()))
        return window


def check(batch: dict, args: argparse.Namespace) -> None:
    shape = (args.batch_size, args.crop, args.crop)
    found = [(tuple(v.shape), str(v.dtype).split(".")[-1]) for v in batch.values()]
    if found != [((*shape, 3), "uint8"), (shape, "int32")]:
        raise SystemExit(f"a batch of another form: {found}")


def make_images(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for folder in (IMAGES, LABELS):
        (root / folder).mkdir()
    for i in range(count):
        size = SIZES[i % len(SIZES)]
        image = sum(noise(rng, 2**octave, size) / 1.3**octave for octave in range(1, 9))
        image = Image.fromarray(np.clip(128 + 90 * image, 0, 255).astype(np.uint8))
        image.save(root / IMAGES / f"{i:04}.jpg", quality=94)
        label = np.argmax(noise(rng, 6, size, CLASSES), -1).astype(np.uint8)
        label[: size[0] // 50] = VOID
        label = Image.fromarray(label)
        label.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
        label.save(root / LABELS / f"{i:04}.png")


def noise(
    rng: np.random.Generator, side: int, size: tuple[int, int], channels: int = 3
) -> np.ndarray:
    """[H, W, channels]: random values at side x side places, smooth between them."""
    coarse = rng.standard_normal((channels, side, side), np.float32)
    planes = [Image.fromarray(plane).resize(size[::-1]) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], -1)


def show(found: dict, cores: int) -> None:
    print(f"{'images/s (per core)':<20}{'fcn_jax':>18}{'torch':>18}{'ratio':>8}")
    for way, row in found.items():
        used = 1 if way == "one core" else cores
        print(f"{way if way == 'one core' else f'{cores} {way}':<20}", end="")
        for rate in row.values():
            print(f"{f'{rate:.1f} ({rate / used:.1f})':>18}", end="")
        if "torch" in row:
            print(f"{row['fcn_jax'] / row['torch']:8.2f}", end="")
        print()
    if not torch_found():
        print("torch: not installed")


def torch_found() -> bool:
    return importlib.util.find_spec("torch") is not None


if __name__ == "__main__":
    main()
