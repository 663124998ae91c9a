"""Check at full width that batches, tiles and buckets do not change a result.

    python benchmarks/exact.py --out exact.json

For random parameters and images there are three checks:

- batch: compare the scores of images of several sizes in one batch, padded with noise,
  with those of each image alone. Differences are relative to the largest score, and the
  labels that differ are counted.
- tiles: compare the scores of an image in tiles with those of the whole image.
- confusion: compare the confusion matrix of an evaluation in batches of 8 with that of
  each image alone, and count the entries that differ.

The exit status is 1 if scores differ by more than 1e-4, or a confusion matrix at all.
"""

import sys
import time
from collections.abc import Iterable

import harness
import jax
import numpy as np

import fcn_jax
from fcn_jax import FCN, Network
from fcn_jax.evaluation.metrics import confusion_matrix
from fcn_jax.inference.programs import scores_of
from fcn_jax.inference.tiles import logits_tiled

TOLERANCE = 1e-4
MIXED = (33, 47), (1, 1), (97, 130), (128, 75)
SIZES = *MIXED, (64, 64), (140, 101), (20, 149), (90, 128)
WHOLE, TILE = (700, 600), (576, 576)  # Little above the smallest tile: six tiles.
VOID = 255

Sizes = tuple[tuple[int, int], ...]
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


def main() -> int:
    parser = harness.make_parser(__doc__, width=1.0)
    add, names = parser.add_argument, list(NETWORKS)
    add("--networks", nargs="+", choices=names, default=names, help="to check")
    add("--images", type=int, default=8, help="number of image sizes, at most 8")
    args = parser.parse_args()

    sizes, cases = SIZES[: args.images], []
    print(f"{'':<26}{'difference':>12}{'differ':>8}{'of':>10}{'seconds':>9}")
    for name in args.networks:
        variant, geometry = name.split("-")
        net = harness.random_network(FCN(variant, geometry=geometry, width=args.width))
        for check in NETWORKS[name]:
            start = time.perf_counter()
            case = {"case": f"{variant} {geometry} {check.__name__}"}
            case |= check(net, sizes)
            case["seconds"] = time.perf_counter() - start
            cases.append(case)
            print(
                f"{case['case']:<26}{case['difference']:>12.2g}{case['differ']:>8}"
                f"{case['of']:>10}{case['seconds']:>9.1f}",
                flush=True,
            )
        jax.clear_caches()  # Programs hold memory.
    harness.write_figures(args, {"cases": cases})
    failed = [case["case"] for case in cases if not case["passed"]]
    print(f"not the same: {', '.join(failed)}" if failed else "all the same")
    return 1 if failed else 0


def batch(net: Network, sizes: Sizes) -> dict:
    sizes = sizes[: len(MIXED)]
    images = random_image((len(sizes), *np.max(sizes, axis=0)), seed=1)
    logits = np.asarray(scores_of(net, images, np.array(sizes, np.int32)))
    return compare(
        (found[:h, :w], np.asarray(fcn_jax.apply(net, image[:h, :w])))
        for image, found, (h, w) in zip(images, logits, sizes, strict=True)
    )


def tiles(net: Network, _: Sizes) -> dict:
    image = random_image(WHOLE, seed=2)
    whole = np.asarray(fcn_jax.apply(net, image))
    found = np.full_like(whole, np.nan)
    for rows, cols, part in logits_tiled(net, image, tile=TILE):
        found[rows, cols] = part
    return compare([(found, whole)])


def confusion(net: Network, sizes: Sizes) -> dict:
    classes = net.model.num_classes
    source = [random_example(size, i, classes) for i, size in enumerate(sizes)]
    found = fcn_jax.evaluate(net, source, batch_size=8, progress=False).confusion
    expected = np.zeros_like(found)
    for image, label in source:
        alone = np.asarray(fcn_jax.apply(net, image)).argmax(-1)
        expected += confusion_matrix(label, alone, num_classes=classes)
    differ = int((found != expected).sum())
    return {
        "difference": float(np.abs(found - expected).max() / expected.max()),
        "differ": differ,
        "of": expected.size,
        "passed": differ == 0,
    }


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def random_example(size: tuple[int, int], seed: int, classes: int) -> tuple:
    """Return a random image, and a random label of which a tenth is void."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size)
    label[rng.random(size) < 0.1] = VOID
    return random_image(size, seed), label


def compare(pairs: Pairs) -> dict:
    """Compare logits and their labels with the expected logits beside them."""
    pairs = list(pairs)
    differences = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
    worst = float(np.max(differences))  # NaN if there is one among them.
    return {
        "difference": worst,
        "differ": int(sum((a.argmax(-1) != b.argmax(-1)).sum() for a, b in pairs)),
        "of": sum(a[..., 0].size for a, _ in pairs),
        "passed": worst <= TOLERANCE,
    }


NETWORKS = {
    "fcn32s-same": (batch,),
    "fcn16s-same": (batch,),
    "fcn8s-same": (batch, tiles, confusion),
    "fcn8s-caffe": (batch, tiles, confusion),
}

if __name__ == "__main__":
    sys.exit(main())
