"""FCN-8s on PASCAL VOC 2012, at once from VGG-16.

    python train.py --config configs/fcn8s.py --workdir runs/fcn8s

Made for one accelerator of 16 GB or more; on a CPU make crop and batch_size smaller.
Time and mean IU: not yet measured.
"""

from fcn_jax.data import voc
from fcn_jax.training.config import Config, Data, Model


def get_config() -> Config:
    return Config(
        # Pools of a trained VGG-16 run into the hundreds. Unscaled, the scores of pool3
        # and pool4 learn that much faster than those of fc7, and drown them.
        model=Model(variant="fcn8s", pool_scales=(0.01, 0.001)),
        data=Data(**voc.FOLDER, scale=(0.5, 1.5), crop=(480, 480)),
        init_from="weights/vgg16.npy",
        epochs=50,
        batch_size=8,
    )
