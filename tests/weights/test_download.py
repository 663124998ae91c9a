import hashlib
import itertools
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from filelock import FileLock

from fcn_jax.weights import download
from fcn_jax.weights.download import PUBLISHED, Published

CONTENT = bytes(range(256)) * 300
HALF = len(CONTENT) // 2


class Site(ThreadingHTTPServer):
    """Serves one file, in the way that a test sets, and notes what it was asked."""

    daemon_threads = False  # so that closing waits for them

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/weights/net.bin"
        self.asked = []  # the headers of each request
        self.sent = []  # the bytes of each answer
        self.status = 200
        self.headers = {"ETag": '"one"'}
        self.content = CONTENT
        self.cut = None  # after so many bytes the connection breaks
        self.tells_length = True
        self.knows_range = True
        self.knows_if_range = True
        self.content_range = "bytes {start}-{last}/{size}"
        self.before_answer = lambda: None
        self.was_left = threading.Event()  # by a client that had not got everything


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server
        site.asked.append(self.headers)
        site.before_answer()
        status, body, headers = site.status, site.content, dict(site.headers)
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
        same = self.headers["If-Range"] in site.headers.values()
        if self.path == "/moved":
            status, body, headers = 302, b"", {"Location": site.url}
        elif start and site.knows_range and (same or not site.knows_if_range):
            status, body = 206, site.content[start:]
            headers["Content-Range"] = site.content_range.format(
                start=start, last=len(site.content) - 1, size=len(site.content)
            )
            if not body:
                status = 416
        if site.tells_length:
            headers["Content-Length"] = len(body)
        body = body[: site.cut]
        site.sent.append(body)  # before a client can know, and ask again
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            site.was_left.set()

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with Site() as site:
        # Short, so that the end of a test need not wait.
        thread = threading.Thread(target=site.serve_forever, args=[0.01])
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache directory, with no proxy between a test and its server."""
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def net(site, monkeypatch):
    """Publishes the site's file as "net"."""
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    published = Published(site.url, digest, len(CONTENT))
    monkeypatch.setattr(download, "PUBLISHED", {"net": published})


def break_off(site, path, at=HALF):
    """Downloads the first bytes of the file."""
    site.cut = at
    with pytest.raises(OSError):
        download.download(Published(site.url), path)
    site.cut = None


def left_over(directory):
    """Returns the names of all files but the empty one that the lock is on."""
    names = {path.name for path in directory.iterdir()}
    return names - {".net.bin.lock"}


def test_fetch_of_a_name_gives_the_whole_file(site, net, cache):
    path = download.fetch("net")
    assert path == cache / "net.bin"
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]


def test_fetch_of_a_cached_name_asks_nobody(site, net):
    path = download.fetch("net")
    assert download.fetch("net") == path
    assert len(site.asked) == 1


def test_fetch_of_an_existing_path_gives_it_back(site, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").touch()
    assert str(download.fetch("net")) == "net"
    assert download.fetch(tmp_path) == tmp_path
    assert not site.asked


def test_fetch_without_cache_variable_uses_the_home(site, net, tmp_path, monkeypatch):
    monkeypatch.delenv("FCN_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.fetch("net") == tmp_path / ".cache" / "fcn_jax" / "net.bin"


def test_fetch_of_unknown_name_lists_the_names():
    with pytest.raises(ValueError) as caught:
        download.fetch("vgg17")
    message = str(caught.value)
    assert message.startswith("vgg17 does not exist; weights with a name are vgg16, ")
    assert message.endswith("fcn8s-atonce-pascal")


@pytest.mark.parametrize("path", ["vgg16.npy", "weights/vgg16", "./vgg16"])
def test_fetch_of_missing_path_says_so_first(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="vgg16.* does not exist; .* vgg16-keras"):
        download.fetch(path)


def test_published_files_differ_in_name_and_have_digests_of_the_right_length():
    names = {published.url.split("/")[-1] for published in PUBLISHED.values()}
    assert len(names) == len(PUBLISHED)
    lengths = "sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}|md5:[0-9a-f]{32}"
    digests = {published.digest for published in PUBLISHED.values()} - {None}
    assert all(re.fullmatch(lengths, digest) for digest in digests)


def test_cut_connection_says_how_far_it_came(site, net, cache):
    site.cut = HALF
    with pytest.raises(OSError) as caught:
        download.fetch("net")
    message = str(caught.value)
    assert f"cannot download {site.url}" in message
    assert "38,400 bytes have come, the same call resumes there" in message
    assert (cache / ".net.bin.part").read_bytes() == CONTENT[:HALF]
    assert not (cache / "net.bin").exists()


def test_second_call_gets_only_the_rest(site, net, cache):
    break_off(site, cache / "net.bin")
    assert download.fetch("net").read_bytes() == CONTENT
    first, second = site.asked
    assert first["Range"] is None
    assert (second["Range"], second["If-Range"]) == (f"bytes={HALF}-", '"one"')
    assert site.sent[1] == CONTENT[HALF:]
    assert left_over(cache) == {"net.bin"}


def test_third_call_goes_on_after_two_cuts(site, cache):
    break_off(site, cache / "net.bin", at=1000)
    break_off(site, cache / "net.bin", at=500)
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.asked[2]["Range"] == "bytes=1500-"


@pytest.mark.parametrize("etag", [{}, {"ETag": 'W/"one"'}])
def test_second_call_without_strong_etag_goes_by_the_date(site, cache, etag):
    date = "Tue, 15 Nov 1994 12:45:26 GMT"
    site.headers = etag | {"Last-Modified": date}
    break_off(site, cache / "net.bin")
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert (site.asked[1]["If-Range"], site.sent[1]) == (date, CONTENT[HALF:])


def test_second_call_without_etag_or_date_starts_anew(site, cache):
    site.headers = {}
    break_off(site, cache / "net.bin")
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.asked[1]["Range"] is None


def test_second_call_to_a_server_without_ranges_starts_anew(site, cache):
    site.knows_range = False
    break_off(site, cache / "net.bin")
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.asked[1]["Range"] is not None


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_file_that_changed_in_between_comes_whole(site, cache, knows_if_range):
    break_off(site, cache / "net.bin")
    site.content = CONTENT[::-1]
    site.headers = {"ETag": '"two"'}
    site.knows_if_range = knows_if_range
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT[::-1]
    assert left_over(cache) == {"net.bin"}


def test_file_that_changed_and_broke_off_goes_on(site, cache):
    break_off(site, cache / "net.bin")
    site.content = CONTENT[::-1]
    site.headers = {"ETag": '"two"'}
    break_off(site, cache / "net.bin", at=1000)
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT[::-1]
    assert site.asked[2]["If-Range"] == '"two"'
    assert site.sent[2] == CONTENT[::-1][1000:]


def test_file_that_shrank_in_between_comes_whole(site, cache):
    break_off(site, cache / "net.bin")
    site.content = CONTENT[:100]
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT[:100]
    assert site.asked[1]["Range"] is not None and site.asked[2]["Range"] is None


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-{last}/{size}", "bytes {start}-{last}/999999", "nonsense"],
)
def test_rest_of_another_range_starts_anew(site, cache, content_range):
    break_off(site, cache / "net.bin")
    site.content_range = content_range
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert len(site.asked) == 3 and site.asked[2]["Range"] is None


def test_html_page_in_between_keeps_the_first_half(site, cache):
    break_off(site, cache / "net.bin")
    site.content, site.headers = b"please log in", {"Content-Type": "text/html"}
    with pytest.raises(ValueError, match="HTML page"):
        download.download(Published(site.url), cache / "net.bin")
    site.content, site.headers = CONTENT, {"ETag": '"one"'}
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.sent[2] == CONTENT[HALF:]


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_right_digest_or_its_first_digits_are_accepted(site, cache, algorithm):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    for name, digits in (("whole", digest.upper()), ("prefix", digest[:8])):
        wanted = Published(site.url, f"{algorithm}:{digits}")
        download.download(wanted, cache / name)
    assert (cache / "prefix").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_wrong_digest_is_refused_and_not_kept(site, cache, algorithm):
    found = hashlib.new(algorithm, CONTENT).hexdigest()
    with pytest.raises(ValueError) as caught:
        wanted = Published(site.url, f"{algorithm}:0123abcd")
        download.download(wanted, cache / "net.bin")
    assert f"{site.url} gives a file of {algorithm} {found}, want 0123abcd" in str(
        caught.value
    )
    assert not left_over(cache)


@pytest.mark.parametrize("tells_length", [True, False])
@pytest.mark.parametrize(
    ("size", "found"), [(len(CONTENT) + 1, "76,800 bytes, want 76,801"), (99, "")]
)
def test_wrong_size_is_refused_and_not_kept(site, cache, size, found, tells_length):
    site.tells_length = tells_length
    with pytest.raises(ValueError, match=f"{site.url} gives .*{found}"):
        download.download(Published(site.url, size=size), cache / "net.bin")
    assert not left_over(cache)


@pytest.mark.parametrize("tells_length", [True, False])
def test_more_bytes_than_any_weights_have_stops(site, cache, monkeypatch, tells_length):
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    site.tells_length = tells_length
    site.content = bytes(5 * 10**7)  # more than the buffers of a connection hold
    with pytest.raises(ValueError, match="1,000"):
        download.download(Published(site.url, "sha256:00"), cache / "net.bin")
    assert not left_over(cache)
    assert site.was_left.wait(10)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"no such model", {"Content-Type": "text/html; charset=utf-8"}),
        (b"\n <!DOCTYPE html><html>404", {}),
        (b"", {}),
    ],
)
def test_html_page_is_refused_and_not_kept(site, cache, content, headers):
    site.content, site.headers = content, headers
    with pytest.raises(ValueError, match=f"{site.url} gives an HTML page"):
        download.download(Published(site.url), cache / "net.bin")
    assert not left_over(cache)


@pytest.mark.parametrize("status", [204, 404, 500])
def test_other_status_names_url_and_path(site, cache, status):
    site.status, site.content = status, b""
    with pytest.raises(OSError) as caught:
        download.download(Published(site.url), cache / "net.bin")
    message = str(caught.value)
    assert f"cannot download {site.url}: HTTP status {status}" in message
    assert "bytes have come" not in message
    assert message.endswith(
        f"download it in a browser and put it at {cache / 'net.bin'}"
    )
    assert not left_over(cache)


def test_refused_connection_names_url_and_path(cache):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/net.bin"
    with pytest.raises(OSError) as caught:
        download.download(Published(url), cache / "net.bin")
    assert f"cannot download {url}: " in str(caught.value)
    assert f"put it at {cache / 'net.bin'}" in str(caught.value)


def test_silent_server_gives_up(cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.bin"
        with pytest.raises(OSError, match="timed out"):
            download.download(Published(url), cache / "net.bin")


def test_redirect_is_followed_and_resumed(site, cache):
    moved = site.url.replace("/weights/net.bin", "/moved")
    site.cut = HALF
    with pytest.raises(OSError):
        download.download(Published(moved), cache / "net.bin")
    site.cut = None
    download.download(Published(moved), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.sent[-1] == CONTENT[HALF:]


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/net.bin"])
def test_redirect_away_from_http_is_refused(site, cache, target):
    site.status, site.headers = 302, {"Location": target}
    with pytest.raises(OSError, match=f"redirects to {target}, want http or https"):
        download.download(Published(site.url), cache / "net.bin")
    assert not left_over(cache)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "x"])
def test_url_of_another_kind_is_refused(cache, url):
    with pytest.raises(ValueError, match=f"url = '{url}' must begin with http"):
        download.download(Published(url), cache / "net.bin")
    assert not cache.exists()


def test_two_calls_at_once_download_once(site, net, monkeypatch):
    both, waiting = threading.Semaphore(0), []

    class Lock(download.FileLock):
        def acquire(self, *args, **options):
            both.release()
            return super().acquire(*args, **options)

    def before_answer():
        waiting.extend(both.acquire(timeout=10) for _ in range(2))

    monkeypatch.setattr(download, "FileLock", Lock)
    site.before_answer = before_answer  # the other is then at the lock
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(download.fetch, ["net", "net"]))
    assert waiting == [True, True]
    assert len(site.asked) == 1
    assert [path.read_bytes() for path in paths] == [CONTENT] * 2
    assert list(paths[0].parent.iterdir()) == [paths[0]]


def test_second_process_is_told_that_it_waits(site, net, cache, caplog):
    cache.mkdir()
    held = FileLock(cache / ".net.bin.lock")
    held.acquire()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(download.fetch, "net")
        while not caplog.text:
            assert not waiting.done()
            time.sleep(0.01)
        held.release()
        assert waiting.result().read_bytes() == CONTENT
    assert "waiting for the process that downloads net.bin; it holds " in caplog.text
    assert str(cache / ".net.bin.lock") in caplog.text


def test_lock_of_a_killed_process_does_not_block(site, net, cache, caplog):
    code = (
        "import filelock, os, sys\n"
        "filelock.FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    )
    lock = cache / ".net.bin.lock"
    cache.mkdir()
    killed = subprocess.run([sys.executable, "-c", code, str(lock)])
    assert killed.returncode == -9 and lock.exists()
    assert download.fetch("net").read_bytes() == CONTENT
    assert not caplog.text


def test_file_system_without_locks_is_named(site, net, cache, monkeypatch):
    def acquire(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(download.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match=f"{cache} lies on .* without locks.*FCN_JAX_CAC"):
        download.fetch("net")


def test_progress_goes_to_stderr_with_the_name(site, cache, terminal):
    download.download(Published(site.url), cache / "net.bin")
    out, err = terminal.readouterr()
    assert not out
    assert "download net.bin:   0%" in err and "0.00/76.8k" in err


class Hostile(socketserver.ThreadingTCPServer):
    """Answers each request with the pieces that a test gives, then hangs up.

    After a piece None it waits until the client hangs up.
    """

    def __init__(self, pieces):
        super().__init__(("127.0.0.1", 0), HostileHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/net.bin"
        self.pieces = pieces

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=[0.01])
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


class HostileHandler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        try:
            for piece in self.server.pieces():
                self.rfile.read() if piece is None else self.wfile.write(piece)
        except (ConnectionError, ssl.SSLError):
            pass


def drip(start, byte, *, pause=0.01):
    """Sends a byte now and then, so that no read times out."""
    yield start
    while True:
        time.sleep(pause)
        yield byte


def flood(start, piece):
    return itertools.chain([start], itertools.repeat(piece))


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MOVED = b"HTTP/1.1 302 Found\r\nLocation: "
LENGTH = OK + b"Content-Length: %s\r\n\r\n"
MANY = b"9" * 64_000
DIGEST = "sha256:0123"
# What the server sends, what is known of the file, what the error says, the limit that
# is shortened.
HOSTILE = {
    "nothing": (lambda: [], {}, "closed connection", ""),
    "no HTTP": (lambda: [b"\0\x1b[2Jhello\n" * 9], {}, "BadStatusLine", ""),
    "endless line": (lambda: flood(b"HTTP/1.1 200 ", MANY), {}, "65536", ""),
    "endless header": (lambda: flood(OK + b"X:", MANY), {}, "65536", ""),
    "endless headers": (lambda: flood(OK, b"X: 1\r\n"), {}, "100 headers", ""),
    "stalled header": (lambda: [OK + b"X:", None], {}, "timed out", "TIMEOUT"),
    "stalled body": (
        lambda: [LENGTH % b"9" + b"abc", None], {}, "timed out", "TIMEOUT"
    ),
    "slow header": (lambda: drip(OK + b"X:", b"x"), {}, "only 0 bytes", "PATIENCE"),
    "slow body": (
        lambda: drip(LENGTH % b"9999", b"x"), {}, r"only \d+ bytes", "PATIENCE"
    ),
    "slow chunk": (
        lambda: drip(CHUNKED + b"9999;", b"x"), {}, "only 0 bytes", "PATIENCE"
    ),
    "endless 1xx": (
        lambda: flood(b"", b"HTTP/1.1 100 C\r\n\r\n" * 999), {}, "only 0", "PATIENCE"
    ),
    "endless trailers": (
        lambda: flood(CHUNKED + b"1\r\na\r\n0\r\n", b"X: 1\r\n" * 999),
        {}, r"only \d bytes", "PATIENCE",
    ),
    "wide chunks": (
        lambda: flood(CHUNKED, b"1;" + MANY + b"\r\na\r\n"),
        {}, r"only \d+ bytes", "PATIENCE",
    ),
    "no length": (lambda: [OK + b"\r\nabc"], {}, "without its length", ""),
    "negative length": (lambda: [LENGTH % b"-3" + b"abc"], {}, "without its le", ""),
    "length in words": (lambda: [LENGTH % b"three" + b"abc"], {}, "without its l", ""),
    "unknown length": (
        lambda: [LENGTH % b"-3" + b"abc"], {"digest": DIGEST}, "want 0123", ""
    ),
    "length too short": (
        lambda: [LENGTH % b"3" + b"abc"], {"size": 4}, "3 bytes, want 4", ""
    ),
    "huge length": (
        lambda: flood(LENGTH % MANY[:4000], b"x" * 999), {}, "than 4,000,000,000", ""
    ),
    "endless body": (
        lambda: flood(OK + b"\r\n", b"x" * 999), {"size": 99}, "want 99", ""
    ),
    "endless chunks": (
        lambda: flood(CHUNKED, b"5\r\nabcde\r\n" * 99), {"size": 99}, "want 99", ""
    ),
    "negative chunk": (
        lambda: flood(CHUNKED + b"-1\r\n", b"x" * 999), {"size": 99}, "want 99", ""
    ),
    "huge chunk": (
        lambda: flood(CHUNKED + b"f" * 4000 + b"\r\n", b"x" * 999),
        {"size": 99}, "want 99", "",
    ),
    "chunk of no size": (lambda: [CHUNKED + b"zz\r\nabc"], {}, "IncompleteRead", ""),
    "cut chunk": (lambda: [CHUNKED + b"9\r\nabc"], {}, "IncompleteRead", ""),
    "compressed": (
        lambda: [OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"],
        {}, "compressed bytes", "",
    ),
    "unasked range": (
        lambda: [b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-2/3\r\n\r\nabc"],
        {}, "HTTP status 206", "",
    ),
    "redirect to itself": (
        lambda: [MOVED + b"/net.bin\r\n\r\n"], {}, "than 10 times", ""
    ),
    "redirect to nowhere": (lambda: [MOVED[:19] + b"\r\n\r\n"], {}, "status 302", ""),
    "redirect to no URL": (
        lambda: [MOVED + b"http://[::1\r\n\r\n"], {}, "cannot be read", ""
    ),
    "redirect to no name": (
        lambda: [MOVED + b"http://%s/\r\n\r\n" % (b"a" * 64)], {}, "cannot be read", ""
    ),
    "redirect to no port": (
        lambda: [MOVED + b"http://a:b/\r\n\r\n"], {}, "nonnumeric port", ""
    ),
    "redirect with a huge body": (
        lambda: flood(MOVED + b"/net.bin\r\nContent-Length: %d\r\n\r\n" % 1e15, b"x"),
        {}, "than 10 times", "",
    ),
    "redirect with an endless body": (
        lambda: flood(MOVED + b"/net.bin\r\n\r\n", b"x" * 999), {}, "than 10 times", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_server_gives_one_plain_error(cache, monkeypatch, name):
    pieces, known, problem, limit = HOSTILE[name]
    if limit:
        monkeypatch.setattr(download, limit, 0.05)
    with Hostile(pieces) as server, pytest.raises((OSError, ValueError)) as caught:
        download.download(Published(server.url, **known), cache / "net.bin")
    message = str(caught.value)
    assert type(caught.value) in (OSError, ValueError)
    assert server.url in message and str(cache / "net.bin") in message
    assert re.search(problem, message)
    assert message.isprintable() and len(message) < 1000
    assert not (cache / "net.bin").exists()
    if caught.type is ValueError:
        assert not left_over(cache)


@pytest.mark.parametrize("size", [b"9" * 30, b"1" + b"0" * 4000])
def test_rest_of_a_huge_range_is_refused(site, cache, size):
    break_off(site, cache / "net.bin")
    last = str(int(size) - 1).encode()
    headers = b"Content-Range: bytes %d-%s/%s\r\n" % (HALF, last, size)
    length = str(int(size) - HALF).encode()
    answer = b"HTTP/1.1 206 P\r\n%sContent-Length: %s\r\n\r\n" % (headers, length)
    with Hostile(lambda: flood(answer, b"x")) as server:
        with pytest.raises(ValueError, match="more than 4,000,000,000 bytes"):
            download.download(Published(server.url), cache / "net.bin")
    assert not (cache / "net.bin").exists()


def test_etag_that_fits_no_header_is_not_sent_back(site, cache):
    pieces = [OK + b'ETag: "a\x0b\r\n b"\r\nContent-Length: 9\r\n\r\nabc']
    with Hostile(lambda: pieces) as server, pytest.raises(OSError, match="byte 9"):
        download.download(Published(server.url), cache / "net.bin")
    download.download(Published(site.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == CONTENT
    assert site.asked[0]["If-Range"] is None


def test_slow_server_may_take_long_if_enough_comes(cache, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.4)
    monkeypatch.setattr(download, "MIN_BYTES", 1)
    pieces = itertools.islice(drip(LENGTH % b"5", b"x", pause=0.1), 6)
    with Hostile(lambda: pieces) as server:
        download.download(Published(server.url), cache / "net.bin")
    assert (cache / "net.bin").read_bytes() == b"xxxxx"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
def test_tls_is_watched_and_never_left(site, cache, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
        f"-subj /CN=a -addext subjectAltName=IP:127.0.0.1 -keyout {key} "
        f"-out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for pieces, patience, problem in (
        (flood(b"", b"HTTP/1.1 100 C\r\n\r\n"), 0.05, "only 0 bytes"),
        ([MOVED + site.url.encode() + b"\r\n\r\n"], 60, f"{site.url}, want https"),
    ):
        monkeypatch.setattr(download, "PATIENCE", patience)
        with Hostile(lambda pieces=pieces: pieces) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            url = server.url.replace("http:", "https:")
            with pytest.raises(OSError, match=problem):
                download.download(Published(url), cache / "net.bin")
    assert not site.asked
