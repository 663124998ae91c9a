"""PASCAL VOC 2012 segmentation: its classes, and its folder as the archive gives it."""

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

# The fields of fcn_jax.training.config.Data for the unpacked archive.
FOLDER = {
    "root": "data/VOCdevkit/VOC2012",
    "images": "JPEGImages",
    "labels": "SegmentationClass",
    "list_file": "ImageSets/Segmentation/{split}.txt",
    "num_classes": len(CLASS_NAMES),
    "class_names": CLASS_NAMES,
    "help": (
        "Download VOCtrainval_11-May-2012.tar from "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and unpack it in data/, or "
        "pass --config.data.root=.../VOCdevkit/VOC2012"
    ),
}
