"""Whether batches, tiles and buckets change a result: a check at full width.

    python benchmarks/exact.py --out exact.json

Compares, for random parameters and images, in three ways:

- batch: the scores of images of several sizes in one batch, filled up with noise, with
  those of each alone; differences are relative to the largest score, and the labels
  that differ are counted;
- tiles: likewise, those of an image in tiles with those of the whole;
- confusion: the matrix of an evaluation in batches of 8 with that of each image alone;
  the entries that differ are counted.

Exits with status 1 if scores differ by more than 1e-4, or the matrices at all.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from sizes import random_params

from fcn_jax.evaluation.evaluate import evaluate
from fcn_jax.inference.buckets import predict_many
from fcn_jax.inference.predict import apply
from fcn_jax.inference.programs import scores_of
from fcn_jax.inference.tiles import logits_tiled
from fcn_jax.models.fcn import FCN

TOLERANCE = 1e-4
MIXED = ((97, 130), (128, 75), (33, 47), (1, 1))
WHOLE, TILE = (700, 600), (576, 576)  # Not much above the least: six tiles.
SPLIT = (*MIXED, (64, 64), (140, 101), (20, 149), (90, 128))
VOID = 255


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()

    cases = []
    print(f"{'':<26}{'difference':>12}{'differ':>8}{'of':>10}{'seconds':>9}")
    for network, checks in {
        ("fcn32s", "same"): [batch],
        ("fcn16s", "same"): [batch],
        ("fcn8s", "same"): [batch, tiles, confusion],
        ("fcn8s", "caffe"): [batch, tiles, confusion],
    }.items():
        for case in run(network, checks, args.width):
            print(
                f"{case['case']:<26}{case['difference']:>12.2g}{case['differ']:>8}"
                f"{case['of']:>10}{case['seconds']:>9.1f}",
                flush=True,
            )
            cases.append(case)
    if args.out:
        figures = {
            "device": jax.devices()[0].device_kind,
            "arguments": vars(args),
            "cases": cases,
        }
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)
    failed = [case["case"] for case in cases if not case["passed"]]
    print(f"not the same: {', '.join(failed)}" if failed else "all the same")
    return 1 if failed else 0


def run(network: tuple[str, str], checks: list, width: float) -> Iterator[dict]:
    """What the checks find of a variant in a geometry, and how long each took."""
    variant, geometry = network
    model = FCN(variant, geometry=geometry, width=width, dropout=0.0)
    params = random_params(model)
    for check in checks:
        start = time.perf_counter()
        found = check(model, params)
        found["seconds"] = time.perf_counter() - start
        yield {"case": f"{variant} {geometry} {check.__name__}", **found}
        jax.clear_caches()  # Programs hold memory.


def batch(model: FCN, params: dict) -> dict:
    shape = np.max(MIXED, axis=0)
    images = random_image((len(MIXED), *shape), seed=1)
    logits = np.asarray(scores_of(model, params, images, np.array(MIXED, np.int32)))
    pairs = []
    for image, found, (h, w) in zip(images, logits, MIXED, strict=True):
        alone = np.asarray(apply(params, image[:h, :w], model=model))
        pairs.append((found[:h, :w], alone))
    return compare(pairs)


def tiles(model: FCN, params: dict) -> dict:
    image = random_image(WHOLE, seed=2)
    whole = np.asarray(apply(params, image, model=model))
    found = np.full_like(whole, np.nan)
    for rows, cols, part in logits_tiled(model, params, image, tile=TILE):
        found[rows, cols] = part
    return compare([(found, whole)])


def confusion(model: FCN, params: dict) -> dict:
    def alone(images):
        for i, image in images:
            yield i, np.argmax(apply(params, image, model=model), axis=-1)

    batches = functools.partial(predict_many, model, params, batch_size=8)
    found, expected = (
        evaluate(
            predict,
            Split(model.num_classes),
            num_classes=model.num_classes,
            ignore_label=VOID,
            progress=False,
        )[0]
        for predict in (batches, alone)
    )
    differ = int((found != expected).sum())
    return {
        "difference": float(np.abs(found - expected).max() / expected.max()),
        "differ": differ,
        "of": expected.size,
        "passed": differ == 0,
    }


class Split:
    """Random images and labels, a tenth of these void."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(SPLIT)

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        label = rng.integers(0, self.num_classes, SPLIT[i])
        label[rng.random(SPLIT[i]) < 0.1] = VOID
        return {"image": random_image(SPLIT[i], i), "label": label, "name": str(i)}


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def compare(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """How far logits are from those expected beside them, and their labels."""
    differences = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
    worst = float(np.max(differences))  # NaN, where there is one.
    labels = [(a.argmax(-1), b.argmax(-1)) for a, b in pairs]
    return {
        "difference": worst,
        "differ": int(sum((a != b).sum() for a, b in labels)),
        "of": sum(a.size for a, _ in labels),
        "passed": worst <= TOLERANCE,
    }


if __name__ == "__main__":
    sys.exit(main())
