"""Your own images and masks.

Images and masks lie in sub-folders of one folder, a mask under the name of its image as
a PNG whose pixels are class indices (0, 1, 2, ...; 255 where there is no label):

    mydata/images/train/a.jpg   mydata/labels/train/a.png
    mydata/images/val/b.jpg     mydata/labels/val/b.png

    python train.py --config configs/folder.py --workdir runs/mydata \\
        --config.data.root=mydata --config.data.num_classes=3 \\
        --config.data.class_names="('background', 'cat', 'dog')" \\
        --config.init_from=vgg16

Crops of a random scale make batches of images of any size; evaluation takes each image
at its own size. Time and memory follow crop and batch_size. Mean IU: yours to measure.
"""

from fcn_jax.training.config import Config, Data, Model


def get_config() -> Config:
    return Config(
        # Why the scales: see fcn8s.py.
        model=Model(variant="fcn8s", pool_scales=(0.01, 0.001)),
        data=Data(
            root="data",
            images="images/{split}",
            labels="labels/{split}",
            num_classes=2,
            scale=(0.75, 1.5),
            crop=(320, 320),
        ),
        init_from="vgg16",
        epochs=20,
        batch_size=4,
    )
