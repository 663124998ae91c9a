"""FCN-32s on PASCAL VOC 2012 with SBD's labels, from VGG-16.

    python train.py --config configs/fcn32s.py --workdir runs/fcn32s

Made for one accelerator of 16 GB or more; on a CPU make crop and batch_size smaller and
pass --config.model.dtype=float32.
Time and mean IU: not yet measured.
"""

from fcn_jax.data import voc_classes
from fcn_jax.training.config import Config, Data, Model


def get_config() -> Config:
    return Config(
        model=Model(variant="fcn32s", dtype="bfloat16"),
        data=Data(
            **voc_classes.TFDS,
            train_split="trainaug",
            eval_split="val",
            scale=(0.5, 1.5),
            crop=(480, 480),
        ),
        init_from="vgg16",
        epochs=50,
        batch_size=8,
    )
