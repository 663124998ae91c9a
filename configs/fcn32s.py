"""FCN-32s on PASCAL VOC 2012 with SBD's labels, from VGG-16.

    python train.py --config configs/fcn32s.py --workdir runs/fcn32s

Made for one accelerator of 16 GB or more. On a CPU, reduce crop and batch_size and pass
--config.model.dtype=float32. Time and mean IU: not yet measured.
"""

from fcn_jax.training.config import Config
from fcn_jax.training.recipes import voc_recipe


def get_config() -> Config:
    return voc_recipe("fcn32s")
