r"""FCN-8s on a folder of your own images and masks.

The images and the masks of a split lie in two folders. A mask is a PNG with the name of
its image. Its pixels are class indices 0, 1, 2, ..., or 255 where there is no label:

    mydata/images/train/a.jpg   mydata/labels/train/a.png
    mydata/images/val/b.jpg     mydata/labels/val/b.png

    python train.py --config configs/folder.py --workdir runs/mydata \
        --config.data.root=mydata --config.data.num_classes=3 \
        --config.data.class_names="('background', 'cat', 'dog')"

Training crops images of any size to one size; evaluation takes each image at its own.
Hardware and time depend on crop and batch_size. Mean IU: depends on your data.
"""

from fcn_jax.training.config import Config, Data, Model
from fcn_jax.training.recipes import POOL_SCALES


def get_config() -> Config:
    return Config(
        model=Model(variant="fcn8s", pool_scales=POOL_SCALES),
        data=Data(root="data", num_classes=2, scale=(0.75, 1.5), crop=(320, 320)),
        init_from="vgg16",
        epochs=20,
        batch_size=4,
    )
