"""Downloads one file from the web completely or not at all, and checks its content."""

import hashlib
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from retraining.errors import RetrainingError
from retraining.system.locks import lock
from retraining.system.observer import Observer, Silent

if TYPE_CHECKING:
    from requests import Response

REACH_TIMEOUT = 6.0  # seconds in which one of the addresses must answer; all are tried at once
CONNECT_TIMEOUT = 4.0  # seconds, for each IP address of a host
READ_TIMEOUT = 20.0  # seconds without a byte
TRIES = 4  # in a row that receive nothing new
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
CHUNK = 1 << 16  # bytes


class DownloadError(RetrainingError):
    """A file cannot be downloaded. The text says why in one line; the caller appends the remedy."""


class UnreachableError(DownloadError):
    """No address of a file could be reached: no network, no such host, or refused."""


class _BrokenOffError(DownloadError):
    """The transfer broke off; another try may get further."""


class _WrongContentError(DownloadError):
    """The address answers with a different file from the expected one."""


@dataclass(frozen=True)
class Remote:
    """A file on the web: its addresses, and its size and hash if known."""

    urls: tuple[str, ...]  # tried in this order, each http:// one as https:// first
    size: int | None = None  # bytes
    sha256: str | None = None  # hexadecimal


def fetch(remote: Remote, target: Path, observer: Observer | None = None) -> Path:
    """Downloads `remote` to `target` unless that exists; returns `target`.

    Keeps a partial download in `target`.part, so that a later call can resume it. If several calls,
    in any process, ask for one target, one downloads it and the others wait.

    Raises:
        UnreachableError: no address can be reached.
        DownloadError: the file cannot be downloaded or written, or differs from its description.
    """
    if target.is_file():
        return target
    observer = observer or Silent()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target, observer):
            if not target.is_file():
                part = _Part(target)
                _fetch_from_any(remote, part, observer)
                part.publish()
    except OSError as error:
        raise DownloadError(f"cannot write {target}: {error.strerror or error}") from error
    return target


# ------------------------------------------------------------------------------- fetching


class _Part:
    """The partial download beside its target, with the mark of the remote file.

    The mark is the server's ETag or Last-Modified. It ensures that the rest of a changed
    remote file is never appended to the beginning of the old one.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.mark_path = target.with_name(target.name + ".part.mark")

    def size(self) -> int:
        """Returns the number of bytes received so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def mark(self) -> str | None:
        """Returns the mark of the partial download, if the server gave one."""
        return self.mark_path.read_text("latin-1") if self.mark_path.exists() else None

    def restart(self, mark: str | None = None) -> None:
        """Starts again with an empty file."""
        self.drop()  # first, so that the new mark never stands beside the old bytes
        self.path.touch()
        if mark is not None:
            self.mark_path.write_text(mark, "latin-1")

    def drop(self) -> None:
        """Removes the partial download."""
        self.mark_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def publish(self) -> None:
        """Renames the finished file to its target."""
        with open(self.path, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        self.mark_path.unlink(missing_ok=True)


def _fetch_from_any(remote: Remote, part: _Part, observer: Observer) -> None:
    """Fills `part` from the first address that has the file. Raises DownloadError if none has."""
    errors: dict[str, DownloadError] = {}
    spoilt = set()
    addresses = [(url, address) for url in remote.urls for address in _https_first(url)]
    knocks = {address: _Knock(address) for _, address in addresses}  # all at once
    deadline = time.monotonic() + REACH_TIMEOUT
    for url, address in addresses:
        if url in spoilt:
            continue
        try:
            knocks[address].wait(deadline)
            _download(address, remote, part, observer)
            _verify(part, remote)
            return
        except DownloadError as error:
            errors[address] = error
            if isinstance(error, _WrongContentError):
                spoilt.add(url)  # http:// would only send the same file
    raise _summary(errors)


def _https_first(url: str) -> list[str]:
    """Returns the addresses to try for `url`: on a public host, https:// comes before http://."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DownloadError(f"cannot download {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise DownloadError(f"cannot download {url}: not an http:// or https:// address")
    if parts.scheme == "http" and port is None and _is_public(host):
        return [parts._replace(scheme="https").geturl(), url]
    return [url]


def _is_public(host: str) -> bool:
    """Returns whether `host` may be on the internet, judging by its name or IP address."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        private = (".local", ".localhost", ".internal", ".lan", ".home.arpa")
        return "." in host and not host.endswith(private)


def _summary(errors: dict[str, DownloadError]) -> DownloadError:
    """Returns one error for all addresses; names a host once if http:// and https:// fail alike."""
    unreachable = all(isinstance(error, UnreachableError) for error in errors.values())
    said = {(urlsplit(url).hostname, str(error)): url for url, error in errors.items()}
    text = "; ".join(f"{url}: {reason}" for (_, reason), url in said.items())
    return (UnreachableError if unreachable else DownloadError)(f"cannot download {text}")


class _Knock(threading.Thread):
    """Opens and closes a connection to the host of `url` to see whether it answers.

    The timeout of requests is no substitute: it starts again for each IP address of a host and does
    not cover the lookup of its name. Without a network, either can take minutes.
    """

    def __init__(self, url: str):
        super().__init__(daemon=True)  # a lookup that hangs must not delay the program's end
        self.url = url
        self.problem: str | None = "no answer"
        self.start()

    def run(self) -> None:
        via = ""
        try:
            host, port = _first_hop(self.url)
            via = "" if host == urlsplit(self.url).hostname else f"the proxy {host}:{port}: "
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
            self.problem = None
        except Exception as error:  # after any error, the address is useless
            self.problem = via + _in_words(error)

    def wait(self, deadline: float) -> None:
        """Raises UnreachableError if the host has refused, or not answered by `deadline`."""
        self.join(max(0.0, deadline - time.monotonic()))
        if self.problem is not None:
            raise UnreachableError(self.problem)


def _first_hop(url: str) -> tuple[str, int]:
    """Returns the host and port to connect to for `url`: the proxy's if one is set."""
    from requests.utils import get_environ_proxies, select_proxy

    hop = select_proxy(url, get_environ_proxies(url)) or url
    parts = urlsplit(hop if "://" in hop else f"http://{hop}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 1080)
    return parts.hostname or "", port


def _download(url: str, remote: Remote, part: _Part, observer: Observer) -> None:
    """Completes `part` from `url`; retries as long as that makes progress.

    Raises DownloadError if the server has no such file, or after TRIES tries without progress.
    """
    failed, furthest, reached = 0, part.size(), False
    while remote.size is None or part.size() != remote.size:
        try:
            _receive(url, remote, part, observer)
            return
        except (_BrokenOffError, UnreachableError) as error:
            failed = 1 if part.size() > furthest else failed + 1
            furthest = max(furthest, part.size())
            reached = reached or isinstance(error, _BrokenOffError)
            if failed >= TRIES or not reached:
                raise
        time.sleep(BACKOFF * 2 ** (failed - 1))


def _receive(url: str, remote: Remote, part: _Part, observer: Observer) -> None:
    """Requests the missing rest of `part` from `url` once, and appends it.

    Raises _BrokenOffError if another try may help, otherwise DownloadError.
    """
    with _network_errors(), _get(url, _resume_headers(remote, part)) as response:
        _check_status(response, part)
        offset, total = _span(response, part)
        if None not in (total, remote.size) and total != remote.size:
            # Nothing has been written yet: the partial download of an earlier run stays.
            raise _WrongContentError(f"{total} bytes instead of {remote.size}")
        if offset == 0:
            part.restart(_mark(response))
        _append(response, part, total or remote.size, observer)
    if total is not None and part.size() < total:
        raise _BrokenOffError(f"the transfer broke off at {part.size()} of {total} bytes")


def _get(url: str, headers: dict[str, str]) -> "Response":
    import requests  # here because it takes long to import and is rarely needed

    # Uncompressed: otherwise sizes and ranges would count compressed bytes.
    headers = {"Accept-Encoding": "identity", **headers}
    return requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))


def _resume_headers(remote: Remote, part: _Part) -> dict[str, str]:
    """Returns headers that request the rest of `part`; none if nothing could verify the rest."""
    size, mark = part.size(), part.mark()
    if size == 0 or not (mark or remote.sha256):
        return {}
    return {"Range": f"bytes={size}-", **({"If-Range": mark} if mark else {})}


def _check_status(response: "Response", part: _Part) -> None:
    if response.status_code in (200, 206):
        return
    if response.status_code == 416:  # no such range
        part.drop()
        raise _BrokenOffError("the server cannot go on where the last transfer broke off")
    if response.status_code == 407:
        raise UnreachableError("the proxy wants a user name and password")
    kind = _BrokenOffError if response.status_code >= 500 else DownloadError
    raise kind(f"the server answers {response.status_code} {response.reason}".rstrip())


def _span(response: "Response", part: _Part) -> tuple[int, int | None]:
    """Returns where in the file the body of `response` begins, and the file's size if known.

    Drops `part` and raises _BrokenOffError if the body does not continue it.
    """
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:(\d+)|\*)", response.headers.get("Content-Range", ""))
    same = _mark(response) in (None, part.mark()) or part.size() == 0
    if not found or int(found[1]) != part.size() or not same:
        part.drop()
        raise _BrokenOffError("the server answers with a range not asked for")
    return part.size(), int(found[2]) if found[2] else None


def _mark(response: "Response") -> str | None:
    """Returns a mark for If-Range: a strong ETag or the date of change (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _append(response: "Response", part: _Part, total: int | None, observer: Observer) -> None:
    """Appends the body of `response` to `part`, but stops soon after `total` bytes."""
    bar = observer.progress(part.target.name, "B")(total=total)
    with bar, open(part.path, "ab") as file:
        bar.update(part.size())
        # Raw bytes: some servers label a .tgz file as a compressed transfer of a .tar.
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            file.write(chunk)
            bar.update(len(chunk))
            if total is not None and file.tell() > total:
                break


def _verify(part: _Part, remote: Remote) -> None:
    """Drops `part` and raises _WrongContentError if it does not match `remote`."""
    size, problem = part.size(), None
    if remote.size not in (None, size):
        problem = f"{size} bytes instead of {remote.size}"
    elif remote.sha256 and _sha256(part.path) != remote.sha256.lower():
        problem = "the SHA-256 is not the expected one"
    if problem:
        part.drop()
        raise _WrongContentError(problem)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turns errors of requests and urllib3 into ours. Lets errors of the disk pass."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _translate(error) from error


def _translate(error: Exception) -> DownloadError:
    """Returns this module's error, in plain words, for an error of requests or urllib3."""
    from requests import exceptions as of_requests
    from urllib3 import exceptions as of_urllib3

    words = _in_words(error)
    if isinstance(error, of_requests.ProxyError):
        return UnreachableError(f"not through the proxy: {words}")
    not_connected = any(isinstance(e, of_urllib3.NewConnectionError) for e in _causes(error))
    if isinstance(error, of_requests.ConnectTimeout) or not_connected:
        return UnreachableError(words)
    if isinstance(error, of_requests.ReadTimeout | of_urllib3.ReadTimeoutError):
        return _BrokenOffError(f"nothing came for {READ_TIMEOUT:g} seconds")
    if isinstance(error, of_requests.SSLError):
        return DownloadError(f"no secure connection: {words}")
    if isinstance(error, of_requests.ConnectionError | of_urllib3.HTTPError):
        return _BrokenOffError("the connection broke off")
    return DownloadError(" ".join(str(error).split()))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields `error`, the error that it wraps, and so on down to the operating system's.

    Ignores __context__, which may lead to an unrelated error that the caller is handling.
    """
    while error is not None:
        yield error
        wrapped = (error.__cause__, getattr(error, "reason", None), *error.args)
        error = next((each for each in wrapped if isinstance(each, BaseException)), None)


def _in_words(error: BaseException) -> str:
    """Returns why a connection failed, without the wrapping of requests and urllib3."""
    *_, origin = _causes(error)
    if isinstance(origin, socket.gaierror | UnicodeError):
        return "the host's name cannot be resolved"
    if isinstance(origin, TimeoutError):
        return "no answer"
    if not isinstance(origin, OSError):
        return "no connection"
    certificate_problem = getattr(origin, "verify_message", None)
    return certificate_problem or getattr(origin, "strerror", None) or str(origin)
