"""The paper's FCN-8s on PASCAL VOC, from the run of fcn16s_heavy.py.

    python train.py --config configs/fcn8s_heavy.py --workdir runs/fcn8s_heavy

Each step takes one image at its full size, in float32. It trains on SBD's train and
evaluates on the paper's seg11valid, where the authors' network has a mean IU of 65.5 %.
Made for one accelerator of 16 GB or more. Time and mean IU: not yet measured.
"""

from fcn_jax.training.config import Config
from fcn_jax.training.recipes import paper_recipe


def get_config() -> Config:
    return paper_recipe("fcn8s", learning_rate=1e-14, init_from="runs/fcn16s_heavy")
