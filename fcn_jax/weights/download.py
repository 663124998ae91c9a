"""Download published weights by name, once, into the cache folder.

A file gets its name there only after its size and digest are checked.
"""

import contextlib
import hashlib
import io
import logging
import os
import string
import time
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from filelock import FileLock, Timeout

from fcn_jax.files import cache_folder
from fcn_jax.progress import Progress

MAX_BYTES = 4 * 10**9  # The limit for a file of unknown size.
TIMEOUT = 30.0  # Seconds that a server may be silent.
PATIENCE = 60.0  # Seconds in which MIN_BYTES of a file must come, or its end.
MIN_BYTES = 600_000
MAX_REDIRECTS = 10

_log = logging.getLogger("fcn_jax")


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
    A server that is silent for `TIMEOUT` seconds, or sends less than `MIN_BYTES` of the
    file in `PATIENCE` seconds, ends the download.

    Raises:
        ValueError: if the URL is not http or https; or if it gives an HTML page,
            another size or digest, compressed bytes, or too many. They are not kept.
        OSError: if the server does not send the file, or sends it too slowly, or the
            connection breaks.
    """
    url = wanted.url
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url = {url!r} must begin with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version, lock = (
        path.with_name(f".{path.name}.{end}") for end in ("part", "version", "lock")
    )
    with _locked(lock, path.name):
        if not path.exists():
            try:
                _receive(wanted, part, version, path.name)
                if problem := _problem(part, wanted):
                    part.unlink()
                    version.unlink()
                    raise ValueError(problem)
            except (OSError, HTTPException) as error:
                have, _ = _begun(part, version)
                resumed = f"; {have:,} bytes have come, the same call resumes there"
                raise OSError(
                    f"cannot download {url}: {_reason(error)}{resumed if have else ''};"
                    f" if it fails again, download it in a browser and put it at {path}"
                ) from error
            except ValueError as error:
                raise ValueError(
                    f"{url} gives {error}; nothing of it was kept, so try again, or "
                    f"put another copy at {path}"
                ) from error
            os.replace(part, path)
        version.unlink(missing_ok=True)
        # Whoever waits for the lock will find the file. On Windows a lock that is held
        # cannot be deleted; there FileLock deletes it.
        with contextlib.suppress(OSError):
            lock.unlink()


def _locked(lock: Path, name: str) -> contextlib.AbstractContextManager:
    """Acquire a lock; if another process holds it, say so and wait."""
    held = FileLock(lock)
    try:
        return held.acquire(timeout=0)
    except Timeout:
        _log.warning(
            "waiting for the process that downloads %s; it holds %s", name, lock
        )
        return held.acquire()
    except NotImplementedError as error:
        raise OSError(
            f"{lock.parent} lies on a file system without locks: let the environment "
            "variable FCN_JAX_CACHE name a folder on another"
        ) from error


def _begun(part: Path, version: Path) -> tuple[int, str]:
    """Return how many bytes can be resumed, and the mark of their version."""
    mark = version.read_text("latin-1") if version.exists() else ""
    return part.stat().st_size if mark and part.exists() else 0, mark


def _receive(wanted: Published, part: Path, version: Path, name: str) -> None:
    """Download what ``part`` lacks of the file, or all of it if it has changed."""
    start, mark = _begun(part, version)
    pace = _Pace()
    with _request(wanted.url, start, mark, pace) as response:
        headers = response.headers
        # A weak ETag, W/"...", must not stand in If-Range (RFC 9110, section 13.1.5).
        etag = headers.get("ETag", "")
        found = etag if etag.startswith('"') else headers.get("Last-Modified", "")
        found = found if found.isprintable() else ""  # It must fit into one header.
        if start and response.status in (206, 416):
            size = start + (response.length or 0)
            rest = headers.get("Content-Range") == f"bytes {start}-{size - 1}/{size}"
            if not rest or found not in ("", mark):  # not the rest of this version
                part.unlink()
                return _receive(wanted, part, version, name)
            _check_headers(wanted, response, start)
        elif response.status == 200:
            _check_headers(wanted, response, 0)
            part.write_bytes(b"")
            version.write_text(found, "latin-1")
        else:
            raise OSError(f"HTTP status {response.status} {response.reason}")
        _append(response, part, name, wanted.size or MAX_BYTES, pace)


def _check_headers(wanted: Published, response: HTTPResponse, start: int) -> None:
    """Raise ValueError if the headers tell that this cannot be the file."""
    headers, most = response.headers, wanted.size or MAX_BYTES
    if headers.get_content_type() == "text/html":
        raise ValueError("an HTML page, not weights")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("compressed bytes, which were not asked for")
    if start + (response.length or 0) > most:
        raise ValueError(f"more than {most:,} bytes")
    counted = response.chunked or response.length is not None
    if not counted and not wanted.size and not wanted.digest:
        raise ValueError("a file without its length, so that a cut would not be seen")


def _append(
    response: HTTPResponse, part: Path, name: str, most: int, pace: "_Pace"
) -> None:
    """Append the body of a response to ``part``, and show the progress."""
    have = part.stat().st_size
    total = None if response.length is None else have + response.length
    bar = Progress(f"download {name}", total, unit="B", initial=have)
    with open(part, "ab") as file, bar:
        # Unlike read, read1 keeps what came before an error, and reads bounded parts
        # even of a chunk of length -1.
        while have <= most and (chunk := response.read1(2**18)):
            have += file.write(chunk)
            pace.add(len(chunk))
            bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection was closed before byte {total:,}")


def _request(url: str, start: int, mark: str, pace: "_Pace") -> HTTPResponse:
    """Request a file, from byte ``start`` on if it still has the version ``mark``."""
    headers = {"User-Agent": "fcn_jax"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    # Unlike urlopen, this opener knows no files and no FTP, and follows no redirects.
    opener = OpenerDirector()
    opener.add_handler(ProxyHandler())
    opener.add_handler(_PacedHandler(pace))
    try:
        for _ in range(1 + MAX_REDIRECTS):
            request = Request(url, headers=headers)
            response = opener.open(request, timeout=TIMEOUT)
            target = response.headers.get("Location")
            if target is None or response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            url = _redirected(url, target)
    except ValueError as error:
        raise OSError(f"it leads to a URL that cannot be read: {error}") from error
    raise OSError(f"it redirects more than {MAX_REDIRECTS} times")


def _redirected(url: str, target: str) -> str:
    """Return the URL that a redirect leads to; raise OSError if it is unsafe."""
    # http.client reads the bytes of headers as Latin-1.
    target = urljoin(url, quote(target, string.punctuation, "latin-1"))
    allowed = ("https",) if url.startswith("https:") else ("http", "https")
    if urlsplit(target).scheme not in allowed:
        raise OSError(f"it redirects to {target}, want {' or '.join(allowed)}")
    return target


def _reason(error: Exception) -> str:
    """Return the first 300 characters of an error on one line.

    A server has a say in it, so characters that move the cursor are replaced.
    """
    kind = f"{type(error).__name__}: " if isinstance(error, HTTPException) else ""
    text = f"{kind}{error}"[:300]
    return "".join(c if c.isprintable() else " " for c in text)


class _Pace:
    """The pace of a download, which must not fall below `MIN_BYTES` in `PATIENCE`.

    Only bytes of the file count, so that endless headers and chunks without content
    end too.
    """

    def __init__(self) -> None:
        self._since, self._came = time.monotonic(), 0

    def add(self, size: int) -> None:
        """Count bytes of the file that have come."""
        self._came += size
        if self._came >= MIN_BYTES:
            self._since, self._came = time.monotonic(), 0

    def check(self) -> None:
        """Raise TimeoutError if too few have come."""
        if time.monotonic() - self._since > PATIENCE:
            raise TimeoutError(
                f"only {self._came:,} bytes of the file came in {PATIENCE:g} s"
            )


class _Paced(io.RawIOBase):
    """A raw stream that checks the pace before each read.

    The timeout of a socket does not suffice: it begins anew with each byte.
    """

    def __init__(self, raw: io.RawIOBase, pace: _Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._pace.check()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedHandler(HTTPHandler, HTTPSHandler):
    """Open connections, with TLS or without, whose pace is checked."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def do_open(self, http_class, req, **options):
        def respond(*args: Any, **more: Any) -> HTTPResponse:
            response = HTTPResponse(*args, **more)
            raw = _Paced(response.fp.detach(), self._pace)
            response.fp = io.BufferedReader(raw)
            return response

        def connect(*args: Any, **more: Any) -> Any:
            connection = http_class(*args, **more)
            connection.response_class = respond
            return connection

        return super().do_open(connect, req, **options)


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
