"""Measure images per second, read and augmented, beside torch's DataLoader.

    python benchmarks/pipeline.py --out pipeline.json

Both `train_batches` and torch read the same JPEGs and PNG label maps with Pillow,
scale, crop and flip them at random with Pillow and numpy, and stack them. Nothing uses
the batches. torch's data set is written in the usual way: with Pillow alone, the whole
image resized and then cropped. Without --root, images of VOC's usual sizes are made:
noise that falls off as the detail of a photograph does, saved at VOC's quality, so that
files are as large (90 KB) and as slow to decode.

"one core" reads in the caller's thread. "threads" and "processes" have --cores of them;
torch has processes only. All stay alive and take turns. A turn first empties what has
been read ahead, so neither that nor the start of processes is timed. Without torch the
rest is measured.
"""

import argparse
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
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
    parser = harness.make_parser(__doc__, batch_size=8, repeats=5)
    add = parser.add_argument
    add("--root", help=f"folder with {IMAGES} and {LABELS}, as VOC's")
    add("--list-file", default="", help="file under --root of the stems to use")
    add("--images", type=int, default=200, help="number of images made without --root")
    add("--crop", type=int, default=320, help="height and width of the crops")
    add("--batches", type=int, default=30, help="batches timed in a turn")
    add("--cores", type=int, default=os.cpu_count(), help="threads or processes")
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
        times = measure(source, args)
    rates = {key: args.batch_size / s for key, s in harness.medians(times).items()}
    found: dict[str, dict[str, float]] = {way: {} for way, _ in rates}
    print(f"{'images/s (per core)':<20}{'fcn_jax':>18}{'torch':>18}{'ratio':>8}")
    for way, row in found.items():
        used = 1 if way == "one core" else args.cores
        print(f"{way if way == 'one core' else f'{used} {way}':<20}", end="")
        for library in ("fcn_jax", "torch"):
            if (rate := rates.get((way, library))) is not None:
                row[library] = rate
                print(f"{f'{rate:.1f} ({rate / used:.1f})':>18}", end="")
        if "torch" in row:
            ratio = harness.ratio(times, (way, "torch"), (way, "fcn_jax"))
            print(f"{ratio:8.2f}", end="")
        print()
    if not harness.TORCH_INSTALLED:
        print("torch: not installed")
    harness.write_figures(args, {"images/s": found})


def measure(source: FolderSource, args: argparse.Namespace) -> dict:
    """Return the seconds of a batch in each turn, by way and library."""
    by_fcn_jax = functools.partial(fcn_jax_batches, source, args)
    pipelines = {
        ("one core", "fcn_jax"): by_fcn_jax(threads=0),
        ("threads", "fcn_jax"): by_fcn_jax(threads=args.cores),
        ("processes", "fcn_jax"): by_fcn_jax(threads=1, workers=args.cores),
    }
    if harness.TORCH_INSTALLED:
        by_torch = functools.partial(torch_batches, source, args)
        pipelines["one core", "torch"] = by_torch(workers=0)
        pipelines["processes", "torch"] = by_torch(workers=args.cores)
    for batches in pipelines.values():
        check(next(batches), args)
    return harness.time_in_turns(
        {key: functools.partial(next, it) for key, it in pipelines.items()},
        repeats=args.repeats,
        calls=args.batches,
        untimed=1 + 5 * args.cores,
    )


def fcn_jax_batches(
    source: FolderSource, args: argparse.Namespace, *, threads: int, workers: int = 0
) -> Iterator[dict]:
    vary = functools.partial(
        augment,
        size=(),
        scale=SCALE,
        crop=(args.crop, args.crop),
        flip=True,
        mean=MEAN,
    )
    return train_batches(
        source,
        vary,
        batch_size=args.batch_size,
        seed=0,
        threads=threads,
        workers=workers,
    )


def torch_batches(
    source: FolderSource, args: argparse.Namespace, *, workers: int
) -> Iterator[dict]:
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.set_num_threads(1)  # As in its workers.
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
    """A data set as it is usually written for torch, with Pillow alone."""

    def __init__(self, pairs: list[tuple], crop: int):
        self.pairs, self.crop = pairs, crop

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict:
        _, (image_path,), label_path = self.pairs[i]
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
        raise SystemExit(f"a batch has the wrong form: {found}")


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
    """Return [H, W, channels]: random at side x side places, smooth between them."""
    coarse = rng.standard_normal((channels, side, side), np.float32)
    planes = [Image.fromarray(plane).resize(size[::-1]) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], -1)


if __name__ == "__main__":
    main()
