"""The configuration of a run: typed, overridable from the command line, checked."""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from fcn_jax.data.labels import VOID, names_of
from fcn_jax.data.shapes import ShapesSource
from fcn_jax.data.sources import FolderSource
from fcn_jax.data.survey import BALANCES
from fcn_jax.data.tfds_source import TfdsSource
from fcn_jax.files import reading, write_json
from fcn_jax.models.fcn import FCN
from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.network import Network
from fcn_jax.parallel import MODES
from fcn_jax.training.freezing import split_params
from fcn_jax.training.losses import check_loss
from fcn_jax.training.optim import OPTIMIZERS, SCHEDULES, make_optimizer
from fcn_jax.weights.download import PUBLISHED
from fcn_jax.weights.layers import shapes_of
from fcn_jax.weights.transplant import EXTRA_INITS

CONFIG_FILE = "config.json"  # In a run directory.
_DIGEST = "sha256"  # The entry of the file with the digest of all others.
DTYPES = ("float32", "bfloat16")
SHAPES_TRAIN, SHAPES_EVAL = 4000, 100
_OF_FOLDERS = (  # Fields of Data that FolderSource takes by the same names.
    *("root", "images", "labels", "list_file", "image_suffix", "label_suffix"),
    *("extra_images", "palette", "void_colors", "nearest_color", "resize_labels"),
)


@dataclass
class Model:
    """Describe the network: the fields of `fcn_jax.FCN`, with the dtype as a string.

    Attributes:
        variant: "fcn32s", "fcn16s" or "fcn8s".
        geometry: "same", or "caffe" for that of the authors' release.
        crop: "center" or "corner": the part of an upsampled map that is kept.
        in_channels: channels of the image, from 3; the first three are RGB.
        mean: one number for each channel, subtracted from the image; () for the mean of
            the weights of init_from, or VGG-16's, and for further channels that of the
            training images.
        scale: one number for each channel, which multiplies the image less its mean; ()
            for that of the weights, or 1, and for further channels 64 / their standard
            deviation in the training images.
        extra_init: "mean" or "zero": what conv1_1 starts with for further channels if
            the weights of init_from are for RGB.
        width: multiplier of the number of filters, such as 0.25.
        dropout: rate after fc6 and fc7 in training.
        dtype: "float32" or "bfloat16", of the computation; parameters stay float32.
        score_init: "zero" or "xavier", the start of the score layers.
        pool_scales: factors of pool4 and pool3 before they are scored.
        learn_upsampling: whether the upsampling kernels are trained.
        remat: "none", or "blocks" for less memory and more time.
    """

    variant: str = "fcn8s"
    geometry: str = "same"
    crop: str = "center"
    in_channels: int = 3
    mean: tuple = ()
    scale: tuple = ()
    extra_init: str = "mean"
    width: float = 1.0
    dropout: float = 0.5
    dtype: str = "float32"
    score_init: str = "zero"
    pool_scales: tuple = (1.0, 1.0)
    learn_upsampling: bool = False
    remat: str = "none"


@dataclass
class Data:
    """Tell where the images come from and how they are prepared.

    Attributes:
        name: "folder"; "shapes", which draws pictures; or a TFDS data set of images and
            masks, such as "voc_segmentation/voc2012" or "oxford_iiit_pet".
        root: folder of the data; for TFDS, of its prepared data sets.
        manual_dir: folder of archives that TFDS need not download.
        image_feature: feature of a TFDS data set that holds the image.
        label_feature: feature of a TFDS data set that holds the mask.
        channels: one name for each input channel, or ().
        shown: the three channels, from 0, that pictures show as red, green and blue.
        images: folder of the images under root; {split} stands for the split.
        labels: folder of the masks under root, likewise.
        image_suffix: the end of the names of images, such as "_leftImg8bit.png"; other
            files are left out. "" takes all images.
        label_suffix: likewise for masks.
        extra_images: folders of further channels, such as ("depth/{split}",), each
            perhaps with a suffix: "disparity/{split}/*_disparity.png".
        list_file: text file under root with the names of a split, or with the paths of
            images and masks in two columns; "" for all files.
        train_split: the split to train on.
        eval_split: the split to evaluate on.
        num_classes: number of classes, at most 255.
        class_names: one name for each class, or ().
        palette: (red, green, blue) of each class, for pictures and for masks of
            colours; () for the colours of PASCAL VOC in pictures.
        void_colors: (red, green, blue) of void pixels in masks of colours.
        nearest_color: whether other colours in masks count as the nearest of these.
        ignore_label: the value of void pixels in the masks.
        label_map: ((value in the masks, class or void), ...); other values stay.
        reduce_zero_label: whether 0 in the masks is void and k is class k - 1.
        resize_labels: whether a mask of another size is resized to its image.
        size: (height, width) to resize all images to; () keeps their sizes.
        scale: (low, high) of the random factor of training images.
        crop: (height, width) of random training crops; () for none.
        bucket: images of several sizes are padded to multiples of this.
        rotation: largest angle in degrees by which training images are rotated at
            random, from 0 to 180.
        flip: whether to mirror training images at random.
        jitter: (brightness, contrast, saturation, hue), the strengths of random changes
            of colour, such as (0.3, 0.3, 0.3, 0.05); () for none.
        transform: own transform of training examples, applied last, as
            "package.module:function"; "" for none.
        replacement: whether each training image is drawn from all, instead of once in
            each epoch.
        cache: folder where a run keeps the decoded images of both splits, those to
            train on in data.size, so that it decodes them once; "" for none.
        threads: reading threads, in this process or in each worker.
        workers: reading processes; 0 for none.
        help: where to get the data, for the error if it is missing.
    """

    name: str = "folder"
    root: str = ""
    manual_dir: str = ""
    image_feature: str = "image"
    label_feature: str = "label"
    channels: tuple = ()
    shown: tuple = (0, 1, 2)
    images: str = "images/{split}"
    labels: str = "labels/{split}"
    image_suffix: str = ""
    label_suffix: str = ""
    extra_images: tuple = ()
    list_file: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    num_classes: int = 21
    class_names: tuple = ()
    palette: tuple = ()
    void_colors: tuple = ()
    nearest_color: bool = False
    ignore_label: int = 255
    label_map: tuple = ()
    reduce_zero_label: bool = False
    resize_labels: bool = False
    size: tuple = ()
    scale: tuple = (1.0, 1.0)
    crop: tuple = ()
    bucket: int = 64
    rotation: float = 0.0
    flip: bool = True
    jitter: tuple = ()
    transform: str = ""
    replacement: bool = False
    cache: str = ""
    threads: int = 2
    workers: int = 0
    help: str = ""


@dataclass
class Optim:
    """Describe the optimiser and its learning rate.

    Attributes:
        name: "adamw" or "sgd".
        learning_rate: the highest rate.
        schedule: "poly", "cosine" or "constant".
        warmup_steps: first steps, over which the rate rises from 0.
        momentum: momentum of SGD.
        weight_decay: factor of the kernels in the decay.
        bias_rate: learning rate of biases as a multiple of that of kernels.
        rates: learning rates of the body and of the head as multiples of
            learning_rate.
        freeze: prefixes of the names of layers that are not trained, such as
            ("conv1", "conv2").
        clip_norm: the norm that larger gradients are scaled down to; 0 for no limit.
    """

    name: str = "adamw"
    learning_rate: float = 5e-5
    schedule: str = "poly"
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_rate: float = 1.0
    rates: tuple = (1.0, 1.0)
    freeze: tuple = ()
    clip_norm: float = 0.0


@dataclass
class Config:
    """Hold all settings of a run; the files of configs/ are examples.

    Attributes:
        model: the network.
        data: the images and labels.
        optim: the optimiser.
        init_from: weight file, run or published name to start from; "" for random.
        epochs: passes over the training images.
        steps: steps of the run; 0 takes epochs instead.
        batch_size: images per step.
        accumulate: micro-batches per step (gradient accumulation).
        loss: "cross_entropy", "focal", "dice" or "cross_entropy+dice".
        loss_normalization: "mean" over the labelled pixels, or "sum" for each image;
            "dice" does not depend on it.
        class_weights: weight of each class in the loss; () for 1 each.
        class_balance: "median_frequency" or "inverse_log" computes the class weights
            from the training labels; "" does not.
        parallel: "sharded", "zero1" (each device holds a part of the optimiser's state)
            or "pmap" over all devices, or "none" for one device.
        seed: seed of the random parameters, the order and the augmentation.
        eval_every: steps between evaluations and checkpoints; 0 for one epoch.
        log_every: steps between lines of the log.
        keep_checkpoints: number of latest checkpoints kept, besides the best.
    """

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    init_from: str = ""
    epochs: float = 10.0
    steps: int = 0
    batch_size: int = 4
    accumulate: int = 1
    loss: str = "cross_entropy"
    loss_normalization: str = "mean"
    class_weights: tuple = ()
    class_balance: str = ""
    parallel: str = "sharded"
    seed: int = 0
    eval_every: int = 0
    log_every: int = 20
    keep_checkpoints: int = 2

    def class_names(self) -> tuple[str, ...]:
        """Return the class names, "class 0", "class 1", ... if the config has none."""
        return names_of(self.data.class_names, self.data.num_classes)


def check(config: Config) -> None:
    """Raise ValueError for the fields whose values cannot be used, a line for each."""
    problems = list(_type_problems(config)) or [
        *_range_problems(config),
        *_data_problems(config.data),
        *_run_problems(config),
    ]
    if problems:
        raise ValueError("\n".join(f"config.{problem}" for problem in problems))
    # The mean and the scale may follow from the weights and the training images.
    config = with_normalization(config, VGG_MEAN_RGB)
    with prefixed("config."):
        check_loss(config.loss, config.loss_normalization)
    with prefixed("config.model."):
        model = make_model(config)
    with prefixed("config.data."):
        make_network(config)
    optim, limits = config.optim, fields(config.optim, "rates", "clip_norm")
    with prefixed("config.optim."):
        make_optimizer(optim.name, lambda step: 0.0, **limits)
        if optim.freeze:
            split_params(unflatten_dict(dict(shapes_of(model)), sep="/"), optim.freeze)


def check_trainable(config: Config, *, from_vgg16: bool) -> None:
    """Raise ValueError for the one recipe that is known not to train.

    The authors' release trains 32s, 16s and 8s in stages, or scales the pools.
    """
    model = config.model
    if (
        from_vgg16
        and model.variant == "fcn8s"
        and tuple(model.pool_scales) == (1.0, 1.0)
        and config.loss_normalization == "sum"
        and config.loss != "dice"
        and config.optim.name == "sgd"
    ):
        raise ValueError(
            "FCN-8s with a summed loss does not train straight from VGG-16: the "
            "gradients of pool3 and pool4 drown those of fc7. Set config.init_from to "
            "a trained FCN-16s, or config.model.pool_scales to (0.01, 0.0001)"
        )


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix such as "config.optim." before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Yield name (such as "data.crop"), type and value of each field of a config."""
    types = typing.get_type_hints(type(config))
    for name, kind in types.items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(kind):
            yield from flat(value, f"{name}.")
        else:
            yield prefix + name, kind, value


def _type_problems(config: Config) -> Iterator[str]:
    also = {float: int, tuple: list}
    for name, kind, value in flat(config):
        right = isinstance(value, (kind, also.get(kind, kind)))
        if not right or kind is not bool and isinstance(value, bool):
            yield f"{name} = {value!r} must be of type {kind.__name__}"


# What numbers must be, where no other check tells.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("batch_size", "accumulate", "log_every", "keep_checkpoints"),
        (lambda n: n >= 1, ">= 1"),
    ),
    **dict.fromkeys(("data.threads", "data.bucket"), (lambda n: n >= 1, ">= 1")),
    **dict.fromkeys(
        ("steps", "eval_every", "optim.warmup_steps", "data.workers"),
        (lambda n: n >= 0, ">= 0"),
    ),
    "seed": (lambda n: 0 <= n < 2**32, "from 0 to 2**32 - 1"),
    **dict.fromkeys(
        ("epochs", "optim.learning_rate"),
        (lambda x: 0 < x < math.inf, "above 0 and finite"),
    ),
    **dict.fromkeys(
        ("optim.weight_decay", "optim.bias_rate"),
        (lambda x: 0 <= x < math.inf, ">= 0 and finite"),
    ),
    "optim.momentum": (lambda x: 0 <= x < 1, "in [0, 1)"),
}


def _range_problems(config: Config) -> Iterator[str]:
    for name, _, value in flat(config):
        fits, wanted = _RANGES.get(name, (lambda _: True, ""))
        if not fits(value):
            yield f"{name} = {value!r} must be {wanted}"


def _data_problems(data: Data) -> Iterator[str]:
    if not 1 <= data.num_classes <= VOID:
        yield (
            f"data.num_classes = {data.num_classes} must be from 1 to {VOID}: the "
            f"label {VOID} marks void pixels"
        )
    elif 0 <= data.ignore_label < data.num_classes:
        yield (
            f"data.ignore_label = {data.ignore_label} is one of the {data.num_classes} "
            "classes: use another value for void, such as 255"
        )
    yield from _label_map_problems(data)
    yield from _color_problems(data)
    if isinstance(data.extra_images, str) or not all(
        isinstance(folder, str) and folder for folder in data.extra_images
    ):
        yield (
            f"data.extra_images = {data.extra_images!r} must be a tuple of folders, "
            'such as ("depth/{split}",)'
        )
    if data.crop and not (len(data.crop) == 2 and all(map(_is_side, data.crop))):
        yield f"data.crop = {data.crop} must be (height, width) or ()"
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        yield f"data.scale = {data.scale} must be (low, high) with 0 < low <= high"
    if not 0 <= data.rotation <= 180:
        yield f"data.rotation = {data.rotation} must be from 0 to 180 degrees"
    jitter = tuple(data.jitter)
    if jitter and not (len(jitter) == 4 and min(jitter) >= 0 and jitter[3] <= 0.5):
        yield (
            f"data.jitter = {data.jitter} must be () or (brightness, contrast, "
            "saturation, hue), each at least 0 and hue at most 0.5"
        )
    if data.transform and not re.fullmatch(r"\w+(\.\w+)*:\w+", data.transform):
        yield f"data.transform = {data.transform!r} must be package.module:function"


def _label_map_problems(data: Data) -> Iterator[str]:
    if data.label_map and data.reduce_zero_label:
        yield "data.label_map and reduce_zero_label are both set: set one of them"
    if data.reduce_zero_label and data.ignore_label == data.num_classes:
        yield (
            f"data.ignore_label = {data.ignore_label} is class {data.num_classes - 1} "
            "in the masks, because of reduce_zero_label: use a larger value for void"
        )
    for pair in data.label_map:
        match pair:
            case [int(old), int(_)] if 0 <= old < 2**16:
                continue
        yield f"data.label_map has {pair!r}, want (value in the masks, class)"


def _color_problems(data: Data) -> Iterator[str]:
    for color in data.void_colors:
        match color:
            case [int(r), int(g), int(b)] if 0 <= min(r, g, b) <= max(r, g, b) <= 255:
                continue
        yield f"data.void_colors has {color!r}, want (red, green, blue) from 0 to 255"
    for name in ("void_colors", "nearest_color"):
        if getattr(data, name) and not data.palette:
            yield f"data.{name} is set, but data.palette has no colours of the classes"


def _run_problems(config: Config) -> Iterator[str]:
    for name, value, choices in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.extra_init", config.model.extra_init, EXTRA_INITS),
        ("optim.name", config.optim.name, OPTIMIZERS),
        ("optim.schedule", config.optim.schedule, SCHEDULES),
        ("parallel", config.parallel, MODES),
        ("class_balance", config.class_balance, ("", *BALANCES)),
    ):
        if value not in choices:
            yield f"{name} = {value!r} is not one of {choices}"
    weights, classes = config.class_weights, config.data.num_classes
    if len(weights) not in (0, classes):
        yield (
            f"class_weights has {len(weights)} numbers for {classes} classes: give one "
            "for each, or ()"
        )
    if min(weights, default=0) < 0:
        yield f"class_weights = {weights} must be >= 0"
    start = config.init_from
    if start not in ("", *PUBLISHED) and not Path(start).exists():
        yield (
            f"init_from = {start} does not exist. Set it to vgg16, which is downloaded "
            "once, to the path of a weight file or a run, to one of the names "
            f'{", ".join(PUBLISHED)}, or to "" to start at random'
        )


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and side > 0


def with_normalization(
    config: Config, mean: tuple[float, ...], scale: tuple[float, ...] = ()
) -> Config:
    """Return the config with a mean and a scale where it has none.

    Args:
        config: the config.
        mean: of the first channels. Further ones get 0.
        scale: likewise; further ones get 1. () stays ().
    """
    model = config.model
    channels, extra = model.in_channels, model.in_channels - len(mean)
    mean = (*mean[:channels], *(0.0,) * extra)
    scale = scale and (*scale[:channels], *(1.0,) * extra)
    model = dataclasses.replace(
        model, mean=tuple(model.mean) or mean, scale=tuple(model.scale) or scale
    )
    return dataclasses.replace(config, model=model)


def make_model(config: Config) -> FCN:
    """Return the model that a config describes, with VGG-16's mean if it has none.

    Raises:
        ValueError: for a field that `FCN` refuses, such as no mean for more channels
            than RGB.
    """
    values = dataclasses.asdict(config.model)
    del values["extra_init"]  # It concerns the start of a run alone.
    for name in ("mean", "scale", "pool_scales"):
        values[name] = tuple(values[name])
    values["mean"] = values["mean"] or VGG_MEAN_RGB
    return FCN(num_classes=config.data.num_classes, **values)


def steps_per_epoch(config: Config, examples: int) -> int:
    """Return the steps after which each of so many examples has been seen."""
    return math.ceil(examples / config.batch_size)


def make_network(config: Config, params: Any = None) -> Network:
    """Return the network of a config with these parameters.

    It computes in float32 as the one that `fcn_jax.load` returns, whatever the dtype of
    the training, so that both get the same scores.
    """
    data, model = config.data, make_model(config).clone(dtype=jnp.float32)
    options = fields(data, "palette", "size", "channels", "shown")
    return Network(params, model, config.class_names(), **options)


def make_source(config: Config, split: str, *, strict: bool = True) -> Any:
    """Open the images and labels of a split (fcn_jax.data.sources).

    Args:
        config: the config.
        split: the split.
        strict: whether a file without its counterpart is an error. If not, the
            ``problems`` of a source of a folder tell of it.

    Raises:
        ValueError: if they are not where the config says.
    """
    data = config.data
    if data.name == "shapes":
        lengths = {data.eval_split: SHAPES_EVAL, data.train_split: SHAPES_TRAIN}
        if split not in lengths:
            raise ValueError(f"split {split!r} is not one of {tuple(lengths)}")
        return ShapesSource(split, size=data.size or (64, 64), length=lengths[split])
    if data.name == "folder" and not data.root:
        raise ValueError(f"config.data.root is not set. {data.help}".strip())
    arguments = fields(data, "num_classes", "ignore_label", "label_map")
    if data.reduce_zero_label:
        shifted = ((k + 1, k) for k in range(data.num_classes))
        arguments["label_map"] = ((0, data.ignore_label), *shifted)
    try:
        if data.name == "folder":
            return FolderSource(
                split=split,
                strict=strict,
                in_channels=config.model.in_channels,
                **arguments,
                **fields(data, *_OF_FOLDERS),
            )
        return TfdsSource(
            data.name,
            split=split,
            data_dir=data.root,
            manual_dir=data.manual_dir,
            image=data.image_feature,
            label=data.label_feature,
            **arguments,
        )
    except ValueError as error:
        # The other arguments of the sources have the names of the fields.
        note = "data_dir is config.data.root. " if "data_dir" in str(error) else ""
        raise ValueError(f"{error}. {note}{data.help}".strip()) from error


def fields(config: Any, *names: str) -> dict[str, Any]:
    """Return some fields of a config, or of a part of it, by their names."""
    return {name: getattr(config, name) for name in names}


def save_config(path: Path, config: Config) -> None:
    """Write a config as JSON, with a digest."""
    values = dataclasses.asdict(config)
    write_json(path, values | {_DIGEST: _digest(values)})


def load_config(path: Path) -> Config:
    """Read a config that `save_config` wrote.

    Raises:
        ValueError: if the file is missing or damaged, was edited, or holds something
            else.
    """
    try:
        with reading(path):
            values = json.loads(path.read_text(encoding="utf-8"))
        digest = values.pop(_DIGEST, None)  # Older files lack it.
        if digest not in (None, _digest(values)):
            raise ValueError("it is damaged, or was edited after it was written")
        model = values.get("model", {})
        if "mean_rgb" in model:  # Its name in older files.
            model["mean"] = model.pop("mean_rgb")
        return config_of(values)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path} is not there: {path.parent} is not the directory of a run"
        ) from None
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a config of this version: {error}; the command that made "
            "the run writes it anew, and --weights with --config does without it"
        ) from error


def config_of(values: dict[str, Any]) -> Config:
    """Return the config that `dataclasses.asdict` made these values of, as JSON."""
    return _build(Config, values)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _build(kind: type, values: dict) -> Any:
    types = typing.get_type_hints(kind)
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = _build(types[name], value)
        else:
            values[name] = as_tuple(value)
    return kind(**values)


def as_tuple(value: Any) -> Any:
    """Return a list, also within others, as a tuple; other values unchanged.

    JSON has no tuples, and a config no lists.
    """
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value
