"""Image files in, label files out."""

import collections
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fcn_jax.data.channels import read_channels
from fcn_jax.data.images import image_suffixes
from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.files import replacing
from fcn_jax.inference.predict import predict_many
from fcn_jax.inference.probabilities import probabilities_many
from fcn_jax.network import Network, as_network
from fcn_jax.visualize import as_picture, overlay, save_image, save_labels


def find_images(
    paths: Sequence[str | Path], *, arrays: bool = False
) -> dict[Path, Path]:
    """Return the images that files, folders and patterns stand for.

    Args:
        paths: files, folders (all images in them and below), or patterns such as
            "photos/**/*.jpg".
        arrays: whether .npy files count as images.

    Returns:
        {image: the name of its result, less suffix, relative to the folder of results}:
        the path below a folder, or a file's own name.

    Raises:
        ValueError: if a folder or a pattern holds no image.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if _is_image(p, arrays))
            if not below:
                raise ValueError(f"{path} holds no image")
            found |= {p: p.relative_to(path).with_suffix("") for p in below}
        elif path.exists() or not glob.has_magic(str(given)):
            found[path] = Path(path.stem)
        else:
            matches = sorted(Path(p) for p in glob.glob(str(given), recursive=True))
            matches = [path for path in matches if _is_image(path, arrays)]
            if not matches:
                raise ValueError(f"no image matches {given}")
            found |= {p: Path(p.stem) for p in matches}
    return found


def predict_files(
    net: Network,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    extra: Sequence[str | Path] = (),
    batch_size: int = 0,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    probabilities: bool = False,
) -> tuple[int, list[tuple[Path, str]]]:
    """Write NAME.png, an index PNG, and NAME_overlay.png for each image NAME.*.

    Args:
        net: the network; its palette colours both.
        paths: as `find_images` has them; the folders below a folder are kept.
        out: folder of the results, made if missing.
        extra: folders with the further channels of each image, in order. Each holds a
            file for each image, of the same path below the folder, and any suffix.
        batch_size: as for `predict_many`.
        scales: as for `probabilities`.
        flip: as for `probabilities`.
        probabilities: whether to write NAME.npz as well, with "probabilities"
            [H, W, C] float16.

    Returns:
        How many images were segmented, and (path, error) of each image that could not
        be read and was left out.

    Raises:
        ValueError: before anything is written, if two images would share a result, if
            a result would replace an image, if an image has no or several files in a
            folder of ``extra``, or if an index PNG cannot hold the classes.
    """
    net = as_network(net)
    if net.model.num_classes > 256:
        raise ValueError(
            f"{net.model.num_classes} classes do not fit an 8-bit index PNG: call "
            "fcn_jax.predict and save the labels as .npy"
        )
    if len(extra) and net.model.in_channels == 3:
        raise ValueError(
            f"extra = {list(map(str, extra))}: the network takes RGB alone, without "
            "further channels: leave extra out"
        )
    names = find_images(paths, arrays=net.model.in_channels > 3)
    files = _with_further(names, extra)
    targets = _targets(names, files, Path(out), probabilities)
    unread: list[tuple[Path, str]] = []
    bar = tqdm(desc="predict", unit="image", total=len(targets))
    images = _read(files, net.model.in_channels, unread, bar)
    averaged = probabilities or flip or tuple(scales) != (1.0,)
    if averaged:
        results = probabilities_many(net, images, scales=scales, flip=flip)
    else:
        results = predict_many(net, images, batch_size=batch_size, progress=True)
    with bar:
        for (path, image), result in results:
            labels = result.argmax(-1) if averaged else result
            label_path, overlay_path, *npz = targets[path]
            save_labels(label_path, labels, net.palette)
            picture = as_picture(image, net.model.mean, net.model.scale, net.shown)
            save_image(overlay_path, overlay(picture, labels, palette=net.palette))
            for target in npz:
                _save_probabilities(target, result)
            bar.update()
    return len(targets) - len(unread), unread


def _is_image(path: Path, arrays: bool) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    return path.suffix.lower() in image_suffixes(arrays=arrays)


def _with_further(
    images: dict[Path, Path], folders: Sequence[str | Path]
) -> dict[Path, list[Path]]:
    """Return the files of each image: its own, and one in each further folder."""
    files = {path: [path] for path in images}
    for folder in map(Path, folders):
        below = collections.defaultdict(list)
        for path in sorted(folder.rglob("*")):
            if _is_image(path, arrays=True):
                below[path.relative_to(folder).with_suffix("")].append(path)
        for path, name in images.items():
            if len(below[name]) != 1:
                found = ", ".join(map(str, below[name])) or "none"
                raise ValueError(
                    f"extra: {folder} must hold one image {name}.* with the next "
                    f"channels of {path}, found {found}"
                )
            files[path] += below[name]
    return files


def _read(
    files: Mapping[Path, Sequence[Path]],
    channels: int,
    unread: list[tuple[Path, str]],
    bar: tqdm,
) -> Iterator[tuple[tuple[Path, np.ndarray], np.ndarray]]:
    """Yield ((path, image), image), read ahead; list unreadable files in ``unread``."""
    paths = list(files)

    def read(i: int) -> np.ndarray | str:
        try:
            return read_channels(files[paths[i]], channels=channels)
        except ValueError as error:
            return str(error)

    for path, image in zip(paths, read_ahead(read, len(paths)), strict=True):
        if isinstance(image, str):
            unread.append((path, image))
            bar.update()
        else:
            yield (path, image), image


def _targets(
    images: dict[Path, Path],
    files: Mapping[Path, Sequence[Path]],
    out: Path,
    probabilities: bool,
) -> dict[Path, list[Path]]:
    """Return the files that the results of each image go to."""
    taken = {path.resolve(): path for paths in files.values() for path in paths}
    endings = [".png", "_overlay.png", *([".npz"] if probabilities else [])]
    targets: dict[Path, list[Path]] = {}
    for path, name in images.items():
        targets[path] = [out / f"{name}{ending}" for ending in endings]
        for target in targets[path]:
            if target.resolve() in taken:
                raise ValueError(
                    f"{target}, a result of {path}, would replace "
                    f"{taken[target.resolve()]} or a result of it: rename one of the "
                    "images, or choose another folder for the results"
                )
            taken[target.resolve()] = path
    return targets


def _save_probabilities(path: Path, probabilities: np.ndarray) -> None:
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, probabilities=probabilities.astype(np.float16))
