"""Prepare PASCAL VOC 2012 segmentation, alone or with SBD, as a TFDS data set.

Importing this module registers "voc_segmentation". Preparing it needs no TensorFlow:
tarfile unpacks the archives, images are passed on encoded, and nothing is shuffled.
"""

import functools
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import loadmat
from tensorflow_datasets.core.utils.tqdm_utils import tqdm

from fcn_jax.data.images import read_image, read_label
from fcn_jax.data.labels import VOID, to_classes
from fcn_jax.data.shorten import shorten
from fcn_jax.data.voc_classes import CLASS_NAMES

Pair = tuple[Path, Path]  # An image and its mask.
Splits = dict[str, list[str]]  # The file names less suffix (stems) of each split.

LISTS = "ImageSets/Segmentation"
SHARD_EXAMPLES = 1000  # TFDS holds a shard in memory: some 100 MB.
MAX_BYTES = 16 << 20  # Per file; the largest are images below 1 MB.
MAX_MAT_BYTES = 1 << 20  # Compressed; deflate expands by up to 1,000 times.
MAX_UNPACKED_BYTES = 4 << 30  # Per archive; VOC 2012 needs 2 GB.


class Archive(NamedTuple):
    """An archive as published, and the part of it that is wanted."""

    url: str
    sha256: str
    folder: str  # The folder of the archive that holds the data.
    parts: tuple[str, ...]  # Sub-folders of ``folder`` to unpack; "" is itself.


# torchvision's prototype data sets publish these checksums.
VOC2012 = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "VOCdevkit/VOC2012",
    (LISTS, "JPEGImages", "SegmentationClass"),
)
VOC2011 = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
    "0a7f5f5d154f7290ec65ec3f78b72ef72c6d93ff6d79acd40dc222a9ee5248ba",
    "VOCdevkit/VOC2011",  # The archive has it below a folder TrainVal.
    (LISTS,),
)
SBD = Archive(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    "benchmark_RELEASE/dataset",
    ("", "cls"),
)


class VocSegmentation(tfds.core.ShardBasedBuilder):
    """PASCAL VOC 2012 segmentation: 20 classes, background 0, void 255.

    Config "voc2012" has the splits train (1,464 images), val (1,449) and trainval.
    Config "voc2012_sbd" adds those of the Semantic Boundaries Dataset (SBD):

    * sbd_train (8,498) and sbd_val (2,857), with SBD's masks. The authors of FCN train
      on sbd_train, which shares images with val.
    * seg11valid (736), on which the authors of FCN validate: the validation images of
      VOC 2011 that sbd_train lacks, with VOC 2012's masks.
    * trainaug (10,582), a common training split: train, sbd_train and sbd_val without
      the images of val. The mask is VOC 2012's where there is one, else SBD's.

    An example has "image", the JPEG of VOC 2012 as published; "label", a PNG whose grey
    values are the class indices; and "file_name". Splits keep the order of their lists.

    The manual directory may hold the archives, what they unpack to, or a subset of it.
    What it lacks is downloaded. Archives are unpacked into a temporary folder in
    ``data_dir``, which takes 2 GB.

    Preparing raises a ValueError if an archive is broken, a listed image or mask is
    missing, unreadable or of another size than its counterpart, a mask holds values
    that are no class, or training and validation share images.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="voc2012", description="PASCAL VOC 2012 alone."),
        tfds.core.BuilderConfig(name="voc2012_sbd", description="VOC 2012 and SBD."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "\n".join(
        f"{archive.url} or its folder {archive.folder}; downloaded if it is missing"
        for archive in (VOC2012, VOC2011, SBD)
    )

    def __init__(self, *, file_format: str | None = None, **kwargs: Any):
        """Create a builder that writes ArrayRecord files unless told otherwise."""
        super().__init__(file_format=file_format, **kwargs)
        if file_format is None and not self.info.initialized:
            self.info.set_file_format("array_record", override=True)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of the PASCAL VOC challenge, the class of each pixel. "
            f"Classes in order: {', '.join(CLASS_NAMES)}; void is {VOID}.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/",
            citation="Everingham et al.: The PASCAL Visual Object Classes (VOC) "
            "Challenge. IJCV 88(2), 2010. Hariharan et al.: Semantic Contours from "
            "Inverse Detectors. ICCV 2011.",
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        with tempfile.TemporaryDirectory("", "unpacked_", self.data_dir_root) as folder:
            self._unpacked = Path(folder)
            try:
                super()._download_and_prepare(dl_manager, download_config)
            except ValueError as error:  # Name the archive: its folder is removed.
                raise ValueError(str(error).replace(f"{folder}{os.sep}", "")) from error

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
        find = functools.partial(_find_folder, dl_manager, self._unpacked)
        voc, sbd, voc2011 = find(VOC2012), None, None
        if self.builder_config.name == "voc2012_sbd":
            sbd, voc2011 = find(SBD), find(VOC2011)
        splits = _read_splits(voc, sbd, voc2011)
        check_splits(splits)
        pairs = {
            split: [_find_pair(stem, split, voc, sbd) for stem in stems]
            for split, stems in splits.items()
        }
        _check_files(path for split in pairs for pair in pairs[split] for path in pair)
        return {split: [*_make_shards(split, pairs[split])] for split in splits}


def _find_folder(dl_manager: Any, unpacked: Path, archive: Archive) -> Path:
    names = archive.folder, f"TrainVal/{archive.folder}", Path(archive.url).name
    try:
        paths = [Path(dl_manager.manual_dir) / name for name in names]
    except AssertionError:  # The directory does not exist or is empty.
        paths = []
    path = next(filter(Path.exists, paths), None) or _download(dl_manager, archive)
    if path.is_dir():
        return path
    unpack(path, archive, unpacked / path.name)
    return unpacked / path.name


def _download(dl_manager: Any, archive: Archive) -> Path:
    try:
        path = Path(dl_manager.download(archive.url))
    except Exception as error:  # TFDS, requests and promise have their own errors.
        raise ValueError(
            f"{archive.url} cannot be downloaded: {error}. Put it, or its folder "
            f"{archive.folder}, into a directory and pass that as manual_dir"
        ) from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise ValueError(
            f"{path}: the SHA-256 of the download is {found}, but that of "
            f"{archive.url} should be {archive.sha256}; delete the file and try again"
        )
    return path


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack the regular files that lie directly in the wanted parts of an archive.

    Args:
        path: tar file, compressed or not.
        archive: which of its folders and parts are wanted.
        folder: where ``archive.folder`` is unpacked to.

    Raises:
        ValueError: if the archive is broken, or unpacks to more than expected.
    """
    total = 0
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tqdm(tar, desc=f"Unpacking {path.name}", leave=False):
                name = f"/{member.name}".partition(f"/{archive.folder}/")[2]
                wanted = name and name.rpartition("/")[0] in archive.parts
                if not wanted or not member.isreg() or member.issparse():
                    continue
                _check_size(f"{path}: {name}", member.size)
                total += member.size + 4096  # An empty file takes space, too.
                if total > MAX_UNPACKED_BYTES:
                    raise ValueError(
                        f"{path} unpacks to over {MAX_UNPACKED_BYTES} bytes"
                    )
                file = member.replace(name=name, deep=False)
                tar.extract(file, folder, set_attrs=False, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error


def _check_size(path: str | Path, size: int) -> None:
    limit = MAX_MAT_BYTES if str(path).endswith(".mat") else MAX_BYTES
    if not 0 <= size <= limit:
        raise ValueError(f"{path} has {size} bytes, more than the {limit} expected")


def _check_files(paths: Iterable[Path]) -> None:
    paths = dict.fromkeys(paths)  # A set that keeps the order.
    # Path.is_file raises an error for a name that is too long.
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(
            f"{len(missing)} files are missing: {', '.join(shorten(missing))}"
        )
    for path in paths:
        _check_size(path, path.stat().st_size)


def _read_splits(voc: Path, sbd: Path | None, voc2011: Path | None) -> Splits:
    train, val = (_read_stems(voc / LISTS / f"{name}.txt") for name in ("train", "val"))
    splits = {"train": train, "val": val, "trainval": sorted({*train, *val})}
    if sbd and voc2011:
        lists = sbd / "train.txt", sbd / "val.txt", voc2011 / LISTS / "val.txt"
        sbd_train, sbd_val, seg11 = map(_read_stems, lists)
        splits |= {
            "sbd_train": sbd_train,
            "sbd_val": sbd_val,
            "trainaug": sorted({*train, *sbd_train, *sbd_val} - {*val}),
            "seg11valid": sorted({*seg11} - {*sbd_train}, key=seg11.index),
        }
    return splits


def _read_stems(path: Path) -> list[str]:
    _check_files([path])
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    stems = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not stems:
        raise ValueError(f"{path} lists nothing: expected one name a line")
    paths = [stem for stem in stems if Path(stem).name != stem]
    if paths:  # They could lead out of the folder.
        found = ", ".join(shorten(paths))
        raise ValueError(f"{path} must list names, but lists paths: {found}")
    return stems


def check_splits(splits: Splits) -> None:
    """Check that no split is empty and that no image is trained and validated on.

    Args:
        splits: stems of the images of each split, by its name.

    Raises:
        ValueError: if a split is empty, or training and validation share images.
    """
    for split, stems in splits.items():
        if not stems:
            raise ValueError(f"split {split} is empty: the lists leave it no image")
    disjoint = "train val", "trainaug val", "sbd_train sbd_val", "sbd_train seg11valid"
    for train, val in map(str.split, disjoint):
        both = sorted({*splits.get(train, ())} & {*splits.get(val, ())})
        if both:
            raise ValueError(
                f"{len(both)} images are in both {train} and {val}, so that validation "
                f"would see what training has seen: {', '.join(shorten(both))}"
            )


def _find_pair(stem: str, split: str, voc: Path, sbd: Path | None) -> Pair:
    mask = voc / "SegmentationClass" / f"{stem}.png"
    if sbd and (split.startswith("sbd_") or not os.path.isfile(mask)):
        mask = sbd / "cls" / f"{stem}.mat"
    return voc / "JPEGImages" / f"{stem}.jpg", mask


def _make_shards(split: str, pairs: list[Pair]) -> Iterator[Callable]:
    for start in range(0, len(pairs), SHARD_EXAMPLES):
        shard = pairs[start : start + SHARD_EXAMPLES]
        yield functools.partial(_make_examples, shard, f"Writing {split} from {start}")


def _make_examples(pairs: list[Pair], title: str) -> Iterator[tuple[str, dict]]:
    for image, mask in tqdm(pairs, desc=title, leave=False):
        size, label = read_image(image, upright=False).shape[:2], _read_mask(mask)
        if size != label.shape:
            raise ValueError(
                f"{image} is {size[0]}x{size[1]} (height x width), but its mask {mask} "
                f"is {label.shape[0]}x{label.shape[1]}"
            )
        png = io.BytesIO()
        Image.fromarray(label).save(png, "png")
        example = {"image": image, "label": png.getvalue(), "file_name": image.name}
        yield image.stem, example


def _read_mask(path: Path) -> np.ndarray:
    is_mat = path.suffix == ".mat"
    label = _read_mat(path) if is_mat else read_label(path, upright=False)
    return to_classes(label, path, num_classes=len(CLASS_NAMES)).astype(np.uint8)


def _read_mat(path: Path) -> np.ndarray:
    try:
        label = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"].item()
        if label.ndim != 2 or label.dtype.kind not in "iu":
            raise ValueError(f"it is {label.ndim}-D, of type {label.dtype}")
    except Exception as error:  # scipy raises nearly anything on a broken file.
        raise ValueError(
            f"{path}: no mask in the field Segmentation of the struct GTcls: {error}"
        ) from error
    return label
