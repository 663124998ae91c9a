"""PASCAL VOC segmentation: its classes, and its fields in a config."""

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# The fields of fcn_jax.training.config.Data for VOC 2012 with SBD, through TFDS.
TFDS = {
    "name": "voc_segmentation/voc2012_sbd",
    "num_classes": len(CLASS_NAMES),
    "class_names": CLASS_NAMES,
    "help": (
        "Without a network: download the archives elsewhere, put them in a folder and "
        "pass it as --config.data.manual_dir=FOLDER"
    ),
}
