"""The paper's FCN-32s on PASCAL VOC, from VGG-16.

    python train.py --config configs/fcn32s_heavy.py --workdir runs/fcn32s_heavy

Each step takes one image at its full size, in float32. It trains on SBD's train and
evaluates on the paper's seg11valid, where the authors' network has a mean IU of 63.6 %.
Made for one accelerator of 16 GB or more. Time and mean IU: not yet measured.
"""

from fcn_jax.training.config import Config
from fcn_jax.training.recipes import paper_recipe


def get_config() -> Config:
    return paper_recipe("fcn32s", learning_rate=1e-10, init_from="vgg16")
