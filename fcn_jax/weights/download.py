"""Published weights by name: downloaded once, then kept in a directory.

That directory is ``~/.cache/fcn_jax``, or the one that the environment variable
FCN_JAX_CACHE names. A file there is whole: until its size and checksum are right it has
a hidden name, under which an interrupted download goes on.
"""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from fcn_jax.files import cache_folder

_MOST_BYTES = 4 * 10**9  # of a file whose size is not known
_CHUNK_BYTES = 2**18
_SCHEMES = ("http", "https")
_TIMEOUT = 30.0  # seconds that a server may be silent


class Published(NamedTuple):
    """Where a file is, and what is known of it.

    Attributes:
        url: its last part names the file in the cache.
        size: in bytes, or None where it is not known.
        sha256, sha1, md5: the hex digest, its first digits, or None.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    sha1: str | None = None
    md5: str | None = None


_BERKELEY = "http://dl.caffe.berkeleyvision.org/"
# SHA-1: OpenCV's opencv_extra, testdata/dnn/download_models.py. MD5: Keras,
# applications/vgg16.py. SHA-256 of timm's file: its page. Sizes: logs of downloads.
PUBLISHED = {
    "vgg16": Published(
        "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
        "VGG_ILSVRC_16_layers.caffemodel",
        size=553_432_081,
        sha1="9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24",
    ),
    "vgg16-torchvision": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        size=553_433_881,
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg16-timm": Published(
        "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors",
        sha256="57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
    "vgg16-keras": Published(
        "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
        "vgg16_weights_tf_dim_ordering_tf_kernels.h5",
        size=553_467_096,
        md5="64373286793e3c8b2b4e3219cbf3544b",
    ),
    "fcn32s-heavy-pascal": Published(
        _BERKELEY + "fcn32s-heavy-pascal.caffemodel",
        sha1="05eb922d7829c39448f57e5ab9d8cd75d6c0be6d",
    ),
    "fcn16s-heavy-pascal": Published(_BERKELEY + "fcn16s-heavy-pascal.caffemodel"),
    "fcn8s-heavy-pascal": Published(
        _BERKELEY + "fcn8s-heavy-pascal.caffemodel",
        sha1="c449ea74dd7d83751d1357d6a8c323fcf4038962",
    ),
    "fcn8s-atonce-pascal": Published(_BERKELEY + "fcn8s-atonce-pascal.caffemodel"),
}


def fetch(name_or_path: str | Path) -> Path:
    """Returns the path of a file that exists, or of published weights.

    Args:
        name_or_path: a path, or a name in `PUBLISHED`; a path that exists comes first.
    Returns:
        The path as it is, or that of the cached file, downloaded if it was absent.
    Raises:
        ValueError: if no such file exists and it is no name; as `download`.
        OSError: as `download`.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.exists():
        return path
    if name not in PUBLISHED:
        names = ", ".join(PUBLISHED)
        if path.suffix or path.name != name:
            raise ValueError(f"{path} does not exist; weights with a name are {names}")
        raise ValueError(
            f"{name!r} is none of the names {names}, and no such file exists"
        )
    published = PUBLISHED[name]
    path = cache_folder() / Path(urlsplit(published.url).path).name
    if not path.exists():
        download(path=path, **published._asdict())
    return path


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
) -> None:
    """Downloads a file, unless it exists.

    Of several processes one downloads while the others wait. One that is interrupted
    leaves ``.{name}.part`` beside ``path``, and the next one goes on from there.

    Args:
        url: http or https.
        path: of the file; missing directories are made.
        size: in bytes; if it is not known, 4 GB at most are taken.
        sha256, sha1, md5: what the hex digest begins with.
    Raises:
        ValueError: if ``url`` is of another kind, or if it gives an HTML page, another
            size or another digest. Nothing of that is kept.
        OSError: if the file cannot be had, or the connection broke.
    """
    import fcntl  # absent on Windows, where the rest of the library works

    if urlsplit(url).scheme not in _SCHEMES:
        raise ValueError(f"url = {url!r} must begin with http:// or https://")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, state = (path.with_name(f".{path.name}.{end}") for end in ("part", "state"))
    most = _MOST_BYTES if size is None else size
    with open(state, "a+", encoding="latin-1") as version:
        fcntl.flock(version, fcntl.LOCK_EX)
        if not path.exists():
            try:
                _receive(url, part, version, path.name, most)
            except (OSError, HTTPException) as error:
                have, _ = _begun(part, version)
                go_on = f"; {have:,} bytes have come, the same call goes on from there"
                raise OSError(
                    f"cannot download {url}: {error}{go_on if have else ''}; if it "
                    f"fails again, download it in a browser and put it at {path}"
                ) from error
            digests = {"sha256": sha256, "sha1": sha1, "md5": md5}
            if problem := _problem(part, size, most, digests):
                part.unlink()
                raise ValueError(
                    f"{url} gives {problem}; nothing was kept, so try again, or put "
                    f"another copy at {path}"
                )
            os.replace(part, path)
        state.unlink(missing_ok=True)


def _begun(part: Path, version: TextIO) -> tuple[int, str]:
    """Returns how many bytes ``part`` has, and of which version of the file."""
    version.seek(0)
    mark = version.read()
    return part.stat().st_size if mark and part.exists() else 0, mark


def _receive(url: str, part: Path, version: TextIO, name: str, most: int) -> None:
    """Downloads what ``part`` lacks of the file, or all of it if it has changed."""
    start, mark = _begun(part, version)
    with _ask(url, start, mark) as response:
        if start and response.status == 206 and _is_rest(response.headers, start, mark):
            _append(response, part, name, most)
        elif start and response.status in (206, 416):
            part.unlink()
            _receive(url, part, version, name, most)
        elif response.status != 200:
            raise OSError(f"HTTP status {response.status} {response.reason}")
        elif response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"{url} gives an HTML page, not weights; read it in a browser"
            )
        elif (response.length or 0) > most:
            raise ValueError(f"{url} gives {response.length:,} bytes, want {most:,}")
        else:
            part.write_bytes(b"")
            version.truncate(0)
            version.write(_mark(response.headers))
            version.flush()
            _append(response, part, name, most)


def _ask(url: str, start: int, mark: str) -> HTTPResponse:
    """Asks for a file, from byte ``start`` if it still is the version ``mark``."""
    request = Request(url, headers={"User-Agent": "fcn_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", mark)
    try:
        return build_opener(_Redirects).open(request, timeout=_TIMEOUT)
    except HTTPError as error:
        return error  # an answer too, with a status


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib's own also goes to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise HTTPError(newurl, code, f"{msg}, to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _mark(headers: Message) -> str:
    """Returns what tells this version of a file from others, or an empty string."""
    etag = headers.get("ETag", "")
    # A weak one, W/"...", must not stand in If-Range (RFC 9110, section 13.1.5).
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _is_rest(headers: Message, start: int, mark: str) -> bool:
    """Are these the bytes from ``start`` to the end, of the version ``mark``?"""
    span = re.fullmatch(rf"bytes {start}-(\d+)/(\d+)", headers.get("Content-Range", ""))
    to_the_end = span is not None and int(span[1]) + 1 == int(span[2])
    return to_the_end and _mark(headers) in ("", mark)


def _append(response: HTTPResponse, part: Path, name: str, most: int) -> None:
    """Appends the body of an answer to ``part``, up to about ``most`` bytes."""
    have = part.stat().st_size
    total = None if response.length is None else have + response.length
    with (
        open(part, "ab") as file,
        tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True) as bar,
    ):
        while have <= most and (chunk := response.read(_CHUNK_BYTES)):
            have += file.write(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection was closed before byte {total:,}")


def _problem(
    part: Path, size: int | None, most: int, digests: Mapping[str, str | None]
) -> str | None:
    """Returns what shows that this is not the file that was wanted, or None."""
    found = part.stat().st_size
    if found > most:
        return f"more than {most:,} bytes"
    with open(part, "rb") as file:
        head = file.read(1024).lstrip()
        if not head or head.startswith(b"<"):
            return "an HTML page or nothing, not weights"
        if size not in (None, found):
            return f"{found:,} bytes, want {size:,}"
        for name, wanted in digests.items():
            if wanted is None:
                continue
            file.seek(0)
            # Against accidents alone; without this, some systems forbid MD5.
            new = functools.partial(hashlib.new, name, usedforsecurity=False)
            digest = hashlib.file_digest(file, new).hexdigest()
            if not digest.startswith(wanted.lower()):
                return f"a file of {name} {digest}, want {wanted}"
    return None
