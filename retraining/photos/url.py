"""Photos at URLs (`s3://`, `gs://`) that fsspec opens.

The first URL imports fsspec and its package for that kind of storage; local folders need neither.
These packages find credentials where the storage's own tools do, and retry transient errors.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from retraining.photos.bounds import ImageFileError, check_size
from retraining.photos.class_folders import scan_class_folders
from retraining.photos.source import (
    RACY_SECONDS,
    Facts,
    Scan,
    ScanOptions,
    SourceError,
    passed_over,
)
from retraining.system.addresses import (
    is_url,
    take_login,
    with_login,
    without_logins,
    without_password,
)
from retraining.system.atomic import replacing
from retraining.system.observer import Observer
from retraining.system.text import one_line

CHUNK = 1 << 20  # bytes
TRANSIENT = (408, 429)  # a web server's answers while it is busy
DENIED = ("AccessDenied", "AllAccessDisabled", "403")  # S3's answers that concern one object
INSTALL = "pip install -r requirements-remote.txt"

# Fields in which fsspec's file systems give a file's version: of its content, or else a time.
CONTENT_STAMPS = ("ETag", "etag", "generation", "content_md5", "md5Hash")
TIME_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class UrlSource:
    """A PhotoSource: a URL with a folder for each class below it, listed once."""

    location: str
    remote: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "location", take_login(self.location))

    def scan(self, options: ScanOptions | None = None, least_classes: int = 2) -> Scan:
        """Finds the photos, without reading any; see PhotoSource.scan."""
        return scan_class_folders(self, options or ScanOptions(), least_classes)

    def path_of(self, relative: str) -> str:
        """Returns the URL of what lies at a path relative to the location."""
        return _join(self._url, relative)

    @staticmethod
    def claims(text: str) -> bool:
        """Returns whether a text is a URL."""
        return is_url(text)

    @staticmethod
    def check(name: str, max_pixels: int | None) -> None:
        """Raises ImageFileError if it is larger than such an image: asks the storage once."""
        if max_pixels is not None:
            check_size(size(name), max_pixels)

    @staticmethod
    def read(name: str) -> bytes:
        """Reads a file's bytes, with one request.

        Raises:
            OSError: the file does not exist, or access is denied.
            SourceError: it cannot be fetched, and probably no other file can.
        """
        with _explained(name):
            system, path = _open(name)
            content: bytes = system.cat_file(path)
        return content

    @staticmethod
    def head(name: str, size: int) -> bytes:
        """Reads the first bytes of a file, with one request; raises as `read`."""
        with _explained(name):
            system, path = _open(name)
            content: bytes = system.cat_file(path, start=0, end=size)
        return content

    @staticmethod
    def absolute(name: str) -> str:
        """Returns the URL unchanged."""
        return name

    @staticmethod
    def canonical(name: str) -> str:
        """Returns the URL without its password."""
        return without_password(name)

    def class_folders(self) -> list[str]:
        """Returns the names of the folders below the URL, sorted.

        Raises:
            SourceError: it cannot be listed, or nothing is there.
        """
        return sorted(folder for folder in self._folders if folder)

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (URL, whether it is a folder not entered); see Tree.files_below."""
        entered: set[str] = set()
        label = "" if folder == self.location else folder[len(self.path_of("")) :]
        top, _, deeper = label.partition("/")
        below = _join(deeper, "") if deeper else ""
        for path in self._folders.get(top, ()):
            if not path.startswith(below):
                continue
            name = path[len(below) :]
            inner = name.split("/")[0]
            if recursive or "/" not in name:
                if name and not name.endswith("/"):  # such a name stands for a folder
                    yield self.path_of(_join(label, name)), False
            elif inner not in entered:
                entered.add(inner)
                yield self.path_of(_join(label, inner)), True

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of a file, as far as the listing tells.

        Raises:
            ImageFileError: the file is too large or not a regular file.
        """
        facts, regular = self.files[name[len(self.path_of("")) :]]
        check_size(facts.size, max_pixels)
        if not regular:
            raise ImageFileError("is a pipe, a socket or a device, not an image file")
        return facts

    @cached_property
    def files(self) -> dict[str, tuple[Facts, bool]]:
        """{path relative to the URL: (Facts, whether it is a regular file)}, in order.

        Leaves out what is hidden. A folder's files come before its folders, as on a disk.
        """
        files = list_files(self._url)
        if not files:
            raise SourceError(f"there is nothing at {self._url}; check the URL")
        return {
            name: files[name]
            for name in sorted(files, key=_order)
            if not any(map(passed_over, name.split("/"))) and "" not in name.split("/")[:-1]
        }

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        """{a class folder, or "" for the URL itself: paths of its files, relative to it}"""
        folders: dict[str, list[str]] = defaultdict(list)
        for path in self.files:
            label, slash, name = path.partition("/")
            folders[label if slash else ""].append(name if slash else label)
        return folders

    @property
    def _url(self) -> str:
        """The location without slashes at the end."""
        whole = self.location.endswith("://")
        return self.location if whole else self.location.rstrip("/")


def _join(folder: str, name: str) -> str:
    """Returns the path of `name` in a folder; that of the source itself is empty."""
    return f"{folder}{'' if not folder or folder.endswith('/') else '/'}{name}"


def _order(path: str) -> list[tuple[int, str]]:
    """Returns a sort key that puts a folder's files before its folders."""
    *folders, last = path.split("/")
    return [*((1, folder) for folder in folders), (0, last)]


def list_files(url: str) -> dict[str, tuple[Facts, bool]]:
    """Returns {name relative to the URL: (Facts, whether it is a regular file)}, recursively.

    Requests only the listing: one request per 1,000 objects of an object store.

    Raises:
        SourceError: it cannot be listed.
    """
    with _explained(url):
        system, root = _open(url)
        system.invalidate_cache()  # it may hold an earlier listing
        try:
            files = system.find(root, detail=True, **_strictly(system))
        except Exception as error:  # each storage's package has its own errors
            is_refused = isinstance(error, FileNotFoundError) or _is_about_one_file(error)
            if not (is_refused or isinstance(error, PermissionError)):
                raise
            raise SourceError(
                f"cannot list {url}: {_said(error)}; check its name, and the credentials in "
                f"the environment"
            ) from error
        system.invalidate_cache()  # it holds a kilobyte per file
    start = root.rstrip("/") + "/"
    return {
        name.removeprefix(start): (_facts(info), info.get("type") != "other")
        for name, info in files.items()
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


def _facts(info: Mapping[str, Any]) -> Facts:
    """Returns the Facts in fsspec's description of a file."""
    size = info.get("size") or 0
    for name in CONTENT_STAMPS:
        if info.get(name):
            return Facts(size, _number(info[name]), True)
    for name in TIME_STAMPS:
        if info.get(name):
            when = getattr(info[name], "timestamp", lambda name=name: info[name])()
            past = isinstance(when, int | float) and time.time() - when > RACY_SECONDS
            return Facts(size, _number(info[name]), past and info.get("type") == "file")
    return Facts(size, 0, False)


def _number(stamp: object) -> int:
    return int.from_bytes(
        hashlib.sha1(str(stamp).encode()).digest()[:7]
    )  # SQLite's integers have 8


def size(url: str) -> int:
    """Returns the size of the file at a URL, in bytes.

    Raises:
        OSError: the file does not exist, or access is denied.
        SourceError: the storage cannot be asked.
    """
    with _explained(url):
        system, path = _open(url)
        length: int = system.info(path).get("size") or 0
    return length


def copy_file(url: str, target: Path, observer: Observer) -> None:
    """Copies the file at a URL to a file of this machine, which appears once it is complete.

    Raises:
        OSError: the file does not exist, or access is denied.
        SourceError: it cannot be fetched.
    """
    total, bar = size(url), observer.progress(target.name, "B")
    with _explained(url):
        system, path = _open(url)
        with (
            system.open(path, "rb") as source,
            replacing(target, flush=False) as file,
            bar(total=total) as shown,
        ):
            while chunk := source.read(CHUNK):
                file.write(chunk)
                shown.update(len(chunk))


def _open(url: str) -> tuple[Any, str]:
    """Returns (fsspec's file system, the path in it)."""
    if re.search(r"::[A-Za-z0-9+.-]+://", url):
        raise SourceError(f"{url}: URLs within URLs (::) are not read; unpack the photos first")
    try:
        kind, url = _kind_of(url), with_login(url)
        # As fsspec.core.url_to_fs, which mistakes `::` in a name or an address for a second URL.
        system, path = kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except ImportError as error:
        ours = any(name in str(error) for name in ("fsspec", "s3fs", "gcsfs"))
        help_ = f": {INSTALL}" if ours else ""
        raise SourceError(f"{url} needs another package ({_said(error)}){help_}") from error
    if hasattr(system, "max_concurrency"):
        system.max_concurrency = 1  # request for each file; else s3fs would ask for its size first
    return system, path


def _kind_of(url: str) -> Any:
    """Returns fsspec's class for a URL's storage. Raises ImportError if its package is missing."""
    import fsspec

    try:
        return fsspec.get_filesystem_class(url.partition("://")[0].lower())
    except ValueError as error:  # a protocol that fsspec does not know
        raise SourceError(
            f"{url}: {_said(error)}; give a folder, or a URL that begins with s3://, gs:// or "
            f"what else fsspec or an installed package of its kind opens"
        ) from error


def _is_about_one_file(error: BaseException) -> bool:
    """Returns whether an error concerns this file only, and other files may still be readable.

    S3's packages raise PermissionError for expired credentials, too, which concern all files.
    """
    status = getattr(error, "status", None)  # of a web server's answer
    if isinstance(status, int):
        return 400 <= status < 500 and status not in TRANSIENT
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return isinstance(error, PermissionError) and code in (None, *DENIED)


def _said(error: BaseException) -> str:
    """Returns the text of an error, which may name the address that was opened."""
    return without_logins(one_line(error))


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns fsspec's many errors into an OSError about this file, or else a SourceError."""
    try:
        yield
    except SourceError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        if error.__cause__ and _is_about_one_file(error.__cause__):
            raise PermissionError(errno.EACCES, _said(error.__cause__), url) from error
        if isinstance(error.__cause__, OSError):  # fsspec takes a server that is off for this
            raise _unreachable(url, error.__cause__) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    except Exception as error:  # each storage's package has its own errors
        if _is_about_one_file(error):
            raise PermissionError(errno.EACCES, _said(error), url) from error
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: BaseException) -> SourceError:
    """Returns the error of a storage that cannot be read at all."""
    return SourceError(
        f"cannot read {url}: {_said(error)}; check the network, the address and the "
        f"credentials in the environment; then run the same command again to continue"
    )
