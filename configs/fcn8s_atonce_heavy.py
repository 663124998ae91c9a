r"""The paper's FCN-8s on PASCAL VOC in one stage, from VGG-16.

    python train.py --config configs/fcn8s_atonce_heavy.py \
        --workdir runs/fcn8s_atonce_heavy

Each step takes one image at its full size, in float32. It trains on SBD's train and
evaluates on the paper's seg11valid, where the authors' network has a mean IU of 65.4 %.
Made for one accelerator of 16 GB or more. Time and mean IU: not yet measured.
"""

from fcn_jax.training.config import Config
from fcn_jax.training.recipes import paper_recipe


def get_config() -> Config:
    return paper_recipe(
        "fcn8s",
        learning_rate=1e-10,
        init_from="vgg16",
        steps=300_000,
        pool_scales=(0.01, 0.0001),
    )
