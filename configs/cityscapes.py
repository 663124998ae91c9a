r"""FCN-8s on Cityscapes, 19 classes of street scenes, in one stage from VGG-16.

    python train.py --config configs/cityscapes.py --workdir runs/cityscapes \
        --config.data.root=cityscapes

Register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip
(11 GB) and gtFine_trainvaltest.zip, and unpack both into one folder. They give 2,975
images to train on and 500 to evaluate on, of 1024x2048 pixels. The licence allows
non-commercial use and forbids passing the images on.

The masks are gtFine's labelIds. The benchmark scores 19 of their values; all others
become void here, as in cityscapesScripts (helpers/labels.py). Masks of train ids, which
its csCreateTrainIdLabelImgs writes, need another suffix and no map:
--config.data.label_suffix=_gtFine_labelTrainIds.png --config.data.label_map="()"
Made for one accelerator of 24 GB or more. Time and mean IU: not yet measured.
"""

from fcn_jax.data.labels import VOID
from fcn_jax.training.config import Config, Data, Model
from fcn_jax.training.recipes import POOL_SCALES

CLASSES = {  # Name: (value in the masks, colour).
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
VALUES = 34  # The masks have 0 to 33; a license plate, -1, is 255 in 8 bits.


def get_config() -> Config:
    values, palette = zip(*CLASSES.values(), strict=True)
    classes = {value: i for i, value in enumerate(values)}
    return Config(
        model=Model(variant="fcn8s", dtype="bfloat16", pool_scales=POOL_SCALES),
        data=Data(
            root="data/cityscapes",
            images="leftImg8bit/{split}",
            labels="gtFine/{split}",
            image_suffix="_leftImg8bit.png",
            label_suffix="_gtFine_labelIds.png",
            num_classes=len(CLASSES),
            class_names=tuple(CLASSES),
            palette=palette,
            label_map=tuple(
                (value, classes.get(value, VOID)) for value in range(VALUES)
            ),
            scale=(0.75, 1.5),
            crop=(512, 1024),
            help=(
                "Register at https://www.cityscapes-dataset.com, download "
                "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpack both "
                "into one folder and pass it as --config.data.root=FOLDER"
            ),
        ),
        init_from="vgg16",
        epochs=60,
        batch_size=4,
    )
