"""Labelled images in a folder.

A source is any object with ``__len__`` and ``__getitem__``. The latter takes an index
and returns an example: ``{"image": [H, W, 3] uint8 RGB, "label": [H, W] int32, "name":
str}``. A label is a class in [0, C) or `fcn_jax.data.labels.VOID` (255).
"""

import functools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.images import image_suffixes, read_image, read_label
from fcn_jax.data.labels import VOID, to_classes
from fcn_jax.data.shorten import shorten


class FolderSource:
    """Read images and masks from two folders, paired by file name stem.

    The stem is the file name without its suffix. Examples come in the order of the
    list file, or sorted by stem if there is no list file.

    Args:
        root: folder of the data set.
        images: folder of the images under ``root``, in any format that Pillow reads.
        labels: folder of the masks under ``root``: PNG, one class index per pixel.
        split: replaces "{split}" in ``images``, ``labels`` and ``list_file``.
        num_classes: C, see `fcn_jax.data.labels.to_classes`.
        ignore_label: the data set's value for void pixels, which become 255.
        label_map: (old, new) pairs that map the values of the masks first.
        list_file: text file under ``root`` with one stem per line. Without it, every
            file of the two folders is used, and each must have its counterpart.

    Raises:
        ValueError: if a folder or a file is missing, a folder or the list file is
            empty, or an image or a mask has no counterpart. Reading an example raises
            it for a file that cannot be read, an image and a mask of different sizes,
            and label values that are neither classes nor void.

    Example::

        FolderSource("camvid", images="{split}/images", labels="{split}/labels",
                     split="train", num_classes=11, ignore_label=11)
        FolderSource("VOCdevkit/VOC2012", images="JPEGImages",
                     labels="SegmentationClass", split="val", num_classes=21,
                     list_file="ImageSets/Segmentation/{split}.txt")
    """

    def __init__(
        self,
        root: str | Path,
        *,
        images: str,
        labels: str,
        split: str,
        num_classes: int,
        ignore_label: int = VOID,
        label_map: Sequence[tuple[int, int]] = (),
        list_file: str = "",
    ):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"root: {root} is not a folder")
        image_folder, label_folder, list_path = (
            root / part.replace("{split}", split)
            for part in (images, labels, list_file)
        )
        image_paths = _files_by_stem(image_folder, image_suffixes(), "images")
        label_paths = _files_by_stem(label_folder, {".png"}, "labels")
        if list_file:
            # Stems are looked up among the files found, never joined to a path: an
            # entry such as "../../x" cannot lead out of the two folders.
            stems = _read_stems(list_path)
            listed = f"images listed in {list_path}"
            _require(stems, image_paths, listed, image_folder)
        else:
            stems = sorted(image_paths)
            _require(label_paths, image_paths, "images", image_folder)
        _require(stems, label_paths, "label PNGs", label_folder)
        self.pairs = [(stem, image_paths[stem], label_paths[stem]) for stem in stems]
        self._to_classes = functools.partial(
            to_classes,
            num_classes=num_classes,
            ignore_label=ignore_label,
            label_map=label_map,
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict:
        name, image_path, label_path = self.pairs[i]
        image, label = read_image(image_path), read_label(label_path)
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{image_path} is {image.shape[0]}x{image.shape[1]} (height x width, "
                f"EXIF orientation applied), but its label {label_path} is "
                f"{label.shape[0]}x{label.shape[1]}"
            )
        label = self._to_classes(label, label_path)
        return {"image": image, "label": label, "name": name}


def _files_by_stem(
    folder: Path, suffixes: Collection[str], argument: str
) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(
            f"{argument}: {folder} is not a folder; name the folder of the {argument} "
            "under root"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(
                f"{folder} has both {files[path.stem].name} and {path.name}: images "
                "and labels are paired by stem, so keep one of them"
            )
        files[path.stem] = path
    if not files:
        kinds = "PNG files" if argument == "labels" else "images"
        raise ValueError(f"{argument}: {folder} holds no {kinds}")
    return files


def _read_stems(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"list_file: {path} is not a file; name a text file under root, or leave "
            "list_file empty to use all files"
        )
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    stems = [line.strip() for line in lines if line.strip()]
    if not stems:
        raise ValueError(f"list_file: {path} lists nothing: want one stem per line")
    return stems


def _require(
    stems: Iterable[str], found: Collection[str], what: str, folder: Path
) -> None:
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} {what} are missing in {folder}, with the stems (file "
            f"names without suffix): {', '.join(shorten(missing))}"
        )


# Types of numbers in an image of more than three channels.
_NUMBERS = ("uint8", "uint16", "float16", "float32", "float64")


class CheckedSource:
    """Check the examples of any source and give them one form.

    Args:
        source: anything with ``__len__`` and ``__getitem__(i)`` that gives (image,
            label), or a dict with "image", "label" and perhaps "name".
        num_classes: C.
        in_channels: N. An image of 3 channels is uint8 RGB. One of more is uint8, or
            uint16, float16, float32 or float64, which become float32.

    Raises:
        ValueError: if ``source`` is something else. Reading an example raises it,
            naming the example, unless the image is [H, W, N] of such numbers, all
            finite, and the label [H, W] integers in [0, C) or 255.
    """

    def __init__(self, source: Any, *, num_classes: int, in_channels: int = 3):
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise ValueError(
                f"the source is a {type(source).__name__} without __len__ and "
                "__getitem__: pass a list of (image, label), or an object with both"
            )
        self.source, self.num_classes = source, num_classes
        self.in_channels = in_channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        example = self.source[i]
        match example:
            case {"image": image, "label": label}:
                name = str(example.get("name", i))
            case (image, label):
                name = str(i)
            case _:
                raise ValueError(
                    f"example {i} is a {type(example).__name__}, want (image, label) "
                    'or a dict with "image" and "label"'
                )
        label = np.asarray(label)
        image = self._checked_image(np.asarray(image), label, name)
        if label.ndim != 2 or label.dtype.kind not in "iu":
            raise ValueError(
                f"example {name}: the label is {list(label.shape)} {label.dtype}, want "
                "[H, W] of integers"
            )
        label = label.astype(np.int32)
        label = to_classes(label, f"example {name}", num_classes=self.num_classes)
        return {"image": image, "label": label, "name": name}

    def _checked_image(
        self, image: np.ndarray, label: np.ndarray, name: str
    ) -> np.ndarray:
        """Return the image as uint8, or as float32 if it may have other numbers."""
        channels = self.in_channels
        numbers = ("uint8",) if channels == 3 else _NUMBERS
        if image.shape != (*label.shape, channels) or image.dtype.name not in numbers:
            raise ValueError(
                f"example {name}: the image is {list(image.shape)} {image.dtype}, its "
                f"label {list(label.shape)}: want [H, W, {channels}] "
                f"{' or '.join(numbers)} and [H, W]"
            )
        if image.dtype == np.uint8:
            return image
        with np.errstate(over="ignore"):
            image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise ValueError(
                f"example {name}: the image holds NaN, infinity or a number beyond "
                "float32; replace them by numbers"
            )
        return image
