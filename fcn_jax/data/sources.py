"""Labelled images in a folder, and the readers of one image and one label.

A source is anything with ``__len__`` and ``__getitem__(i)``, the latter giving an
example: ``{"image": [H, W, 3] uint8 RGB, "label": [H, W] int32, "name": str}``.
"""

import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class FolderSource:
    """Images and index masks in two folders, paired by stem (name less suffix).

    Examples come in the order of the list file, or sorted by stem where there is
    none. Labels keep the data set's own void value.

    Args:
        root: folder of the data set.
        images: sub-folder of the images, of any format that Pillow reads.
        labels: sub-folder of the masks, PNG with one class index per pixel.
        split: replaces "{split}" in ``images``, ``labels`` and ``list_file``.
        num_classes: label values are in [0, num_classes) or ``ignore_label``.
        ignore_label: label value of void pixels.
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
            image_folder, _image_suffixes(), "images (data.images)"
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
        self.num_classes = num_classes
        self.ignore_label = ignore_label

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
        self._check_values(label, label_path)
        return {"image": image, "label": label, "name": name}

    def _check_values(self, label: np.ndarray, path: Path) -> None:
        bad = ((label < 0) | (label >= self.num_classes)) & (label != self.ignore_label)
        if not bad.any():
            return
        if np.isin(label, (0, 255)).all():
            hint = "a mask of 0 and 255 is black and white: save its class as 1"
        else:
            hint = "set data.ignore_label to the one that marks void pixels, if any"
        raise ValueError(
            f"{path}: label values {_some(np.unique(label[bad]).tolist())} are neither "
            f"in [0, {self.num_classes}) (data.num_classes = {self.num_classes}) nor "
            f"the void value (data.ignore_label = {self.ignore_label}); {hint}"
        )


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image as RGB, upright.

    EXIF orientation is applied. An alpha channel is dropped, as TensorFlow, OpenCV
    and ``Image.convert("RGB")`` do, so transparent pixels show the colour stored
    under them. 16-bit grey keeps its high byte, as Pillow does with 16-bit RGB.

    Args:
        path: image file of any format that Pillow reads.
    Returns:
        [H, W, 3] uint8, RGB in [0, 255].
    Raises:
        ValueError: if the file cannot be read, or its pixels are floating point or
            wider than 16 bits, which have no agreed range.
    """
    image = _decode(path)
    if image.mode == "F" or image.mode == "I" and (np.asarray(image) >> 16).any():
        raise ValueError(
            f"{path}: pixels of mode {image.mode} (32-bit) have no agreed range; "
            "save the image with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Straight to RGB, Pillow warns of transparent entries.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_label(path: str | Path) -> np.ndarray:
    """Reads a mask of class indices.

    Args:
        path: palette image (its indices are returned, not its colours), grey image
            of 8 or 16 bits, or 1-bit image (0 and 1).
    Returns:
        [H, W] int32.
    Raises:
        ValueError: if the file cannot be read or holds colours.
    """
    label = _decode(path)
    if label.mode not in ("1", "L", "P") and not label.mode.startswith("I"):
        raise ValueError(
            f"{path}: a mask must hold class indices (a palette PNG, or grey of 8 or "
            f"16 bits), but this is an image of mode {label.mode}; map each of its "
            "colours to the index of its class and save that"
        )
    return np.array(label, np.int32)


def _decode(path: str | Path) -> Image.Image:
    try:
        with _open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # Loads the pixels, too.
            return image
    # Pillow's decoders raise nearly anything on a broken file.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _open(path: str | Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombWarning:
        # Only where warnings are errors. Pillow warns from 89 million pixels, which
        # a large photo has, and refuses twice that: the refusal is limit enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)


def _image_suffixes() -> set[str]:
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
