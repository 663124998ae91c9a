"""Recipes for PASCAL VOC that several files of configs/ share."""

from fcn_jax.data.voc_classes import CLASS_NAMES
from fcn_jax.training.config import Config, Data, Model, Optim

# Factors on pool4 and pool3 for training FCN-8s in one stage. The pools of a trained
# VGG-16 reach values of several hundred: unscaled, their scores learn so much faster
# than those of fc7 that they drown them.
POOL_SCALES = (0.01, 0.001)


def voc_data(train_split: str, eval_split: str, **fields) -> Data:
    """Return the `Data` of PASCAL VOC 2012 with SBD's labels (fcn_jax.data.voc).

    Args:
        train_split: split to train on.
        eval_split: split to evaluate on.
        fields: other fields of `Data`.
    """
    return Data(
        name="voc_segmentation/voc2012_sbd",
        num_classes=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        help=(
            "Without an internet connection, download the archives elsewhere, put them "
            "in a folder and pass it as --config.data.manual_dir=FOLDER"
        ),
        train_split=train_split,
        eval_split=eval_split,
        **fields,
    )


def voc_recipe(variant: str) -> Config:
    """Return today's recipe: random crops in batches, bfloat16, AdamW, in one stage."""
    scales = (1.0, 1.0) if variant == "fcn32s" else POOL_SCALES  # It fuses no pools.
    return Config(
        model=Model(variant=variant, dtype="bfloat16", pool_scales=scales),
        data=voc_data("trainaug", "val", scale=(0.5, 1.5), crop=(480, 480)),
        init_from="vgg16",
        epochs=50,
        batch_size=8,
    )


def paper_recipe(
    variant: str,
    *,
    learning_rate: float,
    init_from: str,
    steps: int = 100_000,
    pool_scales: tuple[float, float] = (1.0, 1.0),
) -> Config:
    """Return the recipe of the authors' release, which they call "heavy" learning.

    A step takes one whole image, drawn with replacement, and sums the loss over its
    pixels. A momentum of 0.99 averages over images instead of a batch.

    Args:
        variant: "fcn32s", "fcn16s" or "fcn8s".
        learning_rate: the constant rate; biases learn at twice this rate.
        init_from: weights to start from: VGG-16, or the run of the stage before.
        steps: steps of the run.
        pool_scales: factors on pool4 and pool3.

    Reference: Shelhamer et al., arXiv:1605.06211; the solvers in
    github.com/shelhamer/fcn.berkeleyvision.org.
    """
    return Config(
        model=Model(variant=variant, geometry="caffe", pool_scales=pool_scales),
        data=voc_data("sbd_train", "seg11valid", flip=False, replacement=True),
        optim=Optim(
            name="sgd",
            learning_rate=learning_rate,
            schedule="constant",
            momentum=0.99,
            weight_decay=5e-4,
            bias_rate=2.0,
        ),
        init_from=init_from,
        steps=steps,
        batch_size=1,
        loss_normalization="sum",
        eval_every=4000,
        parallel="none",  # One image cannot be split.
    )
