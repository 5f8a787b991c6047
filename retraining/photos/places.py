"""Lists and reads photos in local folders, or at URLs (`s3://`, `gs://`) that fsspec opens.

The first URL imports fsspec and its package for that kind of storage; local folders need neither.
These packages find credentials where the storage's own tools do, and retry transient errors.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from retraining.errors import RetrainingError
from retraining.system.text import one_line

IGNORED_FILES = {"thumbs.db", "desktop.ini"}
RACY_SECONDS = 2.0  # a file changed so recently may change again within the clock's resolution
PASSING = (408, 429)  # a web server's answers while it is busy
DENIED = ("AccessDenied", "AllAccessDisabled", "403")  # S3's answers that concern one object
INSTALL = "pip install -r requirements-remote.txt"

# Fields in which fsspec's file systems give a file's version: of its content, or else a time.
CONTENT_STAMPS = ("ETag", "etag", "generation", "content_md5", "md5Hash")
TIME_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class PlaceError(RetrainingError):
    """A URL cannot be listed or read. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Shows whether a file has changed: its size in bytes and a number that changes with it.

    `settled`: whether they will show every later change.
    """

    size: int
    stamp: int
    settled: bool


def is_url(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL. (A single letter before the colon is a Windows drive.)"""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(path)) is not None


def local(path: str) -> str:
    """Returns the path that a `file://` URL names, or any other path unchanged."""
    if not path.lower().startswith("file://"):
        return path
    parts = urlsplit(path.replace("?", "%3F").replace("#", "%23"))
    host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
    return url2pathname(host + parts.path)


def join(folder: str, name: str) -> str:
    """Returns the path of `name` in a folder or below a URL."""
    if not is_url(folder):
        return os.path.join(folder, name)
    return f"{folder}{'' if folder.endswith('/') else '/'}{name}"


def passed_over(name: str) -> bool:
    """Returns whether to skip files and folders of this name, such as hidden ones."""
    return name.startswith(".") or name.lower() in IGNORED_FILES


def facts_of(path: str) -> Facts:
    """Returns the Facts of a local file.

    Raises:
        OSError: the file does not exist.
    """
    found = os.stat(path)
    settled = time.time() - found.st_mtime > RACY_SECONDS
    return Facts(found.st_size, found.st_mtime_ns, settled)


def list_files(url: str) -> dict[str, tuple[Facts, bool]]:
    """Returns {name relative to the URL: (Facts, whether it is a regular file)}, recursively.

    Requests only the listing: one request per 1,000 objects of an object store.

    Raises:
        PlaceError: it cannot be listed.
    """
    with _explained(url):
        system, root = _open(url)
        system.invalidate_cache()  # it may hold an earlier listing
        try:
            found = system.find(root, detail=True, **_strictly(system))
        except (FileNotFoundError, PermissionError) as error:
            raise PlaceError(
                f"cannot list {url}: {one_line(error)}; check its name, and the credentials in "
                f"the environment"
            ) from error
        system.invalidate_cache()  # it holds a kilobyte per file
    start = root.rstrip("/") + "/"
    return {
        name.removeprefix(start): (_facts(about), about.get("type") != "other")
        for name, about in found.items()
        if name.startswith(start)
    }


def _strictly(system: Any) -> dict[str, str]:
    """Returns arguments of `find` that stop fsspec from skipping folders that it cannot list.

    A storage's package that has its own `find` skips none and does not take the argument.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind, name = type(system), "_find" if isinstance(system, AsyncFileSystem) else "find"
    common = AsyncFileSystem if name == "_find" else AbstractFileSystem
    return {"on_error": "raise"} if getattr(kind, name) is getattr(common, name) else {}


def _facts(about: Mapping[str, Any]) -> Facts:
    """Returns the Facts in fsspec's description of a file."""
    size = about.get("size") or 0
    for name in CONTENT_STAMPS:
        if about.get(name):
            return Facts(size, _number(about[name]), True)
    for name in TIME_STAMPS:
        if about.get(name):
            when = getattr(about[name], "timestamp", lambda name=name: about[name])()
            past = isinstance(when, int | float) and time.time() - when > RACY_SECONDS
            return Facts(size, _number(about[name]), past and about.get("type") == "file")
    return Facts(size, 0, False)


def _number(stamp: object) -> int:
    return int.from_bytes(
        hashlib.sha1(str(stamp).encode()).digest()[:7]
    )  # SQLite's integers have 8


def size(url: str) -> int:
    """Returns the size of the file at a URL, in bytes.

    Raises:
        OSError: the file does not exist, or access is denied.
        PlaceError: the storage cannot be asked.
    """
    with _explained(url):
        system, path = _open(url)
        length: int = system.info(path).get("size") or 0
    return length


def read(url: str) -> bytes:
    """Reads the bytes of the file at a URL, with one request.

    Raises:
        OSError: the file does not exist, or access is denied.
        PlaceError: it cannot be fetched, and probably no other file can.
    """
    with _explained(url):
        system, path = _open(url)
        content: bytes = system.cat_file(path)
    return content


def _open(url: str) -> tuple[Any, str]:
    """Returns (fsspec's file system, the path in it)."""
    if re.search(r"::[A-Za-z0-9+.-]+://", url):
        raise PlaceError(f"{url}: URLs within URLs (::) are not read; unpack the photos first")
    try:
        kind = _kind_of(url)
        # As fsspec.core.url_to_fs, which mistakes `::` in a name or an address for a second URL.
        system, path = kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except ImportError as error:
        ours = any(name in str(error) for name in ("fsspec", "s3fs", "gcsfs"))
        help_ = f": {INSTALL}" if ours else ""
        raise PlaceError(f"{url} needs a package more ({one_line(error)}){help_}") from error
    if hasattr(system, "max_concurrency"):
        system.max_concurrency = 1  # request for each file; else s3fs would ask for its size first
    return system, path


def _kind_of(url: str) -> Any:
    """Returns fsspec's class for a URL's storage. Raises ImportError if its package is missing."""
    import fsspec

    try:
        return fsspec.get_filesystem_class(url.partition("://")[0].lower())
    except ValueError as error:  # a protocol that fsspec does not know
        raise PlaceError(
            f"{url}: {one_line(error)}; give a folder, or a URL that begins with s3://, gs:// or "
            f"what else fsspec or an installed package of its kind opens"
        ) from error


def _is_about_one_file(error: BaseException) -> bool:
    """Returns whether an error concerns this file only, and other files may still be readable.

    S3's packages raise PermissionError for expired credentials, too, which concern all files.
    """
    status = getattr(error, "status", None)  # of a web server's answer
    if isinstance(status, int):
        return 400 <= status < 500 and status not in PASSING
    about = getattr(error.__cause__, "response", None)
    code = about.get("Error", {}).get("Code") if isinstance(about, dict) else None
    return isinstance(error, PermissionError) and code in (None, *DENIED)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns fsspec's many errors into an OSError about this file, or else a PlaceError."""
    try:
        yield
    except PlaceError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        if error.__cause__ and _is_about_one_file(error.__cause__):
            raise PermissionError(errno.EACCES, one_line(error.__cause__), url) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    except Exception as error:  # each storage's package has its own errors
        if _is_about_one_file(error):
            raise PermissionError(errno.EACCES, one_line(error), url) from error
        raise PlaceError(
            f"cannot read {url}: {one_line(error)}; check the network, the address and the "
            f"credentials in the environment; the same command goes on from here"
        ) from error
