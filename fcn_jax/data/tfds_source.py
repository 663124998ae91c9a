"""Labelled images from a data set of TFDS, without TensorFlow."""

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.data.labels import to_classes
from fcn_jax.data.sources import read_image, read_label

# Features that tell an example's name in one data set or another, the best first.
NAME_FEATURES = ("file_name", "image/filename", "id")


class TfdsSource:
    """A split of a data set prepared by TensorFlow Datasets (TFDS), read at random.

    A data set that is not prepared yet is prepared first, in the ArrayRecord format.
    That works without TensorFlow where the data set itself does, as "voc_segmentation"
    (fcn_jax.data.voc); others must be prepared where TensorFlow is installed.

    Images are decoded as stored, EXIF orientation aside, as TFDS decodes them: that is
    how they fit their masks.

    Args:
        name: the data set, as "voc_segmentation/voc2012_sbd" or "oxford_iiit_pet".
        split: one that it has, or an expression as "train[:90%]" or "train+val".
        data_dir: where TFDS keeps its data sets; "" for its default.
        manual_dir: folder of archives that were downloaded by hand; "" for TFDS's
            default, used only where the data set is not prepared yet.
        image: feature that holds the image.
        label: feature that holds the mask: an image of class indices, or integers.
        num_classes, ignore_label, label_map: what the values of a mask mean, see
            `fcn_jax.data.labels.to_classes`.
    Raises:
        ValueError: if there is no such data set, split or feature, the data set cannot
            be prepared, or is prepared in a format without random access. Reading an
            example raises it for an image or mask that cannot be decoded, for an image
            and a mask of different sizes, and for label values out of range.

    Example::

        TfdsSource("voc_segmentation", split="train", num_classes=21)
        TfdsSource("oxford_iiit_pet", split="test", label="segmentation_mask",
                   num_classes=3, label_map=((1, 0), (2, 1), (3, 2)))
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        data_dir: str = "",
        manual_dir: str = "",
        image: str = "image",
        label: str = "label",
        num_classes: int,
        ignore_label: int = 255,
        label_map: Sequence[tuple[int, int]] = (),
    ):
        self._classes = {
            "num_classes": num_classes,
            "ignore_label": ignore_label,
            "label_map": label_map,
        }
        # Pickled instead of the open files: a worker process opens its own.
        self._arguments = {
            "name": name,
            "split": split,
            "data_dir": data_dir,
            "manual_dir": manual_dir,
            "image": image,
            "label": label,
            **self._classes,
        }
        builder = _prepared_builder(name, data_dir, manual_dir)
        self._features, self._decoders = _features(builder, name, image, label)
        self._records = _records(builder, name, split)

    def __getstate__(self) -> dict:
        return self._arguments

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        values = self._features.deserialize_example_np(
            self._records[i], decoders=self._decoders
        )
        name = _name(values) or f"{self._arguments['split']}[{i}]"
        where = f"{self._arguments['name']}, example {i} ({name})"
        image = _read(values, self._arguments["image"], read_image, where)
        label = _read(values, self._arguments["label"], read_label, where)
        label = label.reshape(label.shape[:2])  # From [H, W, 1] where it is that.
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{where}: the image is {image.shape[0]}x{image.shape[1]} (height x "
                f"width), but its label is {label.shape[0]}x{label.shape[1]}"
            )
        label = to_classes(label.astype(np.int32), where, **self._classes)
        return {"image": image, "label": label, "name": name}


def _prepared_builder(name: str, data_dir: str, manual_dir: str) -> Any:
    """The tfds.core.DatasetBuilder of a data set that is ready to be read."""
    builder = _builder(name, data_dir)
    if not builder.info.initialized:
        _prepare(builder, name, manual_dir)
    formats = {format.value for format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"{name} is prepared in {builder.data_dir} as {', '.join(formats)}, which "
            "has no random access: where TensorFlow is installed, run `tfds "
            f"convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record`; or name another data_dir to prepare it in"
        )
    return builder


def _prepare(builder: Any, name: str, manual_dir: str) -> None:
    import tensorflow_datasets as tfds

    if manual_dir and not os.path.isdir(manual_dir):
        raise ValueError(f"manual_dir: {manual_dir} is not a folder")
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir or None, try_download_gcs=False
            ),
        )
    except ImportError as error:
        reason = str(error).rpartition("\n")[2]  # TFDS puts the example before it.
        raise ValueError(
            f"{name} cannot be prepared here: {reason}. Most data sets of TFDS need "
            "TensorFlow for that, though not for reading: where it is installed, run "
            f"`tfds build {name} --file_format=array_record --data_dir=DIR`, and name "
            "that DIR as data_dir"
        ) from error
    # Downloads, checksums and builders each fail in ways of their own.
    except Exception as error:
        raise ValueError(f"{name} cannot be prepared: {error}") from error


def _builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if name.partition("/")[0].partition(":")[0] == "voc_segmentation":
        import fcn_jax.data.voc  # noqa: F401  Registers it.
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"{name!r} is no data set of TFDS {tfds.__version__}, and none of that "
            f"name is prepared in {data_dir or 'the data_dir of TFDS'}"
        ) from error
    # TFDS asserts that it knows the version.
    except (ValueError, AssertionError) as error:
        raise ValueError(f"data set {name!r}: {error}") from error


def _features(builder: Any, name: str, image: str, label: str) -> tuple[Any, dict]:
    """The features that are read, and the decoders that leave images encoded."""
    import tensorflow_datasets as tfds

    present = builder.info.features
    for role, feature in (("image", image), ("label", label)):
        if feature not in present:
            raise ValueError(
                f"{name} has no feature {feature!r} to be the {role}: it has "
                f"{', '.join(present)}"
            )
        _require_pixels(present[feature], f"{name}: feature {feature!r}", role)
    names = [feature for feature in NAME_FEATURES if feature in present][:1]
    features = {key: present[key] for key in (image, label, *names)}
    # TFDS's own decoders would turn a palette into grey levels.
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return tfds.features.FeaturesDict(features), decoders


def _require_pixels(feature: Any, where: str, role: str) -> None:
    import tensorflow_datasets as tfds

    shape = tuple(feature.shape or ())
    dtype = np.dtype(getattr(feature, "np_dtype", object))
    if isinstance(feature, tfds.features.Image):
        fits = dtype.kind == "u"  # Stored as floats, its pixels are no colours.
    elif not isinstance(feature, tfds.features.Tensor):
        fits = False
    elif role == "image":
        fits = dtype == np.uint8 and len(shape) == 3 and shape[-1] == 3
    else:
        fits = dtype.kind in "iu" and (len(shape) == 2 or shape[2:] == (1,))
    if fits:
        return
    wanted = {
        "image": "an image of 8 or 16 bits, or a tensor [H, W, 3] of uint8",
        "label": "an image of 8 or 16 bits, or a tensor [H, W] or [H, W, 1] of "
        "integers",
    }
    raise ValueError(f"{where} is {feature}, but the {role} must be {wanted[role]}")


def _records(builder: Any, name: str, split: str) -> Any:
    """The serialized examples of a split: ``__len__`` and ``__getitem__``."""
    import tensorflow_datasets as tfds

    counts = {key: value.num_examples for key, value in builder.info.splits.items()}
    splits = ", ".join(f"{key} ({count})" for key, count in counts.items())
    try:
        part = builder.info.splits[split]
    # TFDS asserts, too, that an expression such as "train[:10%]" makes sense.
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} has no split {split!r}: it has {splits}") from error
    if not part.num_examples:
        raise ValueError(f"{name}: split {split!r} is empty: it has {splits}")
    return builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )


def _name(values: dict) -> str:
    """The name of an example less an image's suffix, as of FolderSource, or ""."""
    name = next((values[key] for key in NAME_FEATURES if key in values), "")
    name = name.decode() if isinstance(name, bytes) else str(name)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in Image.registered_extensions() else name


def _read(values: dict, feature: str, read: Callable, where: str) -> np.ndarray:
    """Decodes an encoded image; a tensor is an array already."""
    value = values[feature]
    if isinstance(value, bytes):
        return read(io.BytesIO(value), name=f"{where}, {feature}", upright=False)
    return np.array(value)
