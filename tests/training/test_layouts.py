"""The same photographs and masks, stored in the ways that people store them."""

import jax
import numpy as np
from PIL import Image

from fcn_jax.data.loader import train_batches
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.models.fcn import FCN
from fcn_jax.training.augmentation import training_augment
from fcn_jax.training.config import Config, Data, make_source
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step
from fcn_jax.weights.transplant import init_params

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


def test_one_data_set_in_five_layouts_trains_to_the_same_parameters(tmp_path):
    model = FCN("fcn32s", num_classes=2, width=1 / 64)
    tx = make_optimizer("sgd", lambda step: 1e-3)
    train_step = jax.jit(make_train_step(model, tx))
    params = init_params(model, jax.random.key(0), {})
    found = {}
    for layout, (store, how) in LAYOUTS.items():
        root, suffix = tmp_path / layout, ".npy" if layout == "npy" else ".png"
        save_split(root, "train", store, suffix)
        data = Data(root=str(root), num_classes=2, crop=(24, 24), rotation=20.0, **how)
        config = Config(data=data)
        augment = training_augment(config)
        source = make_source(config, "train")
        batches = train_batches(source, augment, batch_size=2, seed=0)
        state = init_state(params, tx)
        for _ in range(3):
            state, _ = train_step(state, next(batches), jax.random.key(1))
        batches.close()
        found[layout] = jax.tree.leaves(state.params)
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(params), found["index"], strict=True)
    )
    for leaves in found.values():
        for a, b in zip(found["index"], leaves, strict=True):
            np.testing.assert_array_equal(a, b)
