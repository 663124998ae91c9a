"""The configuration of a run: typed, overridable from the command line, checked."""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_jax.data.balance import BALANCES
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.tfds_source import TfdsSource
from fcn_jax.files import write_json
from fcn_jax.models.fcn import FCN
from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.parallel import MODES
from fcn_jax.weights.download import PUBLISHED

CONFIG_FILE = "config.json"  # In a run directory.
VGG16_HELP = (
    "Pass --config.init_from=vgg16 to download VGG's own weights once, the path of a "
    f"weight file or a run, one of the names {', '.join(PUBLISHED)}, or nothing "
    "(--config.init_from=) to start at random"
)
DTYPES = ("float32", "bfloat16")
SHAPES_TRAIN, SHAPES_EVAL = 4000, 100  # Pictures of the two splits of "shapes".


@dataclass
class Model:
    """Fields of `fcn_jax.FCN`; ``dtype`` is "float32" or "bfloat16"."""

    variant: str = "fcn8s"
    geometry: str = "same"
    crop: str = "center"
    mean_rgb: tuple = VGG_MEAN_RGB  # Replaced by the mean of the weights in init_from.
    width: float = 1.0
    dropout: float = 0.5
    dtype: str = "float32"
    score_init: str = "zero"
    pool_scales: tuple = (1.0, 1.0)
    learn_upsampling: bool = False
    remat: str = "none"  # Or "blocks": less memory, more time.


@dataclass
class Data:
    """Where images come from and how they are made ready."""

    # "folder"; "shapes", which draws its own pictures; or any TFDS data set of images
    # and masks, such as "voc_segmentation/voc2012" or "oxford_iiit_pet".
    name: str = "folder"
    root: str = ""  # Of the folder; of TFDS, where it keeps its data sets.
    manual_dir: str = ""  # Where archives lie that TFDS need not download.
    image_feature: str = "image"  # Names in a TFDS data set.
    label_feature: str = "label"
    images: str = "images/{split}"  # Folder of the images under root.
    labels: str = "labels/{split}"  # Folder of the label PNGs under root.
    list_file: str = ""  # Text file of a split's stems under root; "" takes all files.
    train_split: str = "train"
    eval_split: str = "val"
    num_classes: int = 21
    class_names: tuple = ()  # One for each class, or none.
    ignore_label: int = 255  # The data set's void value.
    label_map: tuple = ()  # ((value in the masks, class or void), ...); others stay.
    reduce_zero_label: bool = False  # 0 in the masks is void, k is class k - 1.
    size: tuple = ()  # (H, W) that images are resized to; () keeps each one's own.
    scale: tuple = (1.0, 1.0)  # Random factors of the training images.
    crop: tuple = ()  # (H, W) of random training crops; () for none.
    # Images of a batch that differ in size are filled up to multiples of this.
    bucket: int = 64
    flip: bool = True  # Mirrors training images at random.
    replacement: bool = False  # Draws each training image from all, not once an epoch.
    threads: int = 2  # That read ahead.
    workers: int = 0  # Processes that read ahead instead; 0 for none.
    help: str = ""  # Where to get the data, said when it is not there.


@dataclass
class Optim:
    """See fcn_jax.training.optim."""

    name: str = "adamw"  # Or "sgd".
    learning_rate: float = 5e-5
    schedule: str = "poly"  # Or "cosine", "constant".
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_rate: float = 1.0  # The biases' rate, in multiples of the kernels'.


@dataclass
class Config:
    """All of a run; `configs` has examples."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    init_from: str = ""  # File, run or name of weights to start from; "" for none.
    epochs: float = 10.0
    steps: int = 0  # Instead of epochs where positive.
    batch_size: int = 4
    accumulate: int = 1  # Parts that a batch goes through the network in, one by one.
    loss_normalization: str = "mean"  # Or "sum", over pixels and per image.
    class_weights: tuple = ()  # What a pixel of each class counts; () for 1 each.
    class_balance: str = (
        ""  # Or "median_frequency", "inverse_log": weights of the data.
    )
    parallel: str = "sharded"  # Over all devices; or "pmap"; or "none", for one.
    seed: int = 0
    eval_every: int = 0  # Steps between evaluations and checkpoints; 0: each epoch.
    log_every: int = 20  # Steps between lines of the log.
    keep_checkpoints: int = 1  # The latest so many; the best is kept besides.

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, made up where the config has none."""
        made_up = (f"class {i}" for i in range(self.data.num_classes))
        return self.data.class_names or tuple(made_up)


def check(config: Config) -> None:
    """Raises a ValueError for the first field whose value cannot be used."""
    data = config.data
    _one_of("model.dtype", config.model.dtype, DTYPES)
    _one_of("parallel", config.parallel, MODES)
    _one_of("class_balance", config.class_balance, ("", *BALANCES))
    make_model(config)
    if data.name == "folder" and not data.root:
        raise ValueError(f"config.data.root is not set. {data.help}".strip())
    if data.class_names and len(data.class_names) != data.num_classes:
        raise ValueError(
            f"config.data.class_names has {len(data.class_names)} names, but "
            f"config.data.num_classes = {data.num_classes}: give one for each, or ()"
        )
    if 0 <= data.ignore_label < data.num_classes:
        raise ValueError(
            f"config.data.ignore_label = {data.ignore_label} is one of the "
            f"{data.num_classes} classes: void needs a value of its own, such as 255"
        )
    if config.class_weights and len(config.class_weights) != data.num_classes:
        raise ValueError(
            f"config.class_weights has {len(config.class_weights)} numbers for "
            f"{data.num_classes} classes: give one for each, or ()"
        )
    if config.class_weights and min(config.class_weights) < 0:
        raise ValueError(f"config.class_weights = {config.class_weights} must be >= 0")
    _check_label_map(data)
    for name, size in (("size", data.size), ("crop", data.crop)):
        whole = all(isinstance(side, int) and side > 0 for side in size)
        if size and (len(size) != 2 or not whole):
            raise ValueError(
                f"config.data.{name} = {size} must be (height, width) or ()"
            )
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        raise ValueError(f"config.data.scale = {data.scale} must be (low, high) > 0")
    if data.bucket < 1:
        raise ValueError(f"config.data.bucket = {data.bucket} must be >= 1")
    for name in ("batch_size", "accumulate", "log_every", "keep_checkpoints"):
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} = {getattr(config, name)} must be >= 1")
    if config.steps <= 0 and config.epochs <= 0:
        raise ValueError(f"config.epochs = {config.epochs} must be above 0")
    if config.init_from and not (
        config.init_from in PUBLISHED or Path(config.init_from).exists()
    ):
        raise ValueError(
            f"config.init_from = {config.init_from} does not exist. {VGG16_HELP}"
        )


def refuse_hopeless(config: Config, from_vgg16: bool) -> None:
    """Raises a ValueError for the one recipe that is known not to train.

    Reference: the authors' release stages 32s, 16s, 8s, or scales the pools.
    """
    model = config.model
    if (
        from_vgg16
        and model.variant == "fcn8s"
        and tuple(model.pool_scales) == (1.0, 1.0)
        and config.loss_normalization == "sum"
        and config.optim.name == "sgd"
    ):
        raise ValueError(
            "FCN-8s with a summed loss does not train straight from VGG-16: the "
            "gradients of pool3 and pool4 drown those of fc7. Start from a trained "
            "FCN-16s (config.init_from), or at once with "
            '--config.model.pool_scales="(0.01, 0.0001)"'
        )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"config.{name} = {value!r} is not one of {choices}")


def make_model(config: Config) -> FCN:
    """The network that a config describes."""
    fields = dataclasses.asdict(config.model)
    fields["mean_rgb"] = tuple(fields["mean_rgb"])
    fields["pool_scales"] = tuple(fields["pool_scales"])
    return FCN(num_classes=config.data.num_classes, **fields)


def _check_label_map(data: Data) -> None:
    if data.label_map and data.reduce_zero_label:
        raise ValueError("set config.data.label_map or reduce_zero_label, not both")
    for pair in data.label_map:
        match tuple(pair):
            case (int(old), int(_)) if 0 <= old < 2**16:
                continue
        raise ValueError(
            f"config.data.label_map has {pair!r}, want (value in the masks, class)"
        )


def make_source(config: Config, split: str) -> Any:
    """The images and labels of a split (fcn_jax.data.sources).

    Raises:
        ValueError: if they are not where the config says.
    """
    data = config.data
    label_map = data.label_map
    if data.reduce_zero_label:
        shifted = ((k + 1, k) for k in range(data.num_classes))
        label_map = ((0, data.ignore_label), *shifted)
    classes = {
        "num_classes": data.num_classes,
        "ignore_label": data.ignore_label,
        "label_map": label_map,
    }
    if data.name == "shapes":
        lengths = {data.eval_split: SHAPES_EVAL, data.train_split: SHAPES_TRAIN}
        if split not in lengths:
            raise ValueError(f"split {split!r} is not one of {tuple(lengths)}")
        return ShapesSource(split, size=data.size or (64, 64), length=lengths[split])
    try:
        if data.name != "folder":
            return TfdsSource(
                data.name,
                split=split,
                data_dir=data.root,
                manual_dir=data.manual_dir,
                image=data.image_feature,
                label=data.label_feature,
                **classes,
            )
        return FolderSource(
            data.root,
            images=data.images,
            labels=data.labels,
            split=split,
            list_file=data.list_file,
            **classes,
        )
    except ValueError as error:
        raise ValueError(f"{error}. {data.help}".strip()) from error


def save_config(path: Path, config: Config) -> None:
    """Writes a config as JSON."""
    write_json(path, dataclasses.asdict(config))


def load_config(path: Path) -> Config:
    """Reads a config that `save_config` wrote.

    Raises:
        ValueError: if the file is missing or is no such config.
    """
    try:
        return _build(Config, json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is not there: {path.parent} is no run directory of train.py"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no config of this version: {error}") from error


def _build(kind: type, values: dict) -> Any:
    types = typing.get_type_hints(kind)
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = _build(types[name], value)
        elif isinstance(value, list):  # JSON has no tuples.
            values[name] = tuple(value)
    return kind(**values)
