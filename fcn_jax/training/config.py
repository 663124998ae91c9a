"""The configuration of a run: typed, overridable from the command line, checked."""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path

from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import FolderSource
from fcn_jax.files import write_json
from fcn_jax.models.fcn import FCN
from fcn_jax.models.vgg import VGG_MEAN_RGB

CONFIG_FILE = "config.json"  # In a run directory.
VGG16_HELP = (
    "Put a VGG-16 there: a vgg16.npy of caffe-tensorflow, or torchvision's weights as "
    "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors; or pass "
    "--config.init_from= to start at random"
)
DTYPES = ("float32", "bfloat16")
SOURCES = ("folder", "shapes")
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


@dataclass
class Data:
    """Where images come from and how they are made ready."""

    name: str = "folder"  # "folder", or "shapes", which draws its own pictures.
    root: str = ""
    images: str = "images/{split}"  # Folder of the images under root.
    labels: str = "labels/{split}"  # Folder of the label PNGs under root.
    list_file: str = ""  # Text file of a split's stems under root; "" takes all files.
    train_split: str = "train"
    eval_split: str = "val"
    num_classes: int = 21
    class_names: tuple = ()  # One for each class, or none.
    ignore_label: int = 255  # The data set's void value.
    size: tuple = ()  # (H, W) that images are resized to; () keeps each one's own.
    scale: tuple = (1.0, 1.0)  # Random factors of the training images.
    crop: tuple = ()  # (H, W) of random training crops; () for none.
    flip: bool = True  # Mirrors training images at random.
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
    init_from: str = ""  # File with a VGG-16 body; "" starts at random.
    epochs: float = 10.0
    steps: int = 0  # Instead of epochs where positive.
    batch_size: int = 4
    loss_normalization: str = "mean"  # Or "sum", over pixels and per image.
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
    _one_of("data.name", data.name, SOURCES)
    _one_of("model.dtype", config.model.dtype, DTYPES)
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
    for name, size in (("size", data.size), ("crop", data.crop)):
        whole = all(isinstance(side, int) and side > 0 for side in size)
        if size and (len(size) != 2 or not whole):
            raise ValueError(
                f"config.data.{name} = {size} must be (height, width) or ()"
            )
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        raise ValueError(f"config.data.scale = {data.scale} must be (low, high) > 0")
    for name in ("batch_size", "log_every", "keep_checkpoints"):
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} = {getattr(config, name)} must be >= 1")
    if config.steps <= 0 and config.epochs <= 0:
        raise ValueError(f"config.epochs = {config.epochs} must be above 0")
    if config.init_from and not Path(config.init_from).exists():
        raise ValueError(
            f"config.init_from = {config.init_from} does not exist. {VGG16_HELP}"
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


def make_source(config: Config, split: str) -> FolderSource | ShapesSource:
    """The images and labels of a split.

    Raises:
        ValueError: if they are not where the config says.
    """
    data = config.data
    if data.name == "shapes":
        lengths = {data.eval_split: SHAPES_EVAL, data.train_split: SHAPES_TRAIN}
        if split not in lengths:
            raise ValueError(f"split {split!r} is not one of {tuple(lengths)}")
        return ShapesSource(split, size=data.size or (64, 64), length=lengths[split])
    try:
        return FolderSource(
            data.root,
            images=data.images,
            labels=data.labels,
            split=split,
            num_classes=data.num_classes,
            ignore_label=data.ignore_label,
            list_file=data.list_file,
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


def _build(kind: type, values: dict) -> typing.Any:
    types = typing.get_type_hints(kind)
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = _build(types[name], value)
        elif isinstance(value, list):  # JSON has no tuples.
            values[name] = tuple(value)
    return kind(**values)
