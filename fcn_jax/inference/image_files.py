"""Image files in, label files out."""

import collections
import contextlib
import errno
import glob
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.channels import count_pixels, is_picture, read_channels
from fcn_jax.data.images import (
    SpooledImage,
    image_suffixes,
    read_upright_size,
    spooled_image,
)
from fcn_jax.data.pairs import names_below
from fcn_jax.data.read_ahead import read_ahead
from fcn_jax.files import WriteError, replacing
from fcn_jax.inference.predict import classify_many, compile_ahead
from fcn_jax.inference.probabilities import probabilities as averaged_probabilities
from fcn_jax.inference.shares import ClassShares
from fcn_jax.inference.tiles import needs_tiles, predict_tiled
from fcn_jax.network import Network, as_network
from fcn_jax.processes import gather_texts, is_main, own_share
from fcn_jax.progress import Progress
from fcn_jax.visualize import (
    as_picture,
    legend_below,
    overlay_strips,
    save_image,
    save_labels,
    widened,
)

# What the system says of a name that a result cannot have. Any other error of writing,
# such as a full disk, would meet the next result too.
_ERRORS_OF_A_NAME = (
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
)


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
        if os.path.isdir(path):
            below = _images_below(path, arrays)
            if not below:
                raise ValueError(f"{path} holds no image")
            found |= {path / name: name.with_suffix("") for name in below}
        elif os.path.exists(path) or not glob.has_magic(str(given)):
            found[path] = Path(path.stem)
        else:
            matches = _images_like(str(given), arrays)
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
    legend: bool = False,
) -> tuple[dict[Path, ClassShares], list[tuple[Path, str]]]:
    """Write NAME.png, an index PNG, and NAME_overlay.png for each image NAME.*.

    Images above 4 million pixels come last, one by one, and memory holds those of RGB
    only while they are decoded. In a run of several processes, all of them must call
    this: each segments its share of the images, and the result is the same in all.

    Args:
        net: the network; its palette colours both.
        paths: as `find_images` has them; the folders below a folder are kept.
        out: folder of the results, made if missing. Images whose results would have
            the same names keep their suffix: a.jpg.png and a.png.png.
        extra: folders with the further channels of each image, in order. Each holds a
            file for each image, of the same path below the folder, and any suffix.
        batch_size: as for `predict_many`.
        scales: as for `probabilities`.
        flip: as for `probabilities`.
        probabilities: whether to write NAME.npz as well, with "probabilities"
            [H, W, C] float16.
        legend: whether the overlays get a legend of their classes at the bottom.

    Returns:
        The shares of the classes in each image that was segmented, and (path, error) of
        each image that was left out, because it could not be read or its results cannot
        have their names.

    Raises:
        ValueError: before anything is written, if two images would share a result
            despite their suffixes, if a result would replace an image, if an image has
            no or several files in a folder of ``extra``, or if an index PNG cannot hold
            the classes.
        OSError: if results cannot be written, as on a full disk.
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
    channels = net.model.in_channels
    names = find_images(paths, arrays=channels > 3)
    files = _with_further(names, extra)
    targets = _targets(names, files, Path(out), probabilities)
    averaged = probabilities or flip or tuple(scales) != (1.0,)
    views = {"scales": scales, "flip": flip} if averaged else {}
    Path(out).mkdir(parents=True, exist_ok=True)
    alone = [path for path in files if views or _is_large(files[path], channels)]
    batched = [path for path in files if path not in set(alone)]
    alone, batched = own_share(alone), own_share(batched)
    batch_size = min(batch_size, len(batched))
    left_out: list[tuple[Path, str]] = []
    shares: dict[Path, ClassShares] = {}
    count = len(alone) + len(batched)
    with Progress("predict", count, unit="image", shown=is_main()) as bar:
        images = _read({path: files[path] for path in batched}, channels, left_out, bar)
        options = {"batch_size": batch_size, "progress": is_main()}
        for (path, image), labels, counted in classify_many(net, images, **options):
            with _leaving_out(path, left_out):
                _write(net, targets[path], image, labels, legend=legend)
                shares[path] = counted
            bar.update()
        for path in alone:
            with _leaving_out(path, left_out), _opened(files[path], net, out) as image:
                labels, counted, shown = _classify(net, image, views)
                _write(net, targets[path], image, labels, shown, legend=legend)
                shares[path] = counted
            bar.update()
    shares, left_out = _of_all_processes(list(targets), shares, left_out)
    return {path: shares[path] for path in targets if path in shares}, left_out


def compile_for_files(
    net: Network, paths: Sequence[str | Path], *, batch_size: int = 0
) -> None:
    """Compile the program that `predict_files` needs for the first image it segments.

    Nothing is compiled for images of more channels than RGB.

    Args:
        net: the network; its params may be `jax.ShapeDtypeStruct`.
        paths: as for `predict_files`.
        batch_size: as for `predict_files`.

    Raises:
        ValueError: if there are no images, or the first cannot be read.
    """
    files = own_share(list(find_images(paths)))
    if files and is_picture(files[:1], net.model.in_channels):
        size = read_upright_size(files[0])
        compile_ahead(net, size, batch_size=min(batch_size, len(files)))


def _of_all_processes(
    paths: Sequence[Path],
    shares: Mapping[Path, ClassShares],
    left_out: Sequence[tuple[Path, str]],
) -> tuple[dict[Path, ClassShares], list[tuple[Path, str]]]:
    """Return what all processes found, from what each of them did.

    Args:
        paths: the images of all.
        shares: of the images of this process.
        left_out: likewise.
    """
    places = {path: i for i, path in enumerate(paths)}
    own = {
        "shares": [
            (places[path], found.pixels.tolist(), found.confidence.tolist())
            for path, found in shares.items()
        ],
        "left_out": [(places[path], error) for path, error in left_out],
    }
    merged: dict[Path, ClassShares] = {}
    errors: list[tuple[Path, str]] = []
    for text in gather_texts(json.dumps(own)):
        found = json.loads(text)
        for place, pixels, confidence in found["shares"]:
            counted = merged[paths[place]] = ClassShares(len(pixels))
            counted.pixels[:], counted.confidence[:] = pixels, confidence
        errors += [(paths[place], error) for place, error in found["left_out"]]
    return merged, errors


def _images_below(folder: Path, arrays: bool) -> list[Path]:
    """Return the paths of all images in a folder and below, relative to the folder."""
    names = (Path(name) for name in sorted(names_below(folder)))
    return [name for name in names if _is_image(name, arrays)]


def _images_like(pattern: str, arrays: bool) -> list[Path]:
    """Return the images that match a pattern."""
    matches = [Path(name) for name in glob.glob(pattern, recursive=True)]
    real: dict[Path, Path] = {}  # A link may lead back up, to paths without an end.
    for path in sorted(matches, key=lambda path: (len(path.parts), path)):
        if _is_image(path, arrays) and not path.is_dir():
            real.setdefault(
                os.path.join(os.path.realpath(path.parent), path.name), path
            )
    return sorted(real.values())


def _is_image(path: Path, arrays: bool) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in image_suffixes(arrays=arrays)


def _is_large(files: Sequence[Path], channels: int) -> bool:
    try:
        return needs_tiles((count_pixels(files, channels=channels), 1))
    except ValueError:  # Reading the image will tell.
        return False


def _with_further(
    images: dict[Path, Path], folders: Sequence[str | Path]
) -> dict[Path, list[Path]]:
    """Return the files of each image: its own, and one in each further folder."""
    files = {path: [path] for path in images}
    for folder in map(Path, folders):
        below = collections.defaultdict(list)
        for name in _images_below(folder, arrays=True):
            below[name.with_suffix("")].append(folder / name)
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
    left_out: list[tuple[Path, str]],
    bar: Progress,
) -> Iterator[tuple[tuple[Path, np.ndarray], np.ndarray]]:
    """Yield ((path, image), image), read ahead; note the unreadable in ``left_out``."""
    paths = list(files)

    def read(i: int) -> np.ndarray | str:
        try:
            return read_channels(files[paths[i]], channels=channels)
        except (ValueError, OSError, MemoryError) as error:
            return _reason(paths[i], error)

    for path, image in zip(paths, read_ahead(read, len(paths)), strict=True):
        if isinstance(image, str):
            left_out.append((path, image))
            bar.update()
        else:
            yield (path, image), image


@contextlib.contextmanager
def _leaving_out(path: Path, left_out: list[tuple[Path, str]]) -> Iterator[None]:
    """Note the image instead of raising, unless all others would fail as well."""
    try:
        yield
    except WriteError as error:
        if error.errno not in _ERRORS_OF_A_NAME:
            raise
        left_out.append((path, f"{path}: {error}"))
    except (ValueError, MemoryError) as error:
        left_out.append((path, _reason(path, error)))


def _opened(
    files: Sequence[Path], net: Network, folder: str | Path
) -> contextlib.AbstractContextManager:
    """Return a context of an image by itself; a large one lies in a temporary file."""
    channels = net.model.in_channels
    if is_picture(files, channels):
        return spooled_image(files[0], folder)
    return contextlib.nullcontext(read_channels(files, channels=channels))


def _classify(
    net: Network, image: np.ndarray | SpooledImage, views: Mapping[str, Any]
) -> tuple[np.ndarray, ClassShares, np.ndarray | None]:
    """Return labels, shares of the classes, and probabilities if they are averaged.

    Args:
        net: the network.
        image: [H, W, N].
        views: scales and flip for `probabilities`, or {}.
    """
    shares = ClassShares(net.model.num_classes)
    if not views:
        labels = predict_tiled(net, image, shares=shares, progress=is_main())
        return labels, shares, None
    found = averaged_probabilities(net, image[:], **views)
    labels = found.argmax(-1)
    shares.add(labels, found.max(-1))
    return labels, shares, found


def _reason(path: Path, error: Exception) -> str:
    """Return one line that names the image."""
    reason = str(error) or "there is not enough memory for it"
    return reason if str(path) in reason else f"{path}: {reason}"


def _targets(
    images: dict[Path, Path],
    files: Mapping[Path, Sequence[Path]],
    out: Path,
    probabilities: bool,
) -> dict[Path, list[Path]]:
    """Return the files that the results of each image go to."""
    endings = [".png", "_overlay.png", *([".npz"] if probabilities else [])]

    def results(name: Path) -> list[Path]:
        return [out / f"{name}{ending}" for ending in endings]

    images = _told_apart(images, results)
    # Unlike Path.resolve, realpath takes a link that leads to itself.
    taken = {os.path.realpath(path): path for paths in files.values() for path in paths}
    targets: dict[Path, list[Path]] = {}
    for path, name in images.items():
        targets[path] = results(name)
        for target in targets[path]:
            real = os.path.realpath(target)
            if real in taken:
                raise ValueError(
                    f"{target}, a result of {path}, would replace "
                    f"{taken[real]} or a result of it: rename one of the "
                    "images, or choose another folder for the results"
                )
            taken[real] = path
    return targets


def _told_apart(
    images: dict[Path, Path], results: Callable[[Path], list[Path]]
) -> dict[Path, Path]:
    """Return the names with a suffix wherever two images would share a result."""
    users = collections.defaultdict(set)
    for path, name in images.items():
        for target in results(name):
            users[target].add(path)
    shared = set().union(*(paths for paths in users.values() if len(paths) > 1))
    full = {path: images[path].with_name(path.name) for path in shared}
    if full.items() <= images.items():
        return images
    return _told_apart(images | full, results)


def _write(
    net: Network,
    targets: Sequence[Path],
    image: np.ndarray | SpooledImage,
    labels: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    legend: bool,
) -> None:
    """Write the results of an image.

    Args:
        net: the network.
        targets: of the labels, the overlay, and the probabilities if they are wanted.
        image: [H, W, N].
        labels: [H, W].
        probabilities: [H, W, C], if they are wanted.
        legend: as for `predict_files`.
    """
    label_path, overlay_path, *npz = targets
    save_labels(label_path, labels, net.palette)
    tints = {"palette": net.palette, "background": net.background}

    def picture(rows: slice) -> np.ndarray:
        return as_picture(image[rows], net.model.mean, net.model.scale, net.shown)

    (height, width), strips = labels.shape, overlay_strips(picture, labels, **tints)
    if legend:
        below = legend_below(labels, net.names, **tints)
        height, width = height + len(below), below.shape[1]
        parts = itertools.chain(strips, [below] if len(below) else [])
        strips = (widened(part, width) for part in parts)
    save_image(overlay_path, (height, width), strips)
    for target in npz:
        _save_probabilities(target, probabilities)


def _save_probabilities(path: Path, probabilities: np.ndarray) -> None:
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, probabilities=probabilities.astype(np.float16))
