"""The paper's FCN-32s on PASCAL VOC, from VGG-16, as published.

    python train.py --config configs/fcn32s_heavy.py --workdir runs/fcn32s_heavy

One image a step, the loss summed over its pixels, a momentum of 0.99. Trains on SBD's
train, evaluates on the paper's seg11valid. The authors' network has a mean IU of 63.6 %
there; of this config: not yet measured.
"""

from fcn_jax.data import voc_classes
from fcn_jax.training.config import Config, Data, Model, Optim


def get_config() -> Config:
    return Config(
        model=Model(
            variant="fcn32s",
            geometry="caffe",
            score_init="zero",
        ),
        data=Data(
            **voc_classes.TFDS,
            train_split="sbd_train",
            eval_split="seg11valid",
            flip=False,
            replacement=True,
        ),
        optim=Optim(
            name="sgd",
            learning_rate=1e-10,
            schedule="constant",
            momentum=0.99,
            weight_decay=5e-4,
            bias_rate=2.0,
        ),
        init_from="vgg16",
        steps=100_000,
        batch_size=1,
        loss_normalization="sum",
        eval_every=4000,
        parallel="none",  # One image cannot be split.
    )
