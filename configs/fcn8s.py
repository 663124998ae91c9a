"""FCN-8s on PASCAL VOC 2012 with SBD's labels, at once from VGG-16.

    python train.py --config configs/fcn8s.py --workdir runs/fcn8s

In the paper's stages: --config.init_from=runs/fcn16s

Made for one accelerator of 16 GB or more; on a CPU make crop and batch_size smaller and
pass --config.model.dtype=float32.
Time and mean IU: not yet measured.
"""

from fcn_jax.data import voc_classes
from fcn_jax.training.config import Config, Data, Model


def get_config() -> Config:
    return Config(
        # Pools of a trained VGG-16 run into the hundreds. Unscaled, the scores of pool3
        # and pool4 learn that much faster than those of fc7, and drown them.
        model=Model(variant="fcn8s", dtype="bfloat16", pool_scales=(0.01, 0.001)),
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
