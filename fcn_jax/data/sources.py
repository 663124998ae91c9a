"""Labelled images in a folder.

A source is any object with ``__len__`` and ``__getitem__``. The latter takes an index
and returns an example: ``{"image": [H, W, 3] uint8 RGB, "label": [H, W] int32, "name":
str}``. A label is a class in [0, C) or `fcn_jax.data.labels.VOID` (255).
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.data.channels import read_oriented_channels
from fcn_jax.data.colors import ClassColors, Color
from fcn_jax.data.images import (
    image_suffixes,
    read_image,
    read_oriented_label,
    tells_turn,
    turn,
)
from fcn_jax.data.labels import VOID, LabelValueError, check_classes, to_classes
from fcn_jax.data.pairs import describe_pairs, find_pairs
from fcn_jax.data.shorten import shorten
from fcn_jax.data.transforms import resize_label


class ExampleError(ValueError):
    """Refuse an example, with all that is wrong with it.

    Attributes:
        problems: one line for each fault; the message has them all.
        label_values: the values of the mask that are neither classes nor void, sorted.
    """

    def __init__(self, problems: Sequence[str], label_values: Sequence[int] = ()):
        super().__init__(problems, label_values)  # All arguments, for pickle.
        self.problems, self.label_values = list(problems), tuple(label_values)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class FolderSource:
    """Read images and masks from two folders, paired by name or by a list.

    A file pairs with the file of the same path below the other folder, without its
    suffix: "images/city/a.jpg" with "labels/city/a.png". Examples come in the order of
    the list file, or sorted by name if there is no list file. One line of the log says
    what was paired.

    Args:
        root: folder of the data set.
        images: folder of the images under ``root``, in any format that Pillow reads.
        labels: folder of the masks under ``root``, as `fcn_jax.data.images.read_label`
            takes them. It may be that of the images if the suffixes differ.
        split: replaces "{split}" in all names of folders and in ``list_file``.
        num_classes: C, see `fcn_jax.data.labels.to_classes`.
        ignore_label: the data set's value for void pixels, which become 255.
        label_map: (old, new) pairs that map the values of the masks first.
        list_file: text file under ``root`` with one name per line, or with the paths of
            an image and of its mask; see `fcn_jax.data.pairs.find_pairs`. Without it,
            every file of the folders is used, and each must have its counterpart.
        image_suffix: the end of the names of images, such as "_leftImg8bit.png"; other
            files are left out. "" takes all images.
        label_suffix: likewise for masks.
        extra_images: folders of further channels, or "folder/*suffix".
        in_channels: number of channels, which `fcn_jax.data.channels.read_channels`
            reads. Unless it is 3 and there are no ``extra_images``, ``.npy`` files
            count as images too.
        palette: the RGB colour of each class, for masks of colours. Masks of indices
            count by index and need none.
        void_colors: RGB colours of void pixels in masks of colours.
        nearest_color: whether another colour counts as the nearest of these.
        resize_labels: whether a mask of another size is resized to its image.
        strict: whether an incomplete pair is an error. If not, it is left out, and
            ``problems`` has one line for each missing or superfluous file.

    Raises:
        ValueError: if a folder or a file is missing, a folder or the list file is
            empty, or an image or a mask has no counterpart.
        ExampleError: when reading an example, for a file that cannot be read, an image
            and a mask of different sizes, and values or colours that are neither
            classes nor void.

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
        image_suffix: str = "",
        label_suffix: str = "",
        extra_images: Sequence[str] = (),
        in_channels: int = 3,
        palette: Sequence[Color] = (),
        void_colors: Sequence[Color] = (),
        nearest_color: bool = False,
        resize_labels: bool = False,
        strict: bool = True,
    ):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"root: {root} is not a folder")
        self._in_channels = in_channels
        is_rgb = in_channels == 3 and not extra_images
        self._resize_labels = resize_labels
        self._to_classes = functools.partial(
            to_classes,
            num_classes=num_classes,
            ignore_label=ignore_label,
            label_map=label_map,
        )
        self._make_colors = functools.partial(
            ClassColors, palette, void_colors, nearest_color=nearest_color
        )
        self._has_palette = bool(len(palette))
        # A palette for pictures alone may have a colour twice, as that of ADE20K has.
        self._is_distinct = len(set(map(tuple, palette))) == len(palette)
        if len(palette) not in (0, num_classes):
            raise ValueError(
                f"palette has {len(palette)} colours for {num_classes} classes; give "
                "one for each class, or ()"
            )
        if void_colors or nearest_color:  # Without them, palette may be for pictures.
            self._make_colors()
        list_file = list_file.replace("{split}", split)
        suffixes = {"image_suffix": image_suffix, "label_suffix": label_suffix}
        self.pairs, self.problems = find_pairs(
            root,
            images=images.replace("{split}", split),
            labels=labels.replace("{split}", split),
            image_kinds=image_suffixes(arrays=not is_rgb),
            list_file=list_file,
            **suffixes,
            extra_images=[extra.replace("{split}", split) for extra in extra_images],
        )
        if strict and self.problems:
            _refuse_pairs(self.problems, root)
        if self.pairs:
            how = list_file or "name"
            found = describe_pairs(self.pairs, root, how, **suffixes)
            logging.getLogger("fcn_jax").info("%s: %s", split, found)

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        """Return a digest that changes with the files and the options.

        Of each file the name, the size and the time of its last change count.
        """
        files = []
        for name, images, label in self.pairs:
            for file in (*images, label):
                found = file.stat()
                files.append((name, file.name, found.st_size, found.st_mtime_ns))
        colors, classes = self._make_colors, self._to_classes
        options = [colors.args, colors.keywords, classes.keywords]
        options += [self._in_channels, self._resize_labels]
        text = json.dumps([options, files], default=int)
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, i: int) -> dict:
        name, image_files, label_file = self.pairs[i]
        faults: list[ValueError] = []
        channels, colors = self._in_channels, self._has_palette
        read = _attempt(faults, read_oriented_channels, image_files, channels=channels)
        image, turned = read or (None, 1)
        read = _attempt(faults, read_oriented_label, label_file, colors=colors)
        mask, mask_turned = read or (None, 1)
        files = image_files[0], label_file
        if image is not None and mask is not None and turned != 1 and mask_turned == 1:
            mask = _attempt(faults, self._turn, mask, image, turned, *files)
        if mask is not None:
            label = _attempt(faults, self._classes, mask, label_file)
        if image is not None and mask is not None and not self._resize_labels:
            _attempt(faults, _check_sizes, image, mask, *files)
        if faults:
            values = [f.values for f in faults if isinstance(f, LabelValueError)]
            raise ExampleError(list(map(str, faults)), *values)
        if label.shape != image.shape[:2]:
            label = resize_label(label, image.shape[:2])
        return {"image": image, "label": label, "name": name}

    def _turn(
        self,
        mask: np.ndarray,
        image: np.ndarray,
        orientation: int,
        image_file: Path,
        label_file: Path,
    ) -> np.ndarray:
        """Return the upright mask of an upright image that is stored turned.

        The mask's file has no orientation, so it may be upright or as the image is
        stored. The sizes tell which if they are those of the image.
        """
        size, own = image.shape[:2], mask.shape[:2]
        if not self._resize_labels and own not in (size, size[::-1]):
            return mask  # Its size is wrong in any case.
        if tells_turn(orientation, size) and own in (size, size[::-1]):
            return mask if own == size else turn(mask, orientation)
        raise ValueError(
            f"{image_file} is stored turned (EXIF orientation {orientation}), but its "
            f"label {label_file} has no orientation, and the sizes do not tell whether "
            "the label is upright: save the image upright, or remove its orientation "
            "if the label fits the stored pixels"
        )

    def _classes(self, mask: np.ndarray, file: Path) -> np.ndarray:
        """Return the label [H, W] of a mask of values or colours."""
        if mask.ndim == 3:
            return self._make_colors()(mask, file)
        try:
            return self._to_classes(mask, file)
        except LabelValueError as error:
            if self._has_palette and self._knows_colors(file):
                raise LabelValueError(
                    f"{error}. The mask counts by index, but its colours are those of "
                    "palette: to count by colour, save it as RGB",
                    error.values,
                ) from error
            raise

    def _knows_colors(self, file: Path) -> bool:
        """Return whether the colours of an indexed mask are those of the palette."""
        if not self._is_distinct or file.suffix.lower() == ".npy":
            return False
        with Image.open(file) as image:
            is_byte = image.mode in ("P", "L")
        return is_byte and self._make_colors().know(read_image(file))


def _attempt(
    faults: list[ValueError],
    read: Callable,
    *arguments: Any,
    **options,
) -> Any:
    """Return what a function returns, or None and note its error."""
    try:
        return read(*arguments, **options)
    except ValueError as error:
        faults.append(error)
        return None


def _check_sizes(
    image: np.ndarray, mask: np.ndarray, image_file: Path, label_file: Path
) -> None:
    (height, width), (rows, columns) = image.shape[:2], mask.shape[:2]
    if (height, width) != (rows, columns):
        raise ValueError(
            f"{image_file} is {height}x{width} (height x width, EXIF orientation "
            f"applied), but its label {label_file} is {rows}x{columns}; set "
            "resize_labels=True to resize labels to their images"
        )


def _refuse_pairs(problems: Sequence[str], root: Path) -> None:
    count = f"{len(problems)} file{'s' * (len(problems) > 1)}"
    head = (
        f"{count} in {root} cannot be paired. Files pair by their path below the two "
        "folders without suffix; image_suffix and label_suffix say what the suffix is:"
    )
    raise ValueError("\n".join([head, *shorten(problems)]))


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
        check_classes(label, f"example {name}", num_classes=self.num_classes)
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
