"""Fetching, verifying and unpacking. The only network is a server of our own on 127.0.0.1."""

import contextlib
import errno
import gc
import gzip
import hashlib
import io
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retraining.cli.console import ConsoleObserver
from retraining.errors import RetrainingError
from retraining.system import archives, download, locks
from retraining.system.archives import ArchiveError, unpack
from retraining.system.download import DownloadError, Remote, UnreachableError, fetch
from retraining.system.observer import Silent
from tests import ROOT

CHUNK = 1000  # bytes, instead of the module's own size, so that small files have many
BODY = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = bytes(reversed(BODY))


# -------------------------------------------------------------------------------- the server


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next reply of `server.replies`, the last one for ever."""

    def do_GET(self):
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        reply(self)

    do_CONNECT = do_GET  # noqa: N815 - the name that http.server calls

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.replies, self.stop = [], [whole()], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def remote(self, **known):
        return Remote((f"{self.url}/net.zip",), **known)

    def asked(self, header):
        """The value of `header` in each request so far."""
        return [headers.get(header) for _, _, headers in self.requests]

    def handle_error(self, *_):
        pass  # clients that break off are what some tests are about


def whole(body=BODY, **headers):
    """A reply without range support: always all of `body`."""
    return lambda handler: handler.send(200, body, **headers)


def ranges(body=BODY, etag=None, heed_if_range=True):
    """A reply that honours Range and, unless told otherwise, If-Range."""

    def reply(handler):
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        changed = handler.headers.get("If-Range") not in (None, etag) and heed_if_range
        if not asked or changed:
            return handler.send(200, body, ETag=etag)
        start = int(asked[1])
        if start >= len(body):
            return handler.send(416, Content_Range=f"bytes */{len(body)}")
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return handler.send(206, body[start:], Content_Range=span, ETag=etag)

    return reply


def broken_off(sent, body=BODY, **headers):
    """A reply that promises all of `body` and breaks off after `sent` bytes."""
    return lambda handler: handler.send(200, body[:sent], Content_Length=len(body), **headers)


def stalled(sent, **headers):
    """As `broken_off`, but the connection stays open."""

    def reply(handler):
        broken_off(sent, **headers)(handler)
        handler.server.stop.wait(10)

    return reply


def status(code, **headers):
    return lambda handler: handler.send(code, b"<html>no</html>", **headers)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Short waits, small chunks, and no proxy from the environment the tests run in."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    monkeypatch.setattr(locks, "LOCK_POLL", 0.01)
    monkeypatch.setattr(download, "CHUNK", CHUNK)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "models" / "net.zip"


@pytest.fixture
def closed_port():
    """A port of 127.0.0.1 on which nobody listens."""
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))  # held, so that nobody else gets it meanwhile
        yield holder.getsockname()[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_one_line(error):
    """`error` reads as one plain line."""
    text = str(error.value)
    assert "\n" not in text
    assert not re.search(r"Pool|Errno|object at|Max retries|Error\(", text), text


# --------------------------------------------------------------------------- fetching: whole


def test_whole_file(server, target):
    assert fetch(server.remote(size=len(BODY), sha256=SHA256), target) == target
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["net.zip"]  # neither part nor mark nor lock is left
    assert server.asked("Range") == [None]
    assert server.asked("Accept-Encoding") == ["identity"]


def test_upper_case_checksum(server, target):
    assert fetch(server.remote(sha256=SHA256.upper()), target).read_bytes() == BODY


def test_existing_target_is_left_alone(server, target):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    target.with_name("net.zip.lock").mkdir()  # not even a lock is wanted for it
    assert fetch(server.remote(sha256=SHA256), target) == target
    assert target.read_bytes() == b"mine"
    assert server.requests == []


def test_the_observer_shows_progress(server, target, capsys):
    fetch(server.remote(), target, ConsoleObserver(quiet=False))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "net.zip" in shown.err
    assert re.fullmatch(r"net\.zip: 0\.0 of 0\.0 MB, [\d.]+ MB/s\n", shown.err)

    fetch(server.remote(), target.with_name("again.zip"), ConsoleObserver(quiet=True))
    fetch(server.remote(), target.with_name("silent.zip"))
    assert capsys.readouterr() == ("", "")


def test_redirect(server, target):
    server.replies = [status(302, Location="/elsewhere"), whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert [path for _, path, _ in server.requests] == ["/net.zip", "/elsewhere"]


def test_ten_redirects_are_followed_and_no_more(server, target):
    server.replies = [status(302, Location=f"/{n}") for n in range(10)] + [whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    target.unlink()
    server.requests.clear()
    server.replies = [status(302, Location=f"/{n}") for n in range(11)] + [whole()]
    with pytest.raises(DownloadError, match="Exceeded 10 redirects"):
        fetch(server.remote(), target)
    assert len(server.requests) == 11


def test_redirects_without_end(server, target):
    server.replies = [status(302, Location="/net.zip")]
    with pytest.raises(DownloadError, match="redirects") as error:
        fetch(server.remote(), target)
    assert_one_line(error)


def test_bytes_are_kept_as_they_are_on_the_server(server, target):
    packed = gzip.compress(BODY)  # labelled so by servers that take .tgz for a compressed .tar
    server.replies = [whole(packed, Content_Encoding="gzip")]
    assert fetch(server.remote(), target).read_bytes() == packed


def test_body_without_length(server, target):
    server.replies = [whole(Content_Length=None)]
    assert fetch(server.remote(), target).read_bytes() == BODY


# -------------------------------------------------------------------------- fetching: resumed


@pytest.mark.parametrize("etag", ['"one"', None])
def test_broken_off_then_resumed(server, target, etag):
    server.replies = [broken_off(5 * CHUNK, ETag=etag), ranges(etag=etag)]
    fetch(server.remote(sha256=SHA256), target)
    assert target.read_bytes() == BODY
    assert server.asked("Range") == [None, "bytes=5000-"]
    assert server.asked("If-Range") == [None, etag]


def test_resumed_by_a_later_run(server, target, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.replies = [broken_off(3 * CHUNK, ETag='"one"'), ranges(etag='"one"')]
    with pytest.raises(DownloadError, match="the connection was lost"):
        fetch(server.remote(), target)
    assert names(target.parent) == ["net.zip.part", "net.zip.part.mark"]

    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("Range") == [None, "bytes=3000-"]
    assert names(target.parent) == ["net.zip"]


def test_date_serves_where_the_etag_is_weak(server, target):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.replies = [broken_off(CHUNK, ETag='W/"one"', Last_Modified=date), ranges(etag=date)]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("If-Range") == [None, date]


def test_nothing_is_appended_that_could_not_be_recognised(server, target):
    server.replies = [broken_off(5 * CHUNK), ranges()]  # neither mark nor checksum
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("Range") == [None, None]


def test_server_without_ranges(server, target):
    server.replies = [broken_off(5 * CHUNK, ETag='"one"'), whole(ETag='"one"')]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("Range") == [None, "bytes=5000-"]


@pytest.mark.parametrize("heed_if_range", [True, False])
def test_remote_changed_meanwhile(server, target, heed_if_range):
    changed = ranges(OTHER, etag='"two"', heed_if_range=heed_if_range)
    server.replies = [broken_off(5 * CHUNK, ETag='"one"'), changed]
    assert fetch(server.remote(), target).read_bytes() == OTHER
    assert server.asked("If-Range")[:2] == [None, '"one"']


@pytest.mark.parametrize("content_range", ["bytes 4000-10239/10240", "nonsense", None])
def test_range_not_asked_for(server, target, content_range):
    def wrong_range(handler):
        handler.send(206, BODY[4000:], Content_Range=content_range, ETag='"one"')

    server.replies = [broken_off(5 * CHUNK, ETag='"one"'), wrong_range, whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("Range") == [None, "bytes=5000-", None]


def test_part_longer_than_the_remote_file(server, target):
    target.parent.mkdir()
    target.with_name("net.zip.part").write_bytes(BODY + b"more")
    server.replies = [ranges()]
    assert fetch(server.remote(sha256=SHA256), target).read_bytes() == BODY  # after a 416
    assert server.asked("Range") == ["bytes=10244-", None]


def test_complete_part_only_wants_its_name(server, target):
    target.parent.mkdir()
    target.with_name("net.zip.part").write_bytes(BODY)
    assert fetch(server.remote(size=len(BODY), sha256=SHA256), target).read_bytes() == BODY
    assert server.requests == []


def test_as_many_tries_as_bring_it_further(server, target):
    steps = [broken_off(CHUNK, ETag='"one"')]
    for start in range(CHUNK, 9 * CHUNK, CHUNK):  # more of them than TRIES

        def step(handler, start=start):
            span = f"bytes {start}-{start + CHUNK - 1}/{len(BODY)}"  # less than was asked for
            handler.send(206, BODY[start : start + CHUNK], Content_Range=span)

        steps.append(step)
    server.replies = [*steps, ranges(etag='"one"')]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert len(server.requests) == 10 > download.TRIES


def test_stalled_then_resumed(server, target, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.2)
    server.replies = [stalled(2 * CHUNK, ETag='"one"'), ranges(etag='"one"')]
    started = time.monotonic()
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert time.monotonic() - started < 3
    assert server.asked("Range") == [None, "bytes=2000-"]


def test_stalled_for_good(server, target, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.1)
    server.replies = [stalled(2 * CHUNK)]
    with pytest.raises(DownloadError, match=r"no data arrived for 0\.1 seconds") as error:
        fetch(server.remote(), target)
    assert_one_line(error)
    assert len(server.requests) == download.TRIES


# -------------------------------------------------------------------- fetching: what is refused


def test_wrong_checksum(server, target):
    server.replies = [whole(OTHER)]
    with pytest.raises(DownloadError, match="SHA-256") as error:
        fetch(server.remote(size=len(BODY), sha256=SHA256), target)
    assert_one_line(error)
    assert not isinstance(error.value, UnreachableError)
    assert names(target.parent) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [len(BODY) - 7, None])
def test_wrong_size(server, target, length):
    server.replies = [whole(BODY[:-7], Content_Length=length)]
    with pytest.raises(DownloadError, match="10233 bytes instead of 10240") as error:
        fetch(server.remote(size=len(BODY)), target)
    assert_one_line(error)
    assert names(target.parent) == []


def test_overlong_body_is_not_read_to_its_end(server, target):
    ended = []

    def overlong(handler):
        handler.send(200, Content_Length=None)
        for _ in range(500):
            handler.wfile.write(b"x" * 100_000)
        ended.append(True)

    server.replies = [overlong]
    with pytest.raises(DownloadError, match="bytes instead of 10240"):
        fetch(server.remote(size=len(BODY)), target)
    assert names(target.parent) == []
    assert not ended


def test_page_of_a_hotel_network_does_not_cost_what_has_arrived(server, target):
    target.parent.mkdir()
    target.with_name("net.zip.part").write_bytes(BODY[:5000])
    server.replies = [status(200), ranges()]
    with pytest.raises(DownloadError, match="15 bytes instead of 10240"):
        fetch(server.remote(size=len(BODY), sha256=SHA256), target)
    assert fetch(server.remote(size=len(BODY), sha256=SHA256), target).read_bytes() == BODY
    assert server.asked("Range") == ["bytes=5000-", "bytes=5000-"]


def test_404_is_not_retried(server, target):
    server.replies = [status(404)]
    with pytest.raises(DownloadError) as error:
        fetch(server.remote(), target)
    assert str(error.value) == (
        f"cannot download {server.url}/net.zip: the server answers 404 Not Found"
    )
    assert isinstance(error.value, RetrainingError)
    assert not isinstance(error.value, UnreachableError)
    assert len(server.requests) == 1
    assert names(target.parent) == []


def test_500_then_fine(server, target):
    server.replies = [status(500), status(503), whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert len(server.requests) == 3


def test_500_for_good(server, target):
    server.replies = [status(500)]
    with pytest.raises(DownloadError, match="500 Internal Server Error"):
        fetch(server.remote(), target)
    assert len(server.requests) == download.TRIES


def test_second_address_serves_where_the_first_fails(server, target):
    remote = Remote((f"{server.url}/a", f"{server.url}/b", f"{server.url}/c"), sha256=SHA256)
    server.replies = [status(404), whole(OTHER), whole()]
    assert fetch(remote, target).read_bytes() == BODY
    assert [path for _, path, _ in server.requests] == ["/a", "/b", "/c"]


def test_wrong_content_is_not_fetched_again_by_http(server, target, monkeypatch):
    monkeypatch.setattr(download, "_https_first", lambda url: [url, f"{url}-by-http"])
    server.replies = [whole(OTHER)]
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch(server.remote(sha256=SHA256), target)
    assert [path for _, path, _ in server.requests] == ["/net.zip"]


def test_proxy_that_wants_a_password(server, target):
    server.replies = [status(407)]
    with pytest.raises(UnreachableError, match="the proxy requires a user name and password"):
        fetch(server.remote(), target)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/f", "net.zip", "http://[/f", "http://h:99999/"])
def test_no_http_address(target, url):
    with pytest.raises(DownloadError, match=re.escape(f"cannot download {url}")) as error:
        fetch(Remote((url,)), target)
    assert_one_line(error)


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "models").write_text("a file where a folder is wanted")
    target = tmp_path / "models" / "net.zip"
    with pytest.raises(DownloadError, match=re.escape(f"cannot write {target}: ")) as error:
        fetch(server.remote(), target)
    assert_one_line(error)
    assert server.requests == []


def test_disk_full(server, target, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match=r"net\.zip: No space left on device$"):
        fetch(server.remote(sha256=SHA256), target)
    assert names(target.parent) == ["net.zip.part"]  # to go on from, when there is room again


# ----------------------------------------------------------------- fetching: the wrong file

PORTAL = b"<html>Please log in</html>"


def good(path):
    """A check that takes BODY only."""
    if path.read_bytes() != BODY:
        raise RetrainingError(f"{path} is another file")


@pytest.mark.parametrize(
    "wrong",
    [
        whole(PORTAL, Content_Type="text/html"),
        whole(BODY[:5000], Content_Length=None),  # cut, and nothing tells
        whole(BODY[:5000]),
        whole(b""),
        whole(OTHER, ETag='"one"'),
    ],
)
def test_a_wrong_download_is_removed_and_the_next_call_tries_again(server, target, wrong):
    server.replies = [wrong, whole()]
    with pytest.raises(DownloadError, match="is another file") as error:
        fetch(server.remote(), target, check=good)
    assert_one_line(error)
    assert names(target.parent) == []
    assert fetch(server.remote(), target, check=good).read_bytes() == BODY
    assert names(target.parent) == ["net.zip"]


def test_the_second_address_serves_where_the_first_has_a_portal(server, target):
    server.replies = [whole(PORTAL), whole()]
    remote = Remote((f"{server.url}/a", f"{server.url}/b"))
    assert fetch(remote, target, check=good).read_bytes() == BODY


def test_a_wrong_file_that_is_there_is_moved_aside_with_a_line(server, target, capsys):
    target.parent.mkdir()
    target.write_bytes(PORTAL)
    shown = ConsoleObserver(quiet=False)
    assert fetch(server.remote(), target, shown, good).read_bytes() == BODY
    assert target.with_name("net.zip.refused").read_bytes() == PORTAL
    said = capsys.readouterr().err.splitlines()[0]
    assert said == f"{target} is another file; moved it to {target}.refused; downloading again"
    assert fetch(server.remote(), target, shown, good) == target
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [None, 10 * len(BODY)])
def test_a_body_without_end_is_cut_and_removed(server, target, monkeypatch, length):
    def endless(handler):
        handler.send(200, b"", Content_Length=length)
        with contextlib.suppress(OSError):
            while not handler.server.stop.is_set():
                handler.wfile.write(bytes(CHUNK))

    monkeypatch.setattr(download, "MAX_BYTES", len(BODY))
    server.replies = [endless]
    with pytest.raises(DownloadError, match="more than 0 MiB, so it is another file"):
        fetch(server.remote(), target)
    assert names(target.parent) == []


def dripping(prefix):
    """A reply that sends `prefix`, then a byte every few milliseconds for ever."""

    def reply(handler):
        with contextlib.suppress(OSError):
            handler.wfile.write(prefix)
            while not handler.server.stop.wait(0.02):
                handler.wfile.write(b"a")

    return reply


DRIPS = {
    "status": b"",
    "header": b"HTTP/1.1 200 OK\r\nX-Long: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n",
    "body without length": b"HTTP/1.1 200 OK\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n",
}


@pytest.mark.parametrize("limit", ["SLOW_SECONDS", "MOST_SECONDS"])
@pytest.mark.parametrize("where", DRIPS)
def test_a_server_that_drips_is_given_up(server, target, monkeypatch, where, limit):
    monkeypatch.setattr(download, limit, 0.2)
    monkeypatch.setattr(download, "POLL", 0.05)
    server.replies = [dripping(DRIPS[where])]
    said = {"SLOW_SECONDS": "less than 60 kB arrived within", "MOST_SECONDS": "not complete after"}
    with pytest.raises(DownloadError, match=said[limit]) as error:
        fetch(server.remote(), target)
    assert_one_line(error)
    assert names(target.parent) == []


def test_a_transfer_that_was_given_up_writes_nothing_more(server, target):
    target.parent.mkdir()
    part = download._Part(target, server.remote())
    transfer = download._Transfer(f"{server.url}/net.zip", part, Silent())
    transfer.stop()
    with pytest.raises(DownloadError, match="given up"):
        transfer.run()
    assert names(target.parent) == []


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://[v1.x/",
        "http://h:99999/",
        "http://h:port/",
        "http://" + "a" * 70 + ".com/",
        "http://" + "a." * 200,
        "http://./",
        "http:///nothing",
        "http://a b/",
        "http://\u00e9\u00ff\x80/",
        "//[",
        "ftp://127.0.0.1/net.zip",
        "file:///etc/passwd",
        "javascript:0",
        "http://*.example.org/",
        "http://%zz/",
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # requests leaves a socket to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_invalid_redirect_is_one_line(server, target, location):
    server.replies = [status(302, Location=location)]
    with pytest.raises(DownloadError) as error:
        fetch(server.remote(), target)
    assert_one_line(error)
    assert names(target.parent) == []
    del error
    gc.collect()


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_the_body_of_a_redirect_is_not_read(server, target, encoding):
    """requests would read all of it into memory, and decompress it."""
    sent = []

    def endless(handler):
        handler.send(302, Location="/net.zip", Content_Length=None, Content_Encoding=encoding)
        for _ in range(400):
            with contextlib.suppress(OSError):
                handler.wfile.write(bytes(1 << 18))
                sent.append(1 << 18)

    server.replies = [endless, whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert sum(sent) < 50 << 20  # what the buffers of the system hold


def test_a_servers_own_words_are_cut(server, target):
    server.replies = [lambda handler: handler.send_error(404, "no " * 9000)]
    with pytest.raises(DownloadError, match="the server answers 404 no no") as error:
        fetch(server.remote(), target)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Length": "9" * 5000},
        {"Content_Length": "-5"},
        {"Content_Length": "\u00b2"},
        {"Content_Length": None, "Transfer_Encoding": "chunked"},
        {"ETag": '"' + "x" * 5000 + '"', "Content_Length": len(BODY) + 5},
    ],
)
def test_invalid_headers_are_one_line(server, target, headers):
    server.replies = [whole(**headers)]
    with contextlib.suppress(DownloadError):
        fetch(server.remote(sha256=SHA256), target)
    assert set(names(target.parent)) <= {"net.zip", "net.zip.part"}


USELESS = {
    "without mark": lambda part: part.write_bytes(b"some"),
    "empty": lambda part: part.touch(),
    "link": lambda part: part.symlink_to(part.with_name("mine")),
    "pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize("kind", USELESS)
def test_a_part_that_cannot_be_used_is_removed(server, target, kind):
    target.parent.mkdir()
    mine, part = target.with_name("mine"), target.with_name("net.zip.part")
    mine.write_bytes(b"some")
    USELESS[kind](part)
    server.replies = [status(404)]
    with pytest.raises(DownloadError, match="404"):
        fetch(server.remote(), target)
    assert names(target.parent) == ["mine"]
    server.replies = [whole()]
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert mine.read_bytes() == b"some"


@pytest.mark.parametrize("mark", ["two\nlines", "x" * 5000, "\0"])
def test_a_mark_that_no_header_can_hold_is_none(server, target, mark):
    target.parent.mkdir()
    target.with_name("net.zip.part").write_bytes(BODY[:5000])
    target.with_name("net.zip.part.mark").write_text(mark)
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert server.asked("Range") == [None]


# --------------------------------------------------------------------- fetching: no way there


def test_nobody_listening(target, closed_port):
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"cannot download http://127.0.0.1:{closed_port}/f"):
        fetch(Remote((f"http://127.0.0.1:{closed_port}/f",)), target)
    assert time.monotonic() - started < 3


def test_unknown_host(target, monkeypatch):
    asked = []

    def unknown(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnreachableError) as error:
        fetch(Remote(("http://models.example.org/f",)), target)
    reason = "the host's name cannot be resolved"  # once, though https:// was tried as well
    assert str(error.value) == f"cannot download http://models.example.org/f: {reason}"
    assert asked == ["models.example.org"] * 2


def test_name_server_that_never_answers(target, monkeypatch):
    monkeypatch.setattr(download, "REACH_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="no answer") as error:
        fetch(Remote(("http://models.example.org/f", "http://mirror.example.org/f")), target)
    assert time.monotonic() - started < 2  # for all addresses together
    assert_one_line(error)


def test_redirect_to_where_nobody_listens(server, target, closed_port):
    server.replies = [status(302, Location=f"http://127.0.0.1:{closed_port}/")]
    with pytest.raises(UnreachableError) as error:
        fetch(server.remote(), target)
    assert_one_line(error)
    assert len(server.requests) == 1


def test_reason_is_not_that_of_an_error_being_handled(server, target, closed_port):
    server.replies = [status(302, Location=f"http://127.0.0.1:{closed_port}/")]
    try:
        raise FileNotFoundError(errno.ENOENT, "no graph in models")
    except FileNotFoundError:
        with pytest.raises(UnreachableError) as error:
            fetch(server.remote(), target)
    assert "no graph" not in str(error.value)


def test_no_secure_connection(server, target):
    with pytest.raises(DownloadError, match="cannot make a secure connection: ") as error:
        fetch(Remote((server.url.replace("http://", "https://"),)), target)
    assert_one_line(error)
    assert not isinstance(error.value, UnreachableError)


def test_unreachable_only_if_all_are(server, target, closed_port):
    server.replies = [status(404)]
    remote = Remote((f"http://127.0.0.1:{closed_port}/f", f"{server.url}/f"))
    with pytest.raises(DownloadError, match=f"{closed_port}/f: .*; .*404") as error:
        fetch(remote, target)
    assert not isinstance(error.value, UnreachableError)


def test_https_first_then_http_through_the_proxy(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("https_proxy", server.url)
    server.replies = [status(502), whole()]
    assert fetch(Remote(("http://models.example.org/f",)), target).read_bytes() == BODY
    assert [request[:2] for request in server.requests] == [
        ("CONNECT", "models.example.org:443"),
        ("GET", "http://models.example.org/f"),
    ]


@pytest.mark.parametrize(
    ("url", "by_https"),
    [
        ("http://example.org/f?a=b", "example.org:443"),
        ("http://8.8.8.8/f", "8.8.8.8:443"),
        ("http://example.org:8080/f", None),
        ("http://192.168.1.4/f", None),
        ("http://[::1]/f", None),
        ("http://nas/f", None),
        ("http://nas.local/f", None),
    ],
)
def test_https_is_tried_first_on_public_hosts(server, target, monkeypatch, url, by_https):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("https_proxy", server.url)
    server.replies = [status(502)] * bool(by_https) + [whole()]
    assert fetch(Remote((url,)), target).read_bytes() == BODY
    asked = [("CONNECT", by_https)] * bool(by_https) + [("GET", url)]
    assert [request[:2] for request in server.requests] == asked


def test_http_is_never_tried_where_https_was_asked_for(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("https_proxy", server.url)
    server.replies = [status(502), whole()]
    with pytest.raises(DownloadError):
        fetch(Remote(("https://example.org/f",)), target)
    assert [request[:2] for request in server.requests] == [("CONNECT", "example.org:443")]


def test_proxy_that_refuses(server, target, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    server.replies = [status(403)]
    with pytest.raises(UnreachableError, match=r"cannot connect through the proxy: .*403") as error:
        fetch(Remote(("https://models.example.org/f",)), target)
    assert_one_line(error)


def test_proxy_that_is_not_there(target, monkeypatch, closed_port):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(UnreachableError, match=f"the proxy 127.0.0.1:{closed_port}: ") as error:
        fetch(Remote(("https://models.example.org/f",)), target)
    assert_one_line(error)


# ------------------------------------------------------------------------- fetching: two at once


def slowly(handler):
    time.sleep(0.3)
    handler.send(200, BODY)


def test_two_threads_fetch_once(server, target, capsys):
    server.replies = [slowly]
    shown = ConsoleObserver(quiet=False)
    arguments = server.remote(), target, shown
    threads = [threading.Thread(target=fetch, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1
    assert names(target.parent) == ["net.zip"]
    assert capsys.readouterr().err.count("waiting for another run") == 3  # once each


def test_two_processes_fetch_once(server, target):
    server.replies = [slowly]
    lines = (
        "import sys; from pathlib import Path",
        "from retraining.system.download import Remote, fetch",
        "fetch(Remote((sys.argv[1],)), Path(sys.argv[2]))",
    )
    command = [sys.executable, "-c", "\n".join(lines), f"{server.url}/f", str(target)]
    root = ROOT
    runs = [subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert target.read_bytes() == BODY
    assert len(server.requests) == 1


def test_lock_left_by_a_killed_run_does_not_hold(server, target):
    target.parent.mkdir()
    target.with_name("net.zip.lock").touch()
    assert fetch(server.remote(), target).read_bytes() == BODY


def test_lock_of_a_file_that_its_holder_removed_is_none(tmp_path):
    holders, most = [], []

    def hold_often():
        for _ in range(50):
            with locks.lock(tmp_path / "net.zip", Silent()):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0)
                holders.pop()

    threads = [threading.Thread(target=hold_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 200
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks_is_no_obstacle(server, target, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert fetch(server.remote(), target).read_bytes() == BODY
    assert names(target.parent) == ["net.zip"]


# --------------------------------------------------------------------------------- unpacking

FILES = {"net/graph.pb": b"graph" * 700, "net/sub/labels.txt": b"daisy\n", "README": b"read me"}


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, *members, mode="w:gz"):
    """Write a tar of `members`: pairs of name and content, or TarInfo objects without content."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                archive.addfile(info(member[0], size=len(member[1])), io.BytesIO(member[1]))
    return path


def info(name, **fields):
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar_header(kind, content):
    """The blocks of a header of a tar that extends the next: [its own block, its content]."""
    content += bytes(-len(content) % tarfile.BLOCKSIZE)
    return [info("h", type=kind.encode(), size=len(content)).tobuf(), content]


def sparse_header():
    """A header of GNU's old sparse files, which says that more of it follows."""
    block = bytearray(info("s", type=b"S").tobuf(tarfile.GNU_FORMAT))
    block[386:482], block[482] = b"00000000001\0" * 8, 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.fixture
def outside(tmp_path):
    """Where nothing may appear; `outside / "into"` is unpacked into."""
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@pytest.fixture
def into(outside):
    (outside / "into").mkdir()
    return outside / "into"


@pytest.fixture(params=["zip", "tgz", "tar"])
def archive(request, tmp_path):
    """A good archive of FILES and a folder, under a name that does not specify its kind."""
    path = tmp_path / "archive.bin"
    if request.param == "zip":
        return zipped(path, {"net/": b"", **FILES})
    folder = info("net/", type=tarfile.DIRTYPE)
    return tarred(path, folder, *FILES.items(), mode="w:gz" if request.param == "tgz" else "w")


def assert_refused(path, into, match, max_bytes=archives.MAX_BYTES):
    """Unpacking fails in one line and leaves nothing behind, inside or out."""
    with pytest.raises(ArchiveError, match=match) as error:
        unpack(path, into, max_bytes=max_bytes)
    assert_one_line(error)
    assert str(error.value).startswith(f"cannot unpack {path}: ")
    assert [path for path in into.parent.rglob("*") if not path.is_dir()] == []


def test_unpack(archive, into):
    assert unpack(archive, into) == [into / name for name in FILES]
    found = {path: path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert found == {into / name: content for name, content in FILES.items()}


def test_unpack_makes_the_folder(archive, tmp_path):
    unpack(archive, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "README").read_bytes() == b"read me"


def test_existing_file_is_not_overwritten(archive, into):
    (into / "net").mkdir()
    (into / "net" / "graph.pb").write_bytes(b"mine")
    assert unpack(archive, into) == [into / name for name in FILES]
    assert (into / "net" / "graph.pb").read_bytes() == b"mine"
    assert (into / "net" / "sub" / "labels.txt").read_bytes() == b"daisy\n"


def test_what_was_there_stays_when_an_archive_is_refused(tmp_path, into):
    (into / "a").write_bytes(b"mine")
    path = tarred(tmp_path / "t", ("a", b"new"), ("b", b"new"), ("../c", b"new"))
    with pytest.raises(ArchiveError):
        unpack(path, into)
    assert names(into) == ["a"]
    assert (into / "a").read_bytes() == b"mine"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_unpacked_files_get_the_usual_permissions(archive, into):
    (into.parent / "usual").touch()
    usual = (into.parent / "usual").stat().st_mode
    assert [path.stat().st_mode for path in unpack(archive, into)] == [usual] * 3


HOSTILE = [
    "../evil",
    "a/../../evil",
    "a/..",
    ".. /evil",
    "/evil",
    "C:/evil",
    "a/C:evil",
    "..\\evil",
    "a\\evil",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_hostile_paths(tmp_path, into, name, kind):
    if kind == "zip":
        path = zipped(tmp_path / "archive", {"good": b"1", name: b"evil"})
    else:
        path = tarred(tmp_path / "archive", ("good", b"1"), (name, b"evil"))
    assert_refused(path, into, f"its member {re.escape(repr(name))} has a forbidden path")


def test_null_byte_in_a_zip_path(tmp_path, into):
    path = zipped(tmp_path / "archive", {"evilX.txt": b"evil"})
    path.write_bytes(path.read_bytes().replace(b"evilX", b"evil\0"))
    assert_refused(path, into, r"its member 'evil\\x00.txt' has a forbidden path")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path, into, kind):
    member = info("evil", type=kind, linkname="../target")
    path = tarred(tmp_path / "archive", ("good", b"1"), member, ("evil/x", b"2"))
    assert_refused(path, into, "its member 'evil' is a link, a device or sparse")


def test_sparse_bomb(tmp_path, into):
    hole = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "3000000"}
    path = tarred(tmp_path / "bomb", info("evil", pax_headers=hole))
    assert_refused(path, into, "its member 'evil' is a link, a device or sparse", max_bytes=10**5)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_in_a_zip(tmp_path, into, kind):
    member = zipfile.ZipInfo("evil")
    member.create_system = 3  # Unix
    member.external_attr = (kind | 0o777) << 16
    path = zipped(tmp_path / "archive", {"good": b"1", member: b"../target"})
    assert_refused(path, into, "its member 'evil' is a link or a device")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets few users make links")
def test_link_in_the_folder_is_not_followed_out_of_it(tmp_path, into):
    (into / "sub").symlink_to(into.parent)
    with pytest.raises(ArchiveError, match="its member 'sub/evil' would follow a link"):
        unpack(zipped(tmp_path / "archive", {"sub/evil": b"evil"}), into)
    assert names(into.parent) == ["into"]


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_bomb(tmp_path, into, kind):
    files = {"a": bytes(60_000), "b": bytes(60_000)}
    path = tmp_path / "bomb"
    path = zipped(path, files) if kind == "zip" else tarred(path, *files.items())
    assert path.stat().st_size < 1000
    assert_refused(path, into, "more bytes than allowed", max_bytes=119_999)
    assert unpack(path, into, max_bytes=125_000) == [into / "a", into / "b"]


def test_bomb_among_what_is_already_there(tmp_path, into):
    (into / "bomb").touch()
    path = tarred(tmp_path / "bomb", ("bomb", bytes(200_000)), ("good", b"1"))
    with pytest.raises(ArchiveError, match="more bytes than allowed"):
        unpack(path, into, max_bytes=100_000)


def test_zip_that_lies_about_its_sizes(tmp_path, into):
    path = zipped(tmp_path / "bomb", {"a": bytes(60_000)})
    data = path.read_bytes()
    assert data.count((60_000).to_bytes(4, "little")) == 2
    path.write_bytes(data.replace((60_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert_refused(path, into, "it is damaged", max_bytes=1000)


def test_tar_header_that_would_fill_the_memory(tmp_path, into):
    path = tarred(tmp_path / "bomb", info("x" * 2_000_000))  # its name is in an extra header
    assert_refused(path, into, "oversized header")


PAX_OF_GLOBALS = tarfile.TarInfo.create_pax_global_header


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([b"".join(tar_header("x", b"9 a=bcde\n" * 9000))] * 20, id="pax"),
        pytest.param([b"".join(tar_header("L", b"a" * 90_000))] * 20, id="long names"),
        pytest.param([sparse_header(), (b"1" * 504 + b"\1" + bytes(7)) * 3000], id="sparse"),
        pytest.param([PAX_OF_GLOBALS({f"k{i}": "v" for i in range(200)})], id="defaults"),
        pytest.param([b"".join(tar_header("x", b"1" * 90_000))], id="digits"),
    ],
)
def test_headers_that_would_fill_the_memory_or_take_hours(tmp_path, into, headers):
    """tarfile keeps them all, copies defaults for each member, and searches digits repeatedly."""
    path = tmp_path / "bomb"
    path.write_bytes(b"".join(headers) + info("f").tobuf() + bytes(1024))
    assert_refused(path, into, "it has an? (oversized header|header of nothing but digits)")


def test_headers_of_all_members_together_have_a_limit(tmp_path, into, monkeypatch):
    path = tarred(
        tmp_path / "bomb", *(info(f"{number}{'x' * 2000}/", type=b"5") for number in "ab")
    )
    monkeypatch.setattr(archives, "MAX_HEADERS", 5000)
    assert_refused(path, into, "oversized header")


def test_a_zip_that_lists_too_much_is_refused_before_the_list_is_read(tmp_path, into, monkeypatch):
    path = zipped(tmp_path / "many", {str(number): b"" for number in range(2000)})
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 70_000)
    assert_refused(path, into, "oversized list of members")


def test_a_long_name_is_cut_in_the_message(tmp_path, into):
    path = zipped(tmp_path / "long", {"/" + "x" * 50_000: b""})
    assert_refused(path, into, "its member '/x{79}' has a forbidden path")


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_too_many_members(tmp_path, into, kind):
    files = {str(number): b"" for number in range(11)}
    path = tmp_path / "many"
    path = zipped(path, files) if kind == "zip" else tarred(path, *files.items())
    with pytest.raises(ArchiveError, match=r"many.*: it has more than 10 files and folders"):
        unpack(path, into, max_members=10)
    assert not list(into.iterdir())
    assert len(unpack(path, into, max_members=11)) == 11


def test_corrupt_zip(tmp_path, into):
    path = zipped(tmp_path / "archive", FILES, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"daisy\n", b"dairy\n"))
    assert_refused(path, into, r"it is damaged \(Bad CRC-32 for file 'net/sub/labels.txt'\)")


def test_unusual_compression(tmp_path, into):
    path = zipped(tmp_path / "archive", {"a": b"1"}, zipfile.ZIP_BZIP2)
    assert_refused(path, into, "its member 'a' is compressed in an unusual way")


def test_corrupt_gzip_checksum(tmp_path, into):
    path = tarred(tmp_path / "archive", *FILES.items())
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the first byte of the CRC
    path.write_bytes(data)
    assert_refused(path, into, "it is damaged .*CRC")


def test_corrupt_tar_header(tmp_path, into):
    path = tarred(tmp_path / "archive", ("a", b"1"), ("evil", b"2"), ("b", b"3"), mode="w")
    path.write_bytes(path.read_bytes().replace(b"evil", b"EVIL"))
    assert_refused(path, into, "it is damaged")


@pytest.mark.parametrize("left", [0.3, 0.6, 0.65])
def test_truncated(archive, into, left):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * left)])  # of the tar, 0.65 is just the end mark off
    assert_refused(archive, into, "it is damaged")


def test_truncated_gzip_trailer(tmp_path, into):
    path = tarred(tmp_path / "archive", *FILES.items())
    path.write_bytes(path.read_bytes()[:-4])  # all members are there, the checksum is not
    assert_refused(path, into, "it is damaged")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"\n<!DOCTYPE html><html>Please log in</html>",
            "it is not a zip or tar file but a web page",
        ),
        (b"", "it is empty$"),
        (b"\xff\xd8\xff a photo" * 100, "it is not a zip or tar file$"),
        (gzip.compress(b"not a tar" * 1000), "it is damaged"),
        (b"PK\x03\x04" + bytes(1000), "it is damaged"),
    ],
)
def test_not_an_archive(tmp_path, into, content, said):
    path = tmp_path / "net.zip"
    path.write_bytes(content)
    assert_refused(path, into, said)


def test_archive_that_is_not_there(tmp_path, into):
    with pytest.raises(DownloadError, match=r"cannot unpack .*net\.zip into .*into: ") as error:
        unpack(tmp_path / "net.zip", into)
    assert_one_line(error)


def test_folder_that_cannot_be_unpacked_into(archive, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="cannot unpack") as error:
        unpack(archive, tmp_path / "file")
    assert_one_line(error)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_module_does_without_slow_imports():
    slow = "{'tensorflow', 'requests', 'tqdm'}"
    code = f"import sys, retraining.system.download; print({slow} & {{*sys.modules}})"
    root = ROOT
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert shown.stdout == "set()\n"
