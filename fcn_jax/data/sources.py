"""Labelled images in a folder, and the readers of one image and one label.

A source is anything with ``__len__`` and ``__getitem__(i)``, the latter giving an
example: ``{"image": [H, W, 3] uint8 RGB, "label": [H, W] int32, "name": str}``.
"""

import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from fcn_jax.data.labels import to_classes


class FolderSource:
    """Images and index masks in two folders, paired by stem (name less suffix).

    Examples come in the order of the list file, or sorted by stem where there is
    none. Labels keep the data set's own void value.

    Args:
        root: folder of the data set.
        images: sub-folder of the images, of any format that Pillow reads.
        labels: sub-folder of the masks, PNG with one class index per pixel.
        split: replaces "{split}" in ``images``, ``labels`` and ``list_file``.
        num_classes, ignore_label, label_map: what the values of a mask mean, see
            `fcn_jax.data.labels.to_classes`.
        list_file: text file under ``root`` with one stem a line; without it, every
            file of the two folders is used and each must have its counterpart.
    Raises:
        ValueError: if a folder, a file, or one half of a pair is missing, or nothing
            is found. Reading an example raises it for an unreadable file, an image
            and a label of different sizes, and label values out of range.

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
        ignore_label: int = 255,
        label_map: Sequence[tuple[int, int]] = (),
        list_file: str = "",
    ):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"data.root: {root} is not a folder")
        image_folder, label_folder, list_path = (
            root / part.replace("{split}", split)
            for part in (images, labels, list_file)
        )
        image_paths = _files_by_stem(
            image_folder, image_suffixes(), "images (data.images)"
        )
        label_paths = _files_by_stem(label_folder, {".png"}, "label PNGs (data.labels)")
        if list_file:
            # Stems are looked up among the files found, never joined to a path: an
            # entry such as "../../x" cannot lead out of the two folders.
            stems = _read_stems(list_path)
            _require(stems, image_paths, f"images listed in {list_path}", image_folder)
        else:
            stems = sorted(image_paths)
            _require(label_paths, image_paths, "images", image_folder)
        _require(stems, label_paths, "label PNGs", label_folder)
        self.pairs = [(stem, image_paths[stem], label_paths[stem]) for stem in stems]
        self.classes = {
            "num_classes": num_classes,
            "ignore_label": ignore_label,
            "label_map": label_map,
        }

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
        label = to_classes(label, label_path, **self.classes)
        return {"image": image, "label": label, "name": name}


def read_image(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> np.ndarray:
    """Reads an image as RGB, upright.

    EXIF orientation is applied unless ``upright`` is False. An alpha channel is
    dropped, as TensorFlow, OpenCV and ``Image.convert("RGB")`` do, so transparent
    pixels show the colour stored under them. 16-bit grey keeps its high byte, as
    Pillow does with 16-bit RGB.

    Args:
        file: image of any format that Pillow reads: its path, or the file opened.
        name: what errors call it, by default ``file``.
        upright: False for the pixels as stored, whatever the camera's position.
    Returns:
        [H, W, 3] uint8, RGB in [0, 255].
    Raises:
        ValueError: if the file cannot be read, or its pixels are floating point or
            wider than 16 bits, which have no agreed range.
    """
    image = _decode(file, name, upright)
    if image.mode == "F" or image.mode == "I" and (np.asarray(image) >> 16).any():
        raise ValueError(
            f"{name or file}: pixels of mode {image.mode} (32-bit) have no agreed "
            "range; save the image with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Straight to RGB, Pillow warns of transparent entries.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_label(
    file: str | Path | BinaryIO, *, name: str = "", upright: bool = True
) -> np.ndarray:
    """Reads a mask of class indices.

    Args:
        file: palette image (its indices are returned, not its colours), grey image
            of 8 or 16 bits, or 1-bit image (0 and 1).
        name, upright: as in `read_image`.
    Returns:
        [H, W] int32.
    Raises:
        ValueError: if the file cannot be read or holds colours.
    """
    label = _decode(file, name, upright)
    if label.mode not in ("1", "L", "P") and not label.mode.startswith("I"):
        raise ValueError(
            f"{name or file}: a mask must hold class indices (a palette PNG, or grey "
            f"of 8 or 16 bits), but this is an image of mode {label.mode}; map each of "
            "its colours to the index of its class and save that"
        )
    return np.array(label, np.int32)


def _decode(file: str | Path | BinaryIO, name: str, upright: bool) -> Image.Image:
    try:
        with _open(file) as image:
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    # Pillow's decoders raise nearly anything on a broken file.
    except Exception as error:
        raise ValueError(
            f"{name or file}: cannot be read as an image: {error}"
        ) from error


def _open(file: str | Path | BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombWarning:
        # Only where warnings are errors. Pillow warns from 89 million pixels, which
        # a large photo has, and refuses twice that: the refusal is limit enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file)


def image_suffixes() -> set[str]:
    """The endings of files that Pillow reads, such as ".jpg"."""
    suffixes = Image.registered_extensions()
    return {suffix for suffix, kind in suffixes.items() if kind in Image.OPEN}


def _files_by_stem(
    folder: Path, suffixes: Collection[str], what: str
) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: the {what} should lie there")
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
        raise ValueError(f"{folder} holds no {what}")
    return files


def _read_stems(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: see data.list_file and data.split")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    stems = [line.strip() for line in lines if line.strip()]
    if not stems:
        raise ValueError(f"{path} lists nothing: expected one stem a line")
    return stems


def _require(
    stems: Iterable[str], found: Collection[str], what: str, folder: Path
) -> None:
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} {what} are missing in {folder}, with the stems "
            f"(names less suffix): {_some(missing)}"
        )


def _some(items: list) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
