"""Read labelled images from a data set of TFDS, without TensorFlow."""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.data.images import read_image, read_label
from fcn_jax.data.labels import VOID, to_classes
from fcn_jax.progress import on_terminal, say

# Features that hold the name of an example, the best first.
NAME_FEATURES = ("file_name", "image/filename", "id")


@dataclasses.dataclass(eq=False)
class TfdsSource:
    """A split of a data set of TensorFlow Datasets (TFDS), with random access.

    A data set that is not prepared yet is prepared first, in the ArrayRecord format.
    For "voc_segmentation" (fcn_jax.data.voc) that works without TensorFlow; most others
    must be prepared where TensorFlow is installed.

    Images are decoded as TFDS does it, without applying the EXIF orientation: masks
    match the pixels as stored.

    Args:
        name: the data set, such as "voc_segmentation/voc2012_sbd" or
            "oxford_iiit_pet".
        split: one of its splits, or an expression such as "train[:90%]" or
            "train+val".
        data_dir: folder of prepared data sets; "" for the default of TFDS.
        manual_dir: folder of archives that were downloaded by hand, read only while
            preparing; "" for the default of TFDS.
        image: feature that holds the image.
        label: feature that holds the mask: an image of class indices, or integers.
        num_classes, ignore_label, label_map: what the values of a mask mean, see
            `fcn_jax.data.labels.to_classes`.

    Raises:
        ValueError: if the data set, split or feature does not exist, or if the data set
            cannot be prepared, or is prepared in a format without random access.
            Reading an example raises it if the image or mask cannot be decoded, if
            their sizes differ, or if a label value is out of range.

    Example::

        TfdsSource("voc_segmentation", split="train", num_classes=21)
        TfdsSource("oxford_iiit_pet", split="test", label="segmentation_mask",
                   num_classes=3, label_map=((1, 0), (2, 1), (3, 2)))
    """

    name: str
    _: dataclasses.KW_ONLY
    split: str
    data_dir: str = ""
    manual_dir: str = ""
    image: str = "image"
    label: str = "label"
    num_classes: int
    ignore_label: int = VOID
    label_map: Sequence[tuple[int, int]] = ()

    def __post_init__(self):
        """Open the split; prepare the data set if needed."""
        name = self.name
        builder = _prepared_builder(name, self.data_dir, self.manual_dir)
        self._features, self._decoders = _features(
            builder, name, self.image, self.label
        )
        self._records = _records(builder, name, self.split)
        self._folder = builder.data_path

    def __reduce__(self) -> tuple:
        """Pickle the arguments: another process opens its own files."""
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return functools.partial(type(self), **arguments), ()

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._records)

    def fingerprint(self) -> str:
        """Return a digest that changes with the prepared files and the options."""
        files = [
            (file.name, file.stat().length, file.stat().mtime)
            for file in sorted(self._folder.iterdir())
        ]
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("data_dir", "manual_dir"):  # The files count, wherever they lie.
            del arguments[name]
        text = json.dumps([arguments, files], default=int)
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, i: int) -> dict:
        """Return an example: "image", "label" and "name"."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        values = self._features.deserialize_example_np(
            self._records[i], decoders=self._decoders
        )
        name = _name(values) or f"{self.split}[{i}]"
        where = f"{self.name}, example {i} ({name})"
        image = _read(values, self.image, read_image, where)
        label = _read(values, self.label, read_label, where)
        label = label.reshape(label.shape[:2])  # [H, W, 1] or [H, W] -> [H, W]
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{where}: the image is {image.shape[0]}x{image.shape[1]} (height x "
                f"width), but its label is {label.shape[0]}x{label.shape[1]}"
            )
        label = to_classes(
            label.astype(np.int32),
            where,
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
            label_map=self.label_map,
        )
        return {"image": image, "label": label, "name": name}


def _prepared_builder(name: str, data_dir: str, manual_dir: str) -> Any:
    """Return the tfds.core.DatasetBuilder of a prepared data set."""
    if importlib.util.find_spec("array_record") is None:
        raise ValueError(
            f"{name} needs the package array_record, which does not exist for Windows: "
            "use Linux or macOS, or put images and masks into folders"
        )
    builder = _builder(name, data_dir)
    if not builder.info.initialized:
        _prepare(builder, name, manual_dir)
    formats = sorted(kind.value for kind in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise ValueError(
            f"{name} is prepared in {builder.data_dir} as {', '.join(formats)}, which "
            "has no random access. Choose another data_dir to prepare it in or, where "
            "TensorFlow is installed, run `tfds convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record`"
        )
    return builder


def _prepare(builder: Any, name: str, manual_dir: str) -> None:
    import tensorflow_datasets as tfds

    if manual_dir and not os.path.isdir(manual_dir):
        raise ValueError(f"manual_dir: {manual_dir} is not a folder")
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir or None, try_download_gcs=False
    )
    if not on_terminal():  # Its bars would fill a log file.
        tfds.disable_progress_bar()
        say(f"preparing {name} in {builder.data_dir}")
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except ImportError as error:
        reason = str(error).rpartition("\n")[2]  # TFDS puts the example before it.
        raise ValueError(
            f"{name} cannot be prepared here: {reason}. Most data sets of TFDS need "
            "TensorFlow to be prepared, but not to be read. Where it is installed, run "
            f"`tfds build {name} --file_format=array_record --data_dir=DIR`, and pass "
            "DIR as data_dir"
        ) from error
    except Exception as error:  # Downloads and builders raise many types.
        raise ValueError(f"{name} cannot be prepared: {error}") from error


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if name.partition("/")[0].partition(":")[0] == "voc_segmentation":
        import fcn_jax.data.voc  # noqa: F401  Registers it.
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"{name!r} is not a data set of TFDS {tfds.__version__}, and none of that "
            f"name is prepared in {data_dir or 'the data_dir of TFDS'}"
        ) from error
    except (ValueError, AssertionError) as error:  # Unknown config; unknown version.
        raise ValueError(f"data set {name!r}: {error}") from error


def _features(builder: Any, name: str, image: str, label: str) -> tuple[Any, dict]:
    """Return the features to read, and the decoders that leave images encoded."""
    import tensorflow_datasets as tfds

    present = builder.info.features
    for role, feature in (("image", image), ("label", label)):
        if feature not in present:
            raise ValueError(
                f"{name} has no feature {feature!r} for the {role}: it has "
                f"{', '.join(present)}"
            )
        _check_pixels(present[feature], f"{name}: feature {feature!r}", role)
    names = [feature for feature in NAME_FEATURES if feature in present][:1]
    features = {key: present[key] for key in (image, label, *names)}
    # TFDS's own decoders would turn a palette into grey levels.
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return tfds.features.FeaturesDict(features), decoders


def _check_pixels(feature: Any, where: str, role: str) -> None:
    import tensorflow_datasets as tfds

    shape = tuple(feature.shape or ())
    dtype = np.dtype(getattr(feature, "np_dtype", object))
    if role == "image":
        tensor = "[H, W, 3] of uint8"
        fits = dtype == np.uint8 and shape[2:] == (3,)
    else:
        tensor = "[H, W] or [H, W, 1] of integers"
        fits = dtype.kind in "iu" and (len(shape) == 2 or shape[2:] == (1,))
    if isinstance(feature, tfds.features.Image):
        fits = dtype.kind == "u"  # Pixels stored as floats are not colours.
    elif not isinstance(feature, tfds.features.Tensor):
        fits = False
    if not fits:
        raise ValueError(
            f"{where} is {feature}, but the {role} must be an image of 8 or 16 bits or "
            f"a tensor {tensor}"
        )


def _records(builder: Any, name: str, split: str) -> Any:
    """Return the serialized examples of a split, with random access."""
    import tensorflow_datasets as tfds

    counts = {key: value.num_examples for key, value in builder.info.splits.items()}
    splits = ", ".join(f"{key} ({count})" for key, count in counts.items())
    try:
        part = builder.info.splits[split]
    except (KeyError, ValueError, AssertionError) as error:  # As for "train[:9]".
        raise ValueError(f"{name} has no split {split!r}: it has {splits}") from error
    if not part.num_examples:
        raise ValueError(f"{name}: split {split!r} is empty: it has {splits}")
    return builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )


def _name(values: dict) -> str:
    """Return the name of an example without an image suffix, "" if there is none."""
    name = next((values[key] for key in NAME_FEATURES if key in values), "")
    name = name.decode() if isinstance(name, bytes) else str(name)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in Image.registered_extensions() else name


def _read(values: dict, feature: str, read: Callable, where: str) -> np.ndarray:
    """Decode an image; return a tensor as it is."""
    value = values[feature]
    if isinstance(value, bytes):
        return read(io.BytesIO(value), name=f"{where}, {feature}", upright=False)
    return np.array(value)
