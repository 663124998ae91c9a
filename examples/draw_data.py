"""Draw a small data set to try the commands of docs/ on: coloured shapes in folders.

    python examples/draw_data.py mydata

It writes, for the splits train and val:

    mydata/images/SPLIT/NAME.png    pictures
    mydata/labels/SPLIT/NAME.png    masks of class indices, 255 where there is no label
    mydata/colours/SPLIT/NAME.png   the same masks in colours, white for no label
    mydata/binary/SPLIT/NAME.png    masks of 0 and 255: white for any shape
    mydata/depth/SPLIT/NAME.png     a made-up depth of 16 bits: shapes are nearer
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.labels import VOID
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.visualize import save_labels

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
WHITE = (255, 255, 255)


def layers(image: np.ndarray, label: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return what each folder holds of an example."""
    void, rng = label == VOID, np.random.default_rng(seed)
    colours = np.array(COLOURS)[np.where(void, 0, label)]
    depth = np.where(void | (label > 0), 8_000, 30_000) + rng.normal(
        0, 500, label.shape
    )
    return {
        "images": image,
        "labels": label.astype(np.uint8),
        "colours": np.where(void[..., None], WHITE, colours).astype(np.uint8),
        "binary": np.where(label > 0, 255, 0).astype(np.uint8),
        "depth": depth.astype(np.uint16),
    }


def main(root: Path) -> None:
    for split, length in (("train", 24), ("val", 8)):
        for i, example in enumerate(ShapesSource(split, length=length)):
            found = layers(example["image"], example["label"], i)
            for folder, array in found.items():
                path = root / folder / split / f"{example['name']}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if folder == "labels":  # With a palette, so that viewers show colours.
                    save_labels(path, array, COLOURS)
                else:
                    Image.fromarray(array).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/draw_data.py FOLDER")
    main(Path(sys.argv[1]))
