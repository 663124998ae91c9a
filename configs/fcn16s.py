"""FCN-16s on PASCAL VOC 2012, at once from VGG-16.

    python train.py --config configs/fcn16s.py --workdir runs/fcn16s

Made for one accelerator of 16 GB or more; on a CPU make crop and batch_size smaller.
Time and mean IU: not yet measured.
"""

from fcn_jax.data import voc
from fcn_jax.training.config import Config, Data, Model


def get_config() -> Config:
    return Config(
        # Why a scale on pool4: see fcn8s.py.
        model=Model(variant="fcn16s", pool_scales=(0.01, 1.0)),
        data=Data(**voc.FOLDER, scale=(0.5, 1.5), crop=(480, 480)),
        init_from="weights/vgg16.npy",
        epochs=50,
        batch_size=8,
    )
