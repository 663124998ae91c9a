"""Count the labels that a trained network changes in bfloat16.

    python benchmarks/labels.py --run runs/camvid --out labels.json

Evaluates the network of a run on its validation split in float32 and in bfloat16, and
prints the share of the labels that differ, at all pixels and where the truth is not
void, the scores of both, and the time of both evaluations.
"""

import time
from pathlib import Path

import harness
import numpy as np

from fcn_jax import Network, load
from fcn_jax.evaluation.evaluate import Evaluation, evaluate
from fcn_jax.network import DTYPES
from fcn_jax.training.config import CONFIG_FILE, load_config, make_source


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--run", required=True, help="run directory")
    parser.add_argument("--root", help="folder of the data, if it has moved")
    args = parser.parse_args()
    config, net = load_config(Path(args.run) / CONFIG_FILE), load(args.run)
    config.data.root = args.root or config.data.root
    source = make_source(config, config.data.eval_split)
    figures, labels = {}, {}
    for dtype in DTYPES:
        labels[dtype], found, seconds = predictions(net.astype(dtype), source)
        scores = {name: found.figures[name] for name in ("pixel_accuracy", "mean_iu")}
        figures[dtype] = scores | {"seconds": seconds}
        print(f"{dtype:<9}", *(f"{k} {v:.4f}," for k, v in scores.items()), end="")
        print(f" {len(source)} images in {seconds:.0f} s", flush=True)
    figures["changed"] = changed = shares(*labels.values(), source)
    print("labels changed:", ", ".join(f"{k} {v:.4%}" for k, v in changed.items()))
    harness.write_figures(args, figures)


def predictions(
    net: Network, source: object
) -> tuple[dict[str, np.ndarray], Evaluation, float]:
    """Return the labels of each image by its name, the scores and the seconds."""
    labels: dict[str, np.ndarray] = {}
    start = time.perf_counter()
    found = evaluate(
        net, source, save=lambda name, x: labels.update({name: np.uint8(x)})
    )
    return labels, found, time.perf_counter() - start


def shares(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], source: object
) -> dict[str, float]:
    """Return the share of the labels that differ, with and without void pixels."""
    counts = np.zeros((2, 2), np.int64)
    for example in map(source.__getitem__, range(len(source))):
        differ = ours[example["name"]] != theirs[example["name"]]
        valid = example["label"] != 255
        counts += [[differ.sum(), differ.size], [differ[valid].sum(), valid.sum()]]
    whole, labelled = counts[:, 0] / counts[:, 1]
    return {"of all pixels": float(whole), "of labelled pixels": float(labelled)}


if __name__ == "__main__":
    main()
