"""Finding the images of a folder and their masks, and pairing them."""

import difflib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

LABEL_SUFFIXES = frozenset(
    (".png", ".tif", ".tiff", ".npy", ".bmp", ".gif", ".jpg", ".jpeg")
)
_MAX_HINTS = 20  # Missing files for which a close name is looked for.
_MAX_NAMES = 1000  # Names that are compared for each.


class Pair(NamedTuple):
    """Name the files of one example."""

    name: str
    images: tuple[Path, ...]  # The image, then the files of its further channels.
    label: Path


def find_pairs(
    root: Path,
    *,
    images: str,
    labels: str,
    image_kinds: Collection[str],
    list_file: str = "",
    image_suffix: str = "",
    label_suffix: str = "",
    extra_images: Sequence[str] = (),
) -> tuple[list[Pair], list[str]]:
    """Pair the images and the masks below two folders.

    A file's key is its path below the folder without its suffix, such as "aachen/x".
    Files of one key belong together. The key is also the name of the example.

    Args:
        root: folder of the data set.
        images: folder of the images under ``root``, searched with all folders in it.
        labels: folder of the masks, likewise. It may be that of the images if the
            suffixes tell the files apart.
        image_kinds: suffixes of images, such as ".jpg", in lower case.
        list_file: text file under ``root``, or "" for all files. A line names an image
            by its key or its path. Or it has two columns, the paths of an image and of
            its mask under ``root``, separated by a tab, a comma or spaces; then the two
            folders are not used. If paths have more leading folders than there are
            under ``root``, these are dropped, as many on each line.
        image_suffix: the end that the names of images have in common, such as
            "_leftImg8bit.png"; other files are no images. "" for any of `image_kinds`.
        label_suffix: likewise for masks; "" for any of `LABEL_SUFFIXES`.
        extra_images: folders of further channels under ``root``, each perhaps with a
            suffix, as in "disparity/*_disparity.png".

    Returns:
        The complete pairs, and one line for each file that is missing or superfluous.
        Pairs come in the order of the list, or sorted by name without a list.

    Raises:
        ValueError: if a folder or the list file is missing or empty, images and masks
            cannot be told apart, or a line leads out of ``root`` or has other columns
            than the first.
    """
    lines = _read_lines(root / list_file) if list_file else []
    rows = _two_columns(lines, root) if lines else None
    if rows is not None:
        if extra_images:
            raise ValueError(
                f"list_file: {root / list_file} has two columns, which leave no place "
                "for extra_images; name each example by one column"
            )
        return _pair_rows(rows, root)
    kinds = frozenset(image_kinds)
    folders = [
        _Folder("images", "image_suffix", root / images, image_suffix, kinds),
        _Folder("labels", "label_suffix", root / labels, label_suffix, LABEL_SUFFIXES),
    ]
    for extra in extra_images:
        place, _, suffix = extra.partition("*")
        name = "extra_images"
        folders.append(_Folder(name, name, root / place, suffix, kinds | {".npy"}))
    for folder in folders:
        _scan(folder, [other for other in folders if other is not folder])
    image, label, *extras = folders
    keys, problems = sorted(set().union(*(folder.files for folder in folders))), []
    if lines:
        keys, problems = _listed_keys(lines, image, root / list_file)
    problems += _problems(keys, folders)
    pairs = [
        Pair(key, tuple(f.files[key] for f in (image, *extras)), label.files[key])
        for key in keys
        if all(key in folder.files for folder in folders)
    ]
    return pairs, problems


def describe_pairs(
    pairs: Sequence[Pair],
    root: Path,
    how: str,
    *,
    image_suffix: str = "",
    label_suffix: str = "",
) -> str:
    """Return one line on what was paired, such as "3 pairs of a/*.png with b/*.png".

    Args:
        pairs: the pairs, at least one.
        root: folder of the data set.
        how: what paired them: "name" or a list file.
        image_suffix: as for `find_pairs`.
        label_suffix: as for `find_pairs`.
    """
    images, *extras = zip(*(pair.images for pair in pairs), strict=True)
    patterns = [_pattern(images, root, image_suffix)]
    patterns += [_pattern(files, root) for files in extras]
    label = _pattern([pair.label for pair in pairs], root, label_suffix)
    count = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}"
    return f"{count} of {' and '.join(patterns)} with {label}, by {how}"


def _pattern(files: Sequence[Path], root: Path, suffix: str = "") -> str:
    """Return the common folder and suffixes of files, such as "train/**/*.png"."""
    parents = {file.parent for file in files}
    folder = Path(os.path.commonpath(parents))
    nested = "**/" if parents != {folder} else ""
    suffixes = suffix or ", ".join(sorted({file.suffix for file in files}))
    below = PurePosixPath(os.path.relpath(folder, root)) / f"{nested}*"
    return f"{below}{suffixes}"


@dataclass
class _Folder:
    """Hold the files of one folder that count as images, masks or further channels."""

    argument: str
    suffix_argument: str
    path: Path
    suffix: str  # If it was "", the usual one once files are found.
    kinds: Collection[str]
    files: dict[str, Path] = field(default_factory=dict)  # By key.
    keys: dict[str, str] = field(default_factory=dict)  # By path below the folder.
    others: list[str] = field(default_factory=list)  # Paths of files that do not count.
    twice: dict[str, str] = field(default_factory=dict)  # Key: the problem.


def _scan(folder: _Folder, others: Sequence[_Folder]) -> None:
    """Find the files of a folder, without those of the other folders."""
    path, suffix = folder.path, folder.suffix
    if not path.is_dir():
        raise ValueError(
            f"{folder.argument}: {path} is not a folder; name the folder of the "
            f"{folder.argument} under root"
        )
    skip = {other.path for other in others} - {path}
    rivals = _rival_suffixes(folder, others)
    for name in sorted(names_below(path, skip=skip)):
        end = suffix or os.path.splitext(name)[1]
        counts = name.endswith(suffix) if suffix else end.lower() in folder.kinds
        if not counts or name.endswith(rivals):
            folder.others.append(name)
            continue
        key = folder.keys[name] = name.removesuffix(end).rstrip("/")
        if key in folder.files:
            folder.twice[key] = (
                f"{path} has both {folder.files[key].relative_to(path)} and {name}; "
                f"keep one of them, or set {folder.suffix_argument}"
            )
        folder.files.setdefault(key, path / name)
    if not folder.files:
        kind = "masks" if folder.argument == "labels" else "images"
        end = f" that end in {suffix}" if suffix else ""
        raise ValueError(f"{folder.argument}: {path} holds no {kind}{end}")
    ends = Counter(file.suffix for file in folder.files.values())
    folder.suffix = suffix or ends.most_common(1)[0][0]


def _rival_suffixes(folder: _Folder, others: Sequence[_Folder]) -> tuple[str, ...]:
    """Return the longer suffixes of other roles in the same folder, which go first."""
    same = [other.suffix for other in others if other.path == folder.path]
    if folder.suffix in same:
        raise ValueError(
            f"{folder.argument}: {folder.path} holds masks or further channels too; "
            "set image_suffix and label_suffix to the ends of the names, such as .jpg "
            "and _mask.png"
        )
    return tuple(suffix for suffix in same if len(suffix) > len(folder.suffix))


def names_below(folder: Path, *, skip: Collection[Path] = ()) -> Iterator[str]:
    """Yield the paths of all files below a folder, with "/", without hidden ones.

    Links to folders are followed, but no folder is searched twice.

    Args:
        folder: the folder; the paths are relative to it.
        skip: folders that are left out.

    Raises:
        ValueError: if a folder cannot be read.
    """
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(at)
        visible = [f for f in folders if f[0] != "." and Path(at, f) not in skip]
        folders[:] = [] if real in seen else sorted(visible)
        if real in seen:  # A link may lead back up.
            continue
        seen.add(real)
        below = Path(at).relative_to(folder).as_posix()
        start = "" if below == "." else f"{below}/"
        yield from (f"{start}{name}" for name in files if name[0] != ".")


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _problems(keys: Iterable[str], folders: Sequence[_Folder]) -> list[str]:
    keys = list(dict.fromkeys(keys))
    paired = {key for key in keys if all(key in folder.files for folder in folders)}
    twice = [f.twice[key] for f in folders for key in keys if key in f.twice]
    free = [  # Files that may be meant by a missing one.
        [*(name for name, key in folder.keys.items() if key not in paired)]
        + folder.others
        for folder in folders
    ]
    missing: list[str] = []
    for key in keys:
        for folder, names in zip(folders, free, strict=True):
            if key not in folder.files:
                name = f"{key}{folder.suffix}"
                hint = _hint(name, names, len(missing))
                missing.append(f"{name} is missing in {folder.path}{hint}")
    return twice + missing


def _hint(name: str, names: Iterable[str], before: int) -> str:
    """Return a hint at the file meant by a missing one, or "" after many hints."""
    if before >= _MAX_HINTS:
        return ""
    names, numbers = list(names), _numbers(name)
    near = [other for other in names if _stem(other) == _stem(name)]
    if not near:  # A close name with another number is another example.
        same = [other for other in names if _numbers(other) == numbers]
        near = difflib.get_close_matches(name, same[:_MAX_NAMES], n=1)
    return f"; {near[0]} is there" if near else ""


def _numbers(name: str) -> list[str]:
    return [number.lstrip("0") for number in re.findall(r"\d+", name)]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(
            f"list_file: {path} is not a file; name a text file under root, or leave "
            "list_file empty to use all files"
        )
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError(
            f"list_file: {path} lists nothing: want one name per line, or the paths of "
            "an image and its mask"
        )
    return lines


def _listed_keys(
    lines: Sequence[str], image: _Folder, path: Path
) -> tuple[list[str], list[str]]:
    """Return the keys that a list names, and a problem for each other suffix."""
    known = image.keys | {key: key for key in image.files}
    entries = [_parts(line) for line in lines]
    drop = _spare_folders([(entry,) for entry in entries], known.__contains__)
    if drop is None and len(lines[0].split("," if "," in lines[0] else None)) > 1:
        raise ValueError(
            f"list_file: the line {lines[0]!r} of {path} is neither the name of an "
            f"image in {image.path} nor two paths of files under root; separate the "
            "paths by a tab if they have spaces"
        )
    keys, problems = [], []
    for name in (_below(entry, drop or 0) for entry in entries):
        key = known.get(name, name.removesuffix(image.suffix))
        is_image = os.path.splitext(name)[1].lower() in image.kinds
        if name not in known and key == name and is_image:
            hint = _hint(name, image.keys, len(problems))
            problems.append(f"{name} is missing in {image.path}{hint}")
        else:
            keys.append(key)
    return keys, problems


def _two_columns(lines: Sequence[str], root: Path) -> list[tuple[str, str]] | None:
    """Return the paths of two columns under root, or None if a line is one name."""
    for separator in ("\t", ",", None):
        rows = [tuple(map(_parts, line.split(separator))) for line in lines]
        if len(rows[0]) != 2:
            continue
        drop = _spare_folders(rows, lambda name: (root / name).is_file())
        if drop is None:
            continue
        for row, line in zip(rows, lines, strict=True):
            if len(row) != 2:
                raise ValueError(
                    f"list_file: the line {line!r} has {len(row)} columns, but the "
                    "first line has two; separate the paths by a tab if they have "
                    "spaces"
                )
        return [tuple(_below(parts, drop) for parts in row) for row in rows]
    return None


def _parts(entry: str) -> tuple[str, ...]:
    """Return the folders and the name in an entry, which must not lead upwards."""
    parts = PurePosixPath(entry.strip().replace("\\", "/")).parts
    if ".." in parts:
        raise ValueError(
            f"list_file: {entry.strip()!r} leads out of its folder; name files under "
            "root, without .."
        )
    return tuple(part for part in parts if part.strip("/"))


def _spare_folders(
    rows: Sequence[tuple[tuple[str, ...], ...]], is_known: Callable[[str], bool]
) -> int | None:
    """Return how many leading folders to drop so that a first row is known."""
    for row in rows:
        for drop in range(min(map(len, row))):
            if all(is_known(_below(parts, drop)) for parts in row):
                return drop
    return None


def _below(parts: Sequence[str], drop: int) -> str:
    """Return the path without its first folders, but at least its name."""
    return "/".join(parts[min(drop, len(parts) - 1) :])


def _pair_rows(
    rows: Sequence[tuple[str, str]], root: Path
) -> tuple[list[Pair], list[str]]:
    pairs, problems = [], []
    listed = set(itertools.chain.from_iterable(rows))
    for image, label in rows:
        missing = [name for name in (image, label) if not (root / name).is_file()]
        if not missing:
            pairs.append(Pair(_stem(image), (root / image,), root / label))
        for name in missing:
            near = (n for n in _neighbours(root, name) if n not in listed)
            hint = _hint(name, near, len(problems))
            problems.append(f"{name} is missing in {root}{hint}")
    return pairs, problems


def _neighbours(root: Path, name: str) -> Iterator[str]:
    """Yield the paths under root of what lies in the same folder."""
    folder = (root / name).parent if name else root
    for near in sorted(os.listdir(folder)) if folder.is_dir() else ():
        yield PurePosixPath(name).parent.joinpath(near).as_posix()
