"""Downloads one file from the web completely or not at all, and checks its content."""

import hashlib
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from retraining.errors import RetrainingError
from retraining.system.addresses import without_password
from retraining.system.background import beside
from retraining.system.locks import lock
from retraining.system.observer import Observer, Silent
from retraining.system.text import one_line

if TYPE_CHECKING:
    from requests import Response

REACH_TIMEOUT = 6.0  # seconds in which one of the addresses must answer; all are tried at once
CONNECT_TIMEOUT = 4.0  # seconds, for each IP address of a host
READ_TIMEOUT = 20.0  # seconds without a byte
TRIES = 4  # in a row that receive nothing new
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
CHUNK = 1 << 16  # bytes
MAX_BYTES = 4 << 30  # of a file; the largest that we fetch, keras:ConvNeXtXLarge, has 1.4 GB
LEAST_BYTES = 60_000  # that must arrive within SLOW_SECONDS
SLOW_SECONDS = 60.0
MOST_REDIRECTS = 10
MOST_MARK = 1000  # characters
MOST_REASON = 100  # characters of a server's own words
MOST_SECONDS = 14_400.0  # for one file, with all its tries
POLL = 0.5  # seconds between two looks at a transfer


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
    """A file on the web: its addresses, its size and hash if known, else the most it can have."""

    urls: tuple[str, ...]  # tried in this order, each http:// one as https:// first
    size: int | None = None  # bytes
    sha256: str | None = None  # hexadecimal
    most: int | None = None  # bytes; by default MAX_BYTES


Check: TypeAlias = Callable[[Path], object]  # raises RetrainingError for a wrong file


def fetch(
    remote: Remote, target: Path, observer: Observer | None = None, check: Check | None = None
) -> Path:
    """Downloads `remote` to `target` unless that exists; returns `target`.

    `check` reads the file and raises a RetrainingError if it is not the expected one; it is called
    on the download before that becomes `target`, and on a `target` that exists. A wrong download is
    removed. A wrong file that exists may be somebody else's: it is renamed to `target`.refused, the
    observer is told, and the file is downloaded.

    Keeps a partial download in `target`.part if a later call can resume it. If several calls, in
    any process, ask for one target, one downloads it and the others wait.

    Raises:
        UnreachableError: no address can be reached.
        DownloadError: the file cannot be downloaded or written, or differs from its description.
    """
    check = check or (lambda _: None)
    if _problem(target, check) is None:
        return target
    observer = observer or Silent()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target, observer):
            problem = _problem(target, check)  # another process may have fetched it meanwhile
            if problem is None:
                return target
            if target.is_file():
                aside = target.with_name(target.name + ".refused")
                os.replace(target, aside)
                observer.tell(f"{problem}; moved it to {aside}; downloading again")
            part = _Part(target, remote)
            try:
                _fetch_from_any(remote, part, observer, check)
                part.publish()
            finally:
                part.drop_unless_usable()
    except OSError as error:
        beside_it = error.filename and Path(error.filename) not in (target, target.parent)
        where = f" ({error.filename})" if beside_it else ""
        raise DownloadError(f"cannot write {target}: {error.strerror or error}{where}") from error
    return target


def _problem(target: Path, check: Check) -> str | None:
    """Returns why a file cannot be used, or None."""
    if not target.is_file():
        return "it is missing"
    try:
        check(target)
    except RetrainingError as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------- fetching


class _Part:
    """The partial download beside its target, with the mark of the remote file.

    The mark is the server's ETag or Last-Modified. It ensures that the rest of a changed
    remote file is never appended to the beginning of the old one.
    """

    def __init__(self, target: Path, remote: Remote):
        self.target = target
        self.remote = remote
        self.path = target.with_name(target.name + ".part")
        self.mark_path = target.with_name(target.name + ".part.mark")
        self.drop_unless_usable()

    def size(self) -> int:
        """Returns the number of bytes received so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def mark(self) -> str | None:
        """Returns the mark of the partial download, if the server gave one."""
        if not self.mark_path.is_file():
            return None
        with open(self.mark_path, encoding="latin-1", newline="") as file:
            mark = file.read(MOST_MARK + 1)
        return mark if _is_sound(mark) else None

    def drop_unless_usable(self) -> None:
        """Removes what no transfer can resume: nothing could tell that its rest belongs to it."""
        usable = self.path.is_file() and not self.path.is_symlink()
        usable = usable and 0 < self.size() <= (self.remote.size or self.remote.most or MAX_BYTES)
        if not usable or not (self.mark() or self.remote.sha256):
            self.drop()

    def restart(self, mark: str | None = None) -> None:
        """Starts again with an empty file."""
        self.drop()  # first, so that the new mark never stands beside the old bytes
        self.path.touch()
        if mark is not None:
            self.mark_path.write_text(mark, "latin-1", newline="")

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


def _fetch_from_any(remote: Remote, part: _Part, observer: Observer, check: Check) -> None:
    """Fills `part` from the first address that has the file. Raises DownloadError if none has."""
    errors: dict[str, DownloadError] = {}
    spoilt = set()
    addresses = [(url, address) for url in remote.urls for address in _https_first(url)]
    knocks = {address: _Knock(address) for _, address in addresses}  # all at once
    deadline, end = time.monotonic() + REACH_TIMEOUT, time.monotonic() + MOST_SECONDS
    for url, address in addresses:
        if url in spoilt:
            continue
        try:
            knocks[address].wait(deadline)
            _download(address, part, observer, end)
            _verify(part, check)
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
        raise DownloadError(f"cannot download {without_password(url)}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        shown = without_password(url)
        raise DownloadError(f"cannot download {shown}: not an http:// or https:// address")
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
    text = "; ".join(f"{without_password(url)}: {reason}" for (_, reason), url in said.items())
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


def _download(url: str, part: _Part, observer: Observer, end: float) -> None:
    """Completes `part` from `url`; retries as long as that makes progress, until time `end`.

    Raises DownloadError if the server has no such file, or after TRIES tries without progress.
    """
    failed, furthest, reached = 0, part.size(), False
    while part.remote.size is None or part.size() != part.remote.size:
        try:
            _watch(_Transfer(url, part, observer), end)
            return
        except (_BrokenOffError, UnreachableError) as error:
            failed = 1 if part.size() > furthest else failed + 1
            furthest = max(furthest, part.size())
            reached = reached or isinstance(error, _BrokenOffError)
            if failed >= TRIES or not reached:
                raise
        time.sleep(BACKOFF * 2 ** (failed - 1))


def _watch(transfer: "_Transfer", end: float) -> None:
    """Runs a transfer on a thread of its own; gives it up if it is too slow, or at time `end`.

    The timeouts of sockets start again with each byte, of headers and of the content alike.
    """
    done = beside(transfer.run)
    received, since = 0, time.monotonic()
    try:
        while not wait([done], POLL).done:
            now = time.monotonic()
            if now > end:
                raise DownloadError(f"not complete after {MOST_SECONDS / 3600:g} hours")
            if transfer.received >= received + LEAST_BYTES:
                received, since = transfer.received, now
            elif now > since + SLOW_SECONDS:
                raise DownloadError(
                    f"less than {LEAST_BYTES / 1000:g} kB arrived within {SLOW_SECONDS:g} seconds"
                )
    finally:
        transfer.stop()
    done.result()


class _Transfer:
    """One request for the missing rest of a partial download, to which it appends the answer."""

    def __init__(self, url: str, part: _Part, observer: Observer):
        self.received = 0  # bytes
        self._url, self._part, self._observer = url, part, observer
        self._lock, self._stopped = threading.Lock(), False

    def stop(self) -> None:
        """Lets it change the partial download no more, although its thread may still wait."""
        with self._lock:
            self._stopped = True

    def run(self) -> None:
        """Requests the rest and appends it.

        Raises _BrokenOffError if another try may help, otherwise DownloadError.
        """
        part = self._part
        with _network_errors(), _get(self._url, _resume_headers(part)) as response:
            with self._unless_stopped():
                total = _begin(response, part)
            self._append(response, total or part.remote.size)
        if total is not None and part.size() < total:
            raise _BrokenOffError(f"the transfer stopped at {part.size()} of {total} bytes")

    @contextmanager
    def _unless_stopped(self) -> Iterator[None]:
        with self._lock:
            if self._stopped:
                raise DownloadError("given up")  # which nobody waits for
            yield

    def _append(self, response: "Response", total: int | None) -> None:
        """Appends the body of `response`; stops soon after `total` bytes, or the most."""
        part = self._part
        bar = self._observer.progress(part.target.name, "B")(total=total)
        with bar, open(part.path, "ab", buffering=0) as file:
            bar.update(part.size())
            # Raw bytes: some servers label a .tgz file as a compressed transfer of a .tar.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                with self._unless_stopped():
                    _write_all(file, chunk)
                self.received += len(chunk)
                bar.update(len(chunk))
                if file.tell() > (total or part.remote.most or MAX_BYTES):
                    break
        _check_size(part.size(), part)


def _write_all(file: FileIO, chunk: bytes) -> None:
    """Writes a chunk to an unbuffered file, which may take less at once."""
    while chunk:
        chunk = chunk[file.write(chunk) :]


def _begin(response: "Response", part: _Part) -> int | None:
    """Prepares `part` for the body of `response`; returns the size of the whole file if known."""
    _check_status(response, part)
    offset, total = _span(response, part)
    if None not in (total, part.remote.size) and total != part.remote.size:
        # Nothing has been written yet: the partial download of an earlier run stays.
        raise _WrongContentError(f"{total} bytes instead of {part.remote.size}")
    _check_size(total or 0, part)
    if offset == 0:
        part.restart(_mark(response))
    return total


def _check_size(size: int, part: _Part) -> None:
    """Drops `part` and raises _WrongContentError if its file is or will be too large."""
    most = part.remote.most or MAX_BYTES
    if size > max(most, part.remote.size or 0):
        part.drop()
        raise _WrongContentError(f"more than {most >> 20} MiB, so it is another file")


def _get(url: str, headers: dict[str, str]) -> "Response":
    import requests  # here because it takes long to import and is rarely needed

    # Uncompressed: otherwise sizes and ranges would count compressed bytes.
    headers = {"Accept-Encoding": "identity", **headers}
    timeout = CONNECT_TIMEOUT, READ_TIMEOUT
    hooks = {"response": _without_body_of_redirect}
    with requests.Session() as session:
        session.max_redirects = MOST_REDIRECTS
        return session.get(url, headers=headers, stream=True, timeout=timeout, hooks=hooks)


def _without_body_of_redirect(response: "Response", **_: object) -> None:
    """Drops the body of a redirect: requests would read it into memory, and it may have no end."""
    if response.is_redirect:
        response.raw.close()
        response.raw = BytesIO()


def _resume_headers(part: _Part) -> dict[str, str]:
    """Returns headers that request the rest of `part`; none if nothing could verify the rest."""
    size, mark = part.size(), part.mark()
    if size == 0 or not (mark or part.remote.sha256):
        return {}
    return {"Range": f"bytes={size}-", **({"If-Range": mark} if mark else {})}


def _check_status(response: "Response", part: _Part) -> None:
    if response.status_code in (200, 206):
        return
    if response.status_code == 416:  # no such range
        part.drop()
        raise _BrokenOffError("the server cannot resume the transfer")
    if response.status_code == 407:
        raise UnreachableError("the proxy requires a user name and password")
    kind = _BrokenOffError if response.status_code >= 500 else DownloadError
    reason = f"{response.reason or ''}"[:MOST_REASON]
    raise kind(f"the server answers {response.status_code} {reason}".rstrip())


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
        raise _BrokenOffError("the server sent a range that was not requested")
    return part.size(), int(found[2]) if found[2] else None


def _mark(response: "Response") -> str | None:
    """Returns a mark for If-Range: a strong ETag or the date of change (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    mark = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    return mark if mark and _is_sound(mark) else None


def _is_sound(mark: str) -> bool:
    """Returns whether a header of a request can hold a mark."""
    return len(mark) <= MOST_MARK and mark.isprintable()


def _verify(part: _Part, check: Check) -> None:
    """Drops `part` and raises _WrongContentError if it is not the file that its remote describes.

    `check` decides where neither size nor hash is known.
    """
    remote, size, problem = part.remote, part.size(), None
    if remote.size not in (None, size):
        problem = f"{size} bytes instead of {remote.size}"
    elif remote.sha256 and _sha256(part.path) != remote.sha256.lower():
        problem = "the SHA-256 is not the expected one"
    else:
        problem = _problem(part.path, check)
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
    """Turns errors of requests and urllib3 into ours. Lets errors of the disk pass.

    Addresses that a server redirects to, and its headers, may be any text: neither library
    catches all the errors that Python's own functions raise for them.
    """
    from http.client import HTTPException  # here because labelling reads archives without it

    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _translate(error) from error
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise _BrokenOffError("the connection was lost") from error
    except (ValueError, LookupError, AttributeError) as error:
        raise DownloadError(f"the server's answer is invalid: {one_line(error)}") from error


def _translate(error: Exception) -> DownloadError:
    """Returns this module's error, in plain words, for an error of requests or urllib3."""
    from requests import exceptions as of_requests
    from urllib3 import exceptions as of_urllib3

    words = _in_words(error)
    if isinstance(error, of_requests.ProxyError):
        return UnreachableError(f"cannot connect through the proxy: {words}")
    not_connected = any(isinstance(e, of_urllib3.NewConnectionError) for e in _causes(error))
    if isinstance(error, of_requests.ConnectTimeout) or not_connected:
        return UnreachableError(words)
    if isinstance(error, of_requests.ReadTimeout | of_urllib3.ReadTimeoutError):
        return _BrokenOffError(f"no data arrived for {READ_TIMEOUT:g} seconds")
    if isinstance(error, of_requests.SSLError):
        return DownloadError(f"cannot make a secure connection: {words}")
    if isinstance(error, of_requests.ConnectionError | of_urllib3.HTTPError):
        return _BrokenOffError("the connection was lost")
    return DownloadError(one_line(error))


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
