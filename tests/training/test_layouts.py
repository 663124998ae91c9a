"""The same photographs and masks, stored in the ways that people store them."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.training.config import Data

pytestmark = pytest.mark.usefixtures("quick")

# Name of a layout: how a mask of classes 0 and 1 is stored, and the fields that tell.
LAYOUTS = {
    "index": (lambda label: label, {}),
    "palette": (lambda label: palette_image(label), {}),
    "colour": (
        lambda label: np.uint8([(9, 8, 7), (200, 0, 30)])[label],
        {"palette": ((9, 8, 7), (200, 0, 30))},
    ),
    "binary": (lambda label: 255 * label, {"label_map": ((255, 1),)}),
    "npy": (lambda label: label.astype(np.int64), {}),
}


def palette_image(label):
    image = Image.fromarray(label)
    image.putpalette([1, 2, 3, 250, 100, 0])
    return image


def save_split(root, split, store, suffix):
    for i, example in enumerate(ShapesSource(split, size=(24, 24), length=4)):
        label = np.uint8(example["label"] > 0)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(example["image"]).save(root / "images" / split / f"{i}.png")
        path, mask = root / "labels" / split / f"{i}{suffix}", store(label)
        if suffix == ".npy":
            np.save(path, mask)
            continue
        is_image = isinstance(mask, Image.Image)
        (mask if is_image else Image.fromarray(mask)).save(path)


def test_one_data_set_in_five_layouts_trains_to_the_same_parameters(
    thin_config, tmp_path
):
    found = {}
    for layout, (store, how) in LAYOUTS.items():
        root = tmp_path / layout
        for split in ("train", "val"):
            save_split(root, split, store, ".npy" if layout == "npy" else ".png")
        data = Data(root=str(root), num_classes=2, crop=(24, 24), **how)
        config = dataclasses.replace(thin_config(steps=2), data=data)
        fcn_jax.train(config, root / "run")
        found[layout] = jax.tree.leaves(fcn_jax.load(root / "run").params)
    for leaves in found.values():
        for a, b in zip(found["index"], leaves, strict=True):
            np.testing.assert_array_equal(a, b)
