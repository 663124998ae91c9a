"""Measure images per second, read and augmented, beside torchvision's transforms.

    python benchmarks/pipeline.py --out pipeline.json
    python benchmarks/pipeline.py --like cityscapes

The figures are those of three pipelines. Each scales, crops, flips and recolours at
random, stacks batches and ends there: nothing uses them, and nothing subtracts a mean.

- fcn_jax: `train_batches` reads image files and masks.
- cached: `train_batches` reads the decoded images of `cache_source`.
- torch: a DataLoader reads the same files with torchvision (pipeline_torch.py). It
  draws the short side from the range that the scales give, resizes the whole image, and
  pads and crops it.

Without --root, images are made: noise that falls off as the detail of a photograph
does, so that files are as large and as slow to decode as those of the data set. Like
VOC's they are JPEGs of about 500x375 and 90 KB, like Cityscapes' PNGs of 2048x1024 and
2.1 MB. All files are in the memory of the system after the first epoch.

"one core" reads in the caller's thread. "threads" and "processes" have --cores of them;
torch has processes only. All stay alive and take turns. A turn first empties what has
been read ahead, so neither that nor the start of processes is timed. Without
torchvision the rest is measured.

Then follow the times of the stages of one image, in this thread, and a model of
the cores that feed an accelerator.
"""

import argparse
import functools
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
from PIL import Image

from fcn_jax import FCN
from fcn_jax.data.cache import cache_source
from fcn_jax.data.images import read_image
from fcn_jax.data.jitter import color_jitter
from fcn_jax.data.loader import train_batches
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.transforms import augment, random_crop
from fcn_jax.models.flops import flop_per_image

IMAGES, LABELS = "JPEGImages", "SegmentationClass"
CLASSES, VOID = 21, 255
MEAN = 123, 117, 104
TORCHVISION = bool(harness.TORCH_INSTALLED and importlib.util.find_spec("torchvision"))
# The largest FLOP/s of dense products in bfloat16, as their makers state it.
PEAKS = {"TPU v5e": 197e12, "TPU v6e": 918e12, "H100": 989e12}
SHARE = 0.5  # Of the peak, assumed.


class Kind(NamedTuple):
    """Describe the images that are made, and their augmentation by the configs."""

    sizes: tuple[tuple[int, int], ...]  # Height, width.
    suffix: str
    scale: tuple[float, float]
    crop: tuple[int, int]
    images: int
    batch_size: int
    batches: int


KINDS = {
    "voc": Kind(
        sizes=((375, 500), (333, 500), (500, 375), (500, 333)),
        suffix=".jpg",
        scale=(0.5, 1.5),
        crop=(512, 512),
        images=100,
        batch_size=8,
        batches=12,
    ),
    "cityscapes": Kind(
        sizes=((1024, 2048),),
        suffix=".png",
        scale=(0.75, 1.5),
        crop=(512, 1024),
        images=16,
        batch_size=4,
        batches=8,
    ),
}


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if not args.root:
            make_images(Path(folder), KINDS[args.like], args.images)
        source = FolderSource(
            args.root or folder,
            images=IMAGES,
            labels=LABELS,
            split="",
            num_classes=CLASSES,
            list_file=args.list_file,
        )
        cached = cache_source(source, args.cache or folder, name="pipeline")
        times = measure(source, cached, args)
        stages = harness.medians(stage_times(source, cached, args))
    rates = {key: args.batch_size / s for key, s in harness.medians(times).items()}
    found: dict[str, dict[str, float]] = {way: {} for way, _ in rates}
    for (way, library), rate in rates.items():
        found[way][library] = rate
    print_rates(found, times, args)
    print("\nmilliseconds of one image")
    for stage, seconds in stages.items():
        print(f"{stage:<24}{1e3 * seconds:8.2f}")
    needed = needed_rates(args.crop)
    print_cores(needed, found, args)
    harness.write_figures(
        args, {"images/s": found, "seconds": stages, "needed images/s": needed}
    )


def arguments() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, repeats=5)
    add = parser.add_argument
    add("--like", choices=KINDS, default="voc", help="whose images are made (voc)")
    add("--root", help=f"folder with {IMAGES} and {LABELS}, as VOC's")
    add("--list-file", default="", help="file under --root of the stems to use")
    add("--cache", help="folder for the cache of --root; default: a temporary one")
    add("--images", type=int, help="number of images made without --root")
    add("--crop", type=int, nargs=2, help="height and width of the crops")
    add("--no-jitter", action="store_true", help="leave out the changes of colour")
    add("--batch-size", type=int, help=harness.HELP["batch_size"])
    add("--batches", type=int, help="batches timed in a turn")
    add("--cores", type=int, default=os.cpu_count(), help="threads or processes")
    args = parser.parse_args()
    kind = KINDS[args.like]
    for name in ("images", "crop", "batch_size", "batches"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(kind, name))
    args.scale = kind.scale
    args.jitter = () if args.no_jitter else (0.3, 0.3, 0.3, 0.05)
    args.crop = tuple(args.crop)
    return args


def measure(source: Any, cached: Any, args: argparse.Namespace) -> dict:
    """Return the seconds of a batch in each turn, by way and library."""
    pipelines = {}
    for name, examples in (("fcn_jax", source), ("cached", cached)):
        read = functools.partial(fcn_jax_batches, examples, args)
        pipelines["one core", name] = read(threads=0)
        pipelines["threads", name] = read(threads=args.cores)
        pipelines["processes", name] = read(threads=1, workers=args.cores)
    if TORCHVISION:
        import pipeline_torch

        options = {"scale": args.scale, "crop": args.crop, "jitter": args.jitter}
        pairs = pipeline_torch.Pairs(source.pairs, mean=MEAN, void=VOID, **options)
        for way, workers in (("one core", 0), ("processes", args.cores)):
            pipelines[way, "torch"] = pipeline_torch.batches(
                pairs, batch_size=args.batch_size, workers=workers
            )
    for (_, library), batches in pipelines.items():
        check(next(batches), library, args)
    return harness.time_in_turns(
        {key: functools.partial(next, it) for key, it in pipelines.items()},
        repeats=args.repeats,
        calls=args.batches,
        untimed=1 + 5 * args.cores,
    )


def fcn_jax_batches(
    source: Any, args: argparse.Namespace, *, threads: int, workers: int = 0
) -> Iterator[dict]:
    vary = functools.partial(
        augment,
        size=(),
        scale=args.scale,
        crop=args.crop,
        flip=True,
        mean=MEAN,
        jitter=args.jitter,
    )
    return train_batches(
        source,
        vary,
        batch_size=args.batch_size,
        seed=0,
        threads=threads,
        workers=workers,
    )


def check(batch: dict, library: str, args: argparse.Namespace) -> None:
    shape = args.batch_size, *args.crop
    wanted = [((*shape, 3), "uint8"), (shape, "int32")]
    if library == "torch":  # In its order and the type that its loss takes.
        wanted = [((shape[0], 3, *shape[1:]), "uint8"), (shape, "int64")]
    found = [(tuple(v.shape), str(v.dtype).split(".")[-1]) for v in batch.values()]
    if found != wanted:
        raise SystemExit(f"a batch of {library} has the wrong form: {found}")


def stage_times(source: Any, cached: Any, args: argparse.Namespace) -> dict:
    """Return the seconds of each stage of an image in each turn."""
    _, (image_file,), _ = source.pairs[0]
    example, rng = source[0], np.random.default_rng(0)
    shape = np.array(example["label"].shape)

    def crop() -> dict:
        scaled = np.rint(shape * rng.uniform(*args.scale)).astype(int)
        options = {"scaled": tuple(scaled.tolist()), "mean": MEAN}
        return random_crop(example, rng, args.crop, **options)

    cropped = crop()["image"]
    runs = {
        "read the file": image_file.read_bytes,
        "read and decode it": lambda: read_image(image_file),
        "the same with its mask": lambda: source[0],
        "read from the cache": lambda: cached[0],
        "scale and crop": crop,
        "flip": lambda: np.ascontiguousarray(cropped[:, ::-1]),
    }
    if args.jitter:
        runs["jitter"] = lambda: color_jitter(cropped, rng, *args.jitter)
    return harness.time_in_turns(runs, repeats=args.repeats, sample=0.1)


def needed_rates(crop: tuple[int, int]) -> dict[str, float]:
    """Return the images/s that FCN-8s trains at on each accelerator, by a model.

    A training step takes three times the operations of a forward pass.
    """
    work = 3 * flop_per_image(FCN("fcn8s", CLASSES), crop)
    return {name: SHARE * peak / work for name, peak in PEAKS.items()}


def print_rates(found: dict, times: dict, args: argparse.Namespace) -> None:
    print(f"{'images/s (per core)':<20}{'fcn_jax':>18}{'cached':>18}{'torch':>18}")
    for way, row in found.items():
        used = 1 if way == "one core" else args.cores
        print(f"{way if way == 'one core' else f'{used} {way}':<20}", end="")
        for rate in row.values():
            print(f"{f'{rate:.1f} ({rate / used:.1f})':>18}", end="")
        if "torch" in row:
            for library in ("fcn_jax", "cached"):
                ratio = harness.ratio(times, (way, "torch"), (way, library))
                print(f", {library} / torch {ratio:.2f}", end="")
        print()
    if not TORCHVISION:
        print("torch: torch and torchvision are not both installed")


def print_cores(needed: dict, found: dict, args: argparse.Namespace) -> None:
    """Print how many cores a model of each accelerator needs."""
    best: dict[str, float] = {}
    for way in ("threads", "processes"):
        for library, rate in found[way].items():
            best[library] = max(best.get(library, 0), rate / args.cores)
    print(
        f"\ncores that feed FCN-8s at {args.crop[0]}x{args.crop[1]}: a model, not a "
        f"measurement. Accelerators train at {100 * SHARE:.0f} % of\ntheir peak, and "
        "more cores read as fast as these, each\n"
        f"{'accelerator':<16}{'images/s':>10}"
        + "".join(f"{library:>10}" for library in best)
    )
    for name, rate in needed.items():
        cores = "".join(f"{math.ceil(rate / each):>10}" for each in best.values())
        print(f"{name:<16}{rate:>10.0f}{cores}")


def make_images(root: Path, kind: Kind, count: int) -> None:
    rng = np.random.default_rng(0)
    for folder in (IMAGES, LABELS):
        (root / folder).mkdir()
    for i in range(count):
        size = kind.sizes[i % len(kind.sizes)]
        image = sum(noise(rng, 2**octave, size) / 1.3**octave for octave in range(1, 9))
        image = Image.fromarray(np.clip(128 + 90 * image, 0, 255).astype(np.uint8))
        # The quality is that of VOC; a PNG has none.
        image.save(root / IMAGES / f"{i:04}{kind.suffix}", quality=94)
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
