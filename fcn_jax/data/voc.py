"""PASCAL VOC 2012 segmentation, alone or with SBD's masks, as a TFDS data set.

Importing this module registers "voc_segmentation". TFDS needs TensorFlow to extract an
archive, to encode an image and to shuffle more than 1 GB. So the archives are read
with tarfile, images are handed over encoded, and the order is that of the lists.
"""

import functools
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from fcn_jax.data.sources import read_label
from fcn_jax.data.voc_classes import CLASS_NAMES

Contents = dict[str, Callable[[], bytes]]  # What reads each file, by its name.
Shard = Callable[[], Iterator[tuple[str, dict]]]

VOID = 255
SHARD_EXAMPLES = 1000  # TFDS holds a shard in memory: some 100 MB.
MAX_BYTES = 16 << 20  # Of one file; the largest are images below 1 MB.
MAX_MAT_BYTES = 1 << 20  # Compressed, and deflate gives up to 1,000 times as much.
MAX_TGZ_BYTES = 1 << 30  # Of all files kept from a tgz.


@dataclass(frozen=True)
class Archive:
    """An archive as published.

    Args:
        url: where it is published.
        sha256: of the archive, in hexadecimal.
        folder: its folder of interest; names of files are relative to it.
        parts: sub-folders that are read, "" for the folder itself.
    """

    url: str
    sha256: str
    folder: str
    parts: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


# The sums are those that torchvision's prototype data sets publish; that of VOC2012 is
# in TFDS's own "voc", too.
VOC2012 = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "VOCdevkit/VOC2012",
    ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"),
)
VOC2011 = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
    "0a7f5f5d154f7290ec65ec3f78b72ef72c6d93ff6d79acd40dc222a9ee5248ba",
    "VOCdevkit/VOC2011",  # In the archive, below a folder TrainVal.
    ("ImageSets/Segmentation",),
)
SBD = Archive(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    "benchmark_RELEASE/dataset",
    ("", "cls"),
)


@dataclass(frozen=True)
class Files:
    """The files of an archive, or of the folder that it unpacks to.

    Args:
        path: the archive or the folder.
        contents: of the files, by their names below `Archive.folder`. Names are
            looked up here and never joined to a path, so that neither a list nor an
            archive can lead out of the folder.
    """

    path: Path
    contents: Contents

    def __contains__(self, name: str) -> bool:
        return name in self.contents

    def where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def read(self, name: str) -> bytes:
        if name not in self:
            raise ValueError(f"{self.where(name)} is missing")
        return self.contents[name]()


@dataclass(frozen=True)
class Pair:
    """An image and its mask: where each lies, and its name there."""

    stem: str
    images: Files
    masks: Files
    mask: str

    @property
    def image(self) -> str:
        return f"JPEGImages/{self.stem}.jpg"


CITATION = """
@article{everingham2010pascal,
  title={The PASCAL Visual Object Classes (VOC) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and
          Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  volume={88}, number={2}, pages={303--338}, year={2010}
}
@inproceedings{hariharan2011semantic,
  title={Semantic Contours from Inverse Detectors},
  author={Hariharan, Bharath and Arbelaez, Pablo and Bourdev, Lubomir and
          Maji, Subhransu and Malik, Jitendra},
  booktitle={International Conference on Computer Vision}, year={2011}
}
"""

# Pairs of which one may be trained on and the other validated on.
DISJOINT = (
    ("train", "val"),
    ("trainaug", "val"),
    ("sbd_train", "sbd_val"),
    ("sbd_train", "seg11valid"),
)


class VocSegmentation(tfds.core.ShardBasedBuilder):
    """PASCAL VOC 2012 segmentation: 20 classes, background 0, void 255.

    Config "voc2012" has the splits train (1,464 images), val (1,449) and trainval.
    Config "voc2012_sbd" has these and, with the Semantic Boundaries Dataset:

    * sbd_train (8,498) and sbd_val (2,857), with SBD's own masks. The authors of FCN
      train on sbd_train. It has images of val in it, none of seg11valid;
    * seg11valid (736), on which they validate: the validation images of VOC 2011 less
      those of sbd_train, with VOC 2012's masks;
    * trainaug (10,582), on which others train: train, sbd_train and sbd_val less the
      images of val. The mask is VOC 2012's where it has one, else SBD's.

    All images are VOC 2012's. An example has "image", the JPEG as published; "label", a
    PNG whose grey values are the class indices; and "file_name". Splits keep the order
    of their lists.

    The manual directory may hold the archives, or what they unpack to, or subsets of
    that: "VOCdevkit/VOC2012", "VOCdevkit/VOC2011" and "benchmark_RELEASE". It is taken
    as it is. What is not there is downloaded, and its SHA-256 compared.

    Preparing raises a ValueError where a listed image or mask is missing, cannot be
    read, differs in size from the other or holds no classes of VOC, and where training
    and validation overlap.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="voc2012", description="PASCAL VOC 2012 alone."),
        tfds.core.BuilderConfig(
            name="voc2012_sbd", description="PASCAL VOC 2012 and SBD's masks."
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Nothing need be there. Whichever of these is there is not downloaded:\n"
        + "\n".join(
            f"{archive.file_name} (from {archive.url}) or {archive.folder}"
            for archive in (VOC2012, VOC2011, SBD)
        )
    )

    def __init__(self, *, file_format: str | None = None, **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)
        if file_format is None and not self.info.initialized:
            self.info.set_file_format("array_record", override=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Images of the PASCAL VOC challenge with the class of each pixel. "
                f"Classes in order: {', '.join(CLASS_NAMES)}; void is {VOID}."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png"
                    ),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/",
            citation=CITATION,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        voc, sbd = _find(dl_manager, VOC2012), None
        splits = _voc_splits(voc)
        if self.builder_config.name == "voc2012_sbd":
            sbd, voc2011 = _find(dl_manager, SBD), _find(dl_manager, VOC2011)
            splits |= _sbd_splits(splits, sbd, voc2011)
        _require_sound(splits)
        pairs = {split: _pairs(split, splits[split], voc, sbd) for split in splits}
        _require_found(pair for split in pairs.values() for pair in split)
        return {split: _shards(split, pairs[split]) for split in splits}


def _find(dl_manager: tfds.download.DownloadManager, archive: Archive) -> Files:
    path = _manual_path(dl_manager, archive) or _download(dl_manager, archive)
    try:
        if path.is_dir():
            contents = _in_folder(path, archive)
        elif archive.url.endswith(".tgz"):
            contents = _in_tgz(path, archive)
        else:
            contents = _in_tar(path, archive)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return Files(path, contents)


def _manual_path(
    dl_manager: tfds.download.DownloadManager, archive: Archive
) -> Path | None:
    try:
        root = Path(dl_manager.manual_dir)
    except AssertionError:  # It is not there or is empty.
        return None
    names = archive.folder, f"TrainVal/{archive.folder}", archive.file_name
    return next((root / name for name in names if (root / name).exists()), None)


def _download(dl_manager: tfds.download.DownloadManager, archive: Archive) -> Path:
    try:
        path = Path(dl_manager.download(archive.url))
    # TFDS, requests and promise each have errors of their own.
    except Exception as error:
        raise ValueError(
            f"{archive.url} cannot be downloaded: {error}. Put {archive.file_name}, or "
            f"the folder {archive.folder} of it, into a manual directory and name that"
        ) from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise ValueError(
            f"{path}: the SHA-256 of the download is {found}, but that of "
            f"{archive.url} should be {archive.sha256}; delete the file and try again"
        )
    return path


def _in_folder(root: Path, archive: Archive) -> Contents:
    return {
        (PurePosixPath(part) / path.name).as_posix(): functools.partial(
            _read, path, 0, path.stat().st_size, path
        )
        for part in archive.parts
        if (root / part).is_dir()
        for path in (root / part).iterdir()
        if path.is_file()
    }


def _in_tar(path: Path, archive: Archive) -> Contents:
    with tarfile.open(path, "r:") as tar:
        return {
            name: functools.partial(
                _read, path, member.offset_data, member.size, f"{path}: {name}"
            )
            for name, member in _members(tar, archive)
        }


def _in_tgz(path: Path, archive: Archive) -> Contents:
    """Reads all in one pass and keeps it: a tgz has no random access."""
    contents, total = {}, 0
    with tarfile.open(path, "r|gz") as tar:
        for name, member in _members(tar, archive):
            _require_size(member.size, f"{path}: {name}")
            total += member.size
            if total > MAX_TGZ_BYTES:
                raise ValueError(f"{path}: its masks exceed {MAX_TGZ_BYTES} bytes")
            contents[name] = functools.partial(bytes, tar.extractfile(member).read())
    return contents


def _members(
    tar: tarfile.TarFile, archive: Archive
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    bar = tqdm_utils.tqdm(tar, desc=f"Reading {archive.file_name}", leave=False)
    for member in bar:
        _, _, name = f"/{member.name}".partition(f"/{archive.folder}/")
        part = name.rpartition("/")[0]
        if name and part in archive.parts and member.isreg() and not member.issparse():
            yield name, member


def _read(path: Path, offset: int, size: int, where: str | Path) -> bytes:
    _require_size(size, where)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _require_size(size: int, where: str | Path) -> None:
    limit = MAX_MAT_BYTES if str(where).endswith(".mat") else MAX_BYTES
    if not 0 <= size <= limit:
        raise ValueError(f"{where} has {size} bytes, more than the {limit} expected")


def _voc_splits(voc: Files) -> dict[str, list[str]]:
    train, val = (_stems(voc, _list_name(split)) for split in ("train", "val"))
    return {"train": train, "val": val, "trainval": sorted({*train, *val})}


def _sbd_splits(
    splits: dict[str, list[str]], sbd: Files, voc2011: Files
) -> dict[str, list[str]]:
    train, val = _stems(sbd, "train.txt"), _stems(sbd, "val.txt")
    trained = set(train)
    seg11 = _stems(voc2011, _list_name("val"))
    return {
        "sbd_train": train,
        "sbd_val": val,
        "trainaug": sorted({*splits["train"], *train, *val} - {*splits["val"]}),
        "seg11valid": [stem for stem in seg11 if stem not in trained],
    }


def _list_name(split: str) -> str:
    return f"ImageSets/Segmentation/{split}.txt"


def _stems(files: Files, name: str) -> list[str]:
    lines = files.read(name).decode("utf-8-sig", errors="replace").splitlines()
    stems = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not stems:
        raise ValueError(f"{files.path}: {name} lists nothing")
    return stems


def _require_sound(splits: dict[str, list[str]]) -> None:
    for split, stems in splits.items():
        if not stems:
            raise ValueError(f"split {split} is empty: the lists leave it no image")
    for train, val in DISJOINT:
        both = set(splits.get(train, ())) & set(splits.get(val, ()))
        if both:
            raise ValueError(
                f"{len(both)} images are in both {train} and {val}, so that validation "
                f"would see what training has seen: {_some(sorted(both))}"
            )


def _pairs(split: str, stems: list[str], voc: Files, sbd: Files | None) -> list[Pair]:
    """Pairs an image with SBD's mask in SBD's splits and where VOC has none."""
    pairs = []
    for stem in stems:
        masks, mask = voc, f"SegmentationClass/{stem}.png"
        if sbd and (split.startswith("sbd_") or mask not in voc):
            masks, mask = sbd, f"cls/{stem}.mat"
        pairs.append(Pair(stem, voc, masks, mask))
    return pairs


def _require_found(pairs: Iterable[Pair]) -> None:
    missing = {
        files.where(name): None  # A set that keeps the order.
        for pair in pairs
        for files, name in ((pair.images, pair.image), (pair.masks, pair.mask))
        if name not in files
    }
    if missing:
        raise ValueError(
            f"{len(missing)} files of listed images are missing: {_some(list(missing))}"
        )


def _shards(split: str, pairs: list[Pair]) -> list[Shard]:
    count = -(-len(pairs) // SHARD_EXAMPLES)
    ends = [len(pairs) * i // count for i in range(count + 1)]
    return [
        functools.partial(
            _examples, pairs[ends[i] : ends[i + 1]], f"{split} {i + 1}/{count}"
        )
        for i in range(count)
    ]


def _examples(pairs: list[Pair], title: str) -> Iterator[tuple[str, dict]]:
    bar = tqdm_utils.tqdm(pairs, desc=f"Writing {title}", unit=" images", leave=False)
    for pair in bar:
        image, label = pair.images.read(pair.image), _read_mask(pair)
        _require_same_size(pair, image, label)
        yield (
            pair.stem,
            {
                "image": io.BytesIO(image),
                "label": io.BytesIO(_encode(label)),
                "file_name": f"{pair.stem}.jpg",
            },
        )


def _read_mask(pair: Pair) -> np.ndarray:
    """[H, W] uint8, class indices and VOID."""
    content, where = pair.masks.read(pair.mask), pair.masks.where(pair.mask)
    if pair.mask.endswith(".mat"):
        label = _segmentation(content, where)
    else:
        label = read_label(io.BytesIO(content), name=where, upright=False)
    bad = ((label < 0) | (label >= len(CLASS_NAMES))) & (label != VOID)
    if bad.any():
        raise ValueError(
            f"{where}: values {_some(np.unique(label[bad]).tolist())} are no class in "
            f"[0, {len(CLASS_NAMES)}) and not void ({VOID})"
        )
    return label.astype(np.uint8)


def _segmentation(content: bytes, where: str) -> np.ndarray:
    """[H, W] of an integer type: GTcls.Segmentation of a MATLAB file."""
    from scipy.io import loadmat

    try:
        mat = loadmat(io.BytesIO(content), variable_names=["GTcls"])
        label = mat["GTcls"]["Segmentation"].item()
        if label.ndim != 2 or label.dtype.kind not in "iu":
            raise ValueError(f"it is {label.ndim}-D, of type {label.dtype}")
    # scipy raises nearly anything on a broken file.
    except Exception as error:
        raise ValueError(
            f"{where}: no mask in the field Segmentation of the struct GTcls: {error}"
        ) from error
    return label


def _require_same_size(pair: Pair, image: bytes, label: np.ndarray) -> None:
    where = pair.images.where(pair.image)
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be read as an image: {error}") from error
    if (height, width) != label.shape:
        raise ValueError(
            f"{where} is {height}x{width} (height x width), but its mask "
            f"{pair.masks.where(pair.mask)} is {label.shape[0]}x{label.shape[1]}"
        )


def _encode(label: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(label).save(png, "png")
    return png.getvalue()


def _some(items: list) -> str:
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
