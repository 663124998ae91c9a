"""Download published weights by name, once, into the cache folder.

A file gets its name there only after its size and digest are checked.
"""

import contextlib
import hashlib
import os
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock
from tqdm import tqdm

from fcn_jax.files import cache_folder

MAX_BYTES = 4 * 10**9  # The limit for a file of unknown size.
TIMEOUT = 30.0  # Seconds that a server may be silent.
_SCHEMES = ("http", "https")


class Published(NamedTuple):
    """The URL of a file, and its digest and size as far as they are known."""

    url: str  # Its last part names the file in the cache.
    digest: str | None = None  # "sha256:", "sha1:" or "md5:" and the first hex digits.
    size: int | None = None  # in bytes


# SHA-1: OpenCV's opencv_extra, testdata/dnn/download_models.py. MD5: Keras,
# applications/vgg16.py. SHA-256 of timm's file: its page. Sizes: logs of downloads.
PUBLISHED = {
    "vgg16": Published(
        "http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/"
        "VGG_ILSVRC_16_layers.caffemodel",
        "sha1:9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24",
        553_432_081,
    ),
    "vgg16-torchvision": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
    ),
    "vgg16-timm": Published(
        "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors",
        "sha256:57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
    "vgg16-keras": Published(
        "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
        "vgg16_weights_tf_dim_ordering_tf_kernels.h5",
        "md5:64373286793e3c8b2b4e3219cbf3544b",
        553_467_096,
    ),
}
_FCN_DIGESTS = {
    "fcn32s-heavy-pascal": "sha1:05eb922d7829c39448f57e5ab9d8cd75d6c0be6d",
    "fcn16s-heavy-pascal": None,
    "fcn8s-heavy-pascal": "sha1:c449ea74dd7d83751d1357d6a8c323fcf4038962",
    "fcn8s-atonce-pascal": None,
}
PUBLISHED |= {
    name: Published(f"http://dl.caffe.berkeleyvision.org/{name}.caffemodel", digest)
    for name, digest in _FCN_DIGESTS.items()
}


def fetch(name_or_path: str | Path) -> Path:
    """Return a path as it is, or the path of published weights in the cache.

    A path that exists comes before a name in `PUBLISHED`.

    Raises:
        ValueError: if there is neither such a file nor such a name; or as `download`.
        OSError: as `download`.
    """
    path, published = Path(name_or_path), PUBLISHED.get(str(name_or_path))
    if path.exists():
        return path
    if published is None:
        problem = f"{name_or_path} does not exist; weights with a name are "
        raise ValueError(problem + ", ".join(PUBLISHED))
    path = cache_folder() / published.url.rpartition("/")[2]
    if not path.exists():
        download(published, path)
    return path


def download(wanted: Published, path: Path) -> None:
    """Download a file, unless it exists.

    If several processes want the same file, one downloads it and the others wait. An
    interrupted download leaves hidden files beside ``path``; the next call resumes it.
    Missing folders are made. Of a file of unknown size, at most `MAX_BYTES` are taken.

    Raises:
        ValueError: if the URL is not http or https; or if it returns an HTML page, or
            another size or digest. Nothing is kept then.
        OSError: if the server does not send the file, or the connection breaks.
    """
    url = wanted.url
    if urlsplit(url).scheme not in _SCHEMES:
        raise ValueError(f"url = {url!r} must begin with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version, lock = (
        path.with_name(f".{path.name}.{end}") for end in ("part", "version", "lock")
    )
    with FileLock(lock):
        if not path.exists():
            try:
                _receive(wanted, part, version, path.name)
            except (OSError, HTTPException) as error:
                have, _ = _begun(part, version)
                resumed = f"; {have:,} bytes have come, the same call resumes there"
                raise OSError(
                    f"cannot download {url}: {error}{resumed if have else ''}; if it "
                    f"fails again, download it in a browser and put it at {path}"
                ) from error
            if problem := _problem(part, wanted):
                part.unlink()
                version.unlink()
                raise ValueError(
                    f"{url} gives {problem}; nothing was kept, so try again, or put "
                    f"another copy at {path}"
                )
            os.replace(part, path)
        version.unlink(missing_ok=True)
        # Whoever waits for the lock will find the file. On Windows a lock that is held
        # cannot be deleted; there FileLock deletes it.
        with contextlib.suppress(OSError):
            lock.unlink()


def _begun(part: Path, version: Path) -> tuple[int, str]:
    """Return how many bytes can be resumed, and the mark of their version."""
    mark = version.read_text("latin-1") if version.exists() else ""
    return part.stat().st_size if mark and part.exists() else 0, mark


def _receive(wanted: Published, part: Path, version: Path, name: str) -> None:
    """Download what ``part`` lacks of the file, or all of it if it has changed."""
    most = wanted.size or MAX_BYTES
    start, mark = _begun(part, version)
    with _request(wanted.url, start, mark) as response:
        headers, length = response.headers, response.length or 0
        # A weak ETag, W/"...", must not stand in If-Range (RFC 9110, section 13.1.5).
        etag = headers.get("ETag", "")
        found = etag if etag.startswith('"') else headers.get("Last-Modified", "")
        if start and response.status in (206, 416):
            size = start + length
            rest = headers.get("Content-Range") == f"bytes {start}-{size - 1}/{size}"
            if not rest or found not in ("", mark):  # not the rest of this version
                part.unlink()
                return _receive(wanted, part, version, name)
        elif response.status != 200:
            raise OSError(f"HTTP status {response.status} {response.reason}")
        elif headers.get_content_type() == "text/html":
            raise ValueError(f"{wanted.url} gives an HTML page; read it in a browser")
        elif length > most:
            raise ValueError(f"{wanted.url} gives {length:,} bytes, want {most:,}")
        else:
            part.write_bytes(b"")
            version.write_text(found, "latin-1")
        have = part.stat().st_size
        total = None if response.length is None else have + response.length
        bar = tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True)
        with open(part, "ab") as file, bar:
            while have <= most and (chunk := response.read(2**18)):
                have += file.write(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection was closed before byte {total:,}")


def _request(url: str, start: int, mark: str) -> HTTPResponse:
    """Request a file, from byte ``start`` on if it still has the version ``mark``."""
    resume = {"Range": f"bytes={start}-", "If-Range": mark} if start else {}
    request = Request(url, headers={"User-Agent": "fcn_jax"} | resume)
    try:
        return build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        return error  # a response too, with a status


class _Redirects(HTTPRedirectHandler):
    """Follow redirects to http and https only; urllib also follows them to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise HTTPError(newurl, code, f"{msg}, to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _problem(part: Path, wanted: Published) -> str | None:
    """Return how a file differs from the wanted one, or None if it does not."""
    found, most = part.stat().st_size, wanted.size or MAX_BYTES
    with open(part, "rb") as file:
        head = file.read(1024).lstrip()
        if not head or head.startswith(b"<"):
            return "an HTML page or nothing, not weights"
        if found > most or wanted.size not in (None, found):
            return f"{found:,} bytes, want {most:,}"
        if wanted.digest:
            name, digits = wanted.digest.split(":")
            file.seek(0)
            # Without usedforsecurity=False, some systems forbid MD5.
            new = partial(hashlib.new, name, usedforsecurity=False)
            digest = hashlib.file_digest(file, new).hexdigest()
            if not digest.startswith(digits.lower()):
                return f"a file of {name} {digest}, want {digits}"
    return None
