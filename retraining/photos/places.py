"""Where photos lie: in folders of this machine, or at URLs (`s3://`, `gs://`) that fsspec opens.

fsspec, and its package for a kind of storage, are imported when a URL is met, and are not needed
otherwise. They find credentials where that storage's own tools do, and retry what may pass by.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import url2pathname

from retraining.errors import RetrainingError
from retraining.system.text import one_line

IGNORED_FILES = {"thumbs.db", "desktop.ini"}
RACY_SECONDS = 2.0  # what was changed this recently may change again without its time showing it
PASSING = (408, 429)  # what a web server answers while it is busy
DENIED = ("AccessDenied", "AllAccessDisabled", "403")  # S3's answers on one object's account
INSTALL = "pip install -r requirements-remote.txt"

# Where file systems of fsspec say which version of a file is there: by its content, else a time.
CONTENT_STAMPS = ("ETag", "etag", "generation", "content_md5", "md5Hash")
TIME_STAMPS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class PlaceError(RetrainingError):
    """What lies at a URL cannot be listed or read; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What shows that a file is as it was: its size in bytes and a number that changes with it.

    `settled`: whether any later change will show.
    """

    size: int
    stamp: int
    settled: bool


def is_url(path):
    """Whether a path is a URL. (One letter before the colon is a drive of Windows.)"""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(path)) is not None


def local(path):
    """The path that a `file://` URL names; any other path as it is."""
    if not path.lower().startswith("file://"):
        return path
    parts = urlsplit(path.replace("?", "%3F").replace("#", "%23"))
    host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
    return url2pathname(host + parts.path)


def join(folder, name):
    """The path of `name` in a folder or below a URL."""
    if not is_url(folder):
        return os.path.join(folder, name)
    return f"{folder}{'' if folder.endswith('/') else '/'}{name}"


def passed_over(name):
    """Whether files and folders of this name are no concern of ours: hidden ones and the like."""
    return name.startswith(".") or name.lower() in IGNORED_FILES


def facts_of(path):
    """The Facts of a file of this machine.

    Raises:
        OSError: there is none.
    """
    found = os.stat(path)
    settled = time.time() - found.st_mtime > RACY_SECONDS
    return Facts(found.st_size, found.st_mtime_ns, settled)


def list_files(url):
    """{name relative to the URL: (Facts, whether it is a regular file)} of all that lies below.

    Nothing but the listing is asked for: with an object store, one request per 1,000 objects.

    Raises:
        PlaceError: it cannot be listed.
    """
    with _explained(url):
        system, root = _open(url)
        system.invalidate_cache()  # of an earlier listing
        try:
            found = system.find(root, detail=True, **_strictly(system))
        except (FileNotFoundError, PermissionError) as error:
            raise PlaceError(
                f"cannot list {url}: {one_line(error)}; check its name, and the credentials in "
                f"the environment"
            ) from error
        system.invalidate_cache()  # which holds a kilobyte per file
    start = root.rstrip("/") + "/"
    return {
        name.removeprefix(start): (_facts(about), about.get("type") != "other")
        for name, about in found.items()
        if name.startswith(start)
    }


def _strictly(system):
    """Arguments of `find`, by which fsspec passes over no folder that it could not list.

    Where a storage's package lists in a way of its own, it does not pass over any.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind, name = type(system), "_find" if isinstance(system, AsyncFileSystem) else "find"
    common = AsyncFileSystem if name == "_find" else AbstractFileSystem
    return {"on_error": "raise"} if getattr(kind, name) is getattr(common, name) else {}


def _facts(about):
    """The Facts in what fsspec says of a file."""
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


def _number(stamp):
    return int.from_bytes(hashlib.sha1(str(stamp).encode()).digest()[:7])  # SQLite's have 8 bytes


def size(url):
    """The size of the file at a URL in bytes.

    Raises:
        OSError: it is not there, or must not be read.
        PlaceError: it cannot be asked for.
    """
    with _explained(url):
        system, path = _open(url)
        return system.info(path).get("size") or 0


def read(url):
    """The bytes of the file at a URL, from one request.

    Raises:
        OSError: it is not there, or must not be read.
        PlaceError: it cannot be fetched, and no other file is likely to be.
    """
    with _explained(url):
        system, path = _open(url)
        return system.cat_file(path)


def _open(url):
    """(fsspec's file system, the path in it)"""
    if re.search(r"::[A-Za-z0-9+.-]+://", url):
        raise PlaceError(f"{url}: URLs within URLs (::) are not read; unpack the photos first")
    try:
        kind = _kind_of(url)
        # As fsspec.core.url_to_fs, which takes `::` in a name or an address for a second URL.
        system, path = kind(**kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except ImportError as error:
        ours = any(name in str(error) for name in ("fsspec", "s3fs", "gcsfs"))
        help_ = f": {INSTALL}" if ours else ""
        raise PlaceError(f"{url} needs a package more ({one_line(error)}){help_}") from error
    if hasattr(system, "max_concurrency"):
        system.max_concurrency = 1  # of requests for one file; s3fs would ask for its size first
    return system, path


def _kind_of(url):
    """fsspec's class for the storage of a URL. Raises ImportError where its package is missing."""
    import fsspec

    try:
        return fsspec.get_filesystem_class(url.partition("://")[0].lower())
    except ValueError as error:  # a protocol that fsspec does not know
        raise PlaceError(
            f"{url}: {one_line(error)}; give a folder, or a URL that begins with s3://, gs:// or "
            f"what else fsspec or an installed package of its kind opens"
        ) from error


def _is_about_one_file(error):
    """Whether an error says that this file is not to be had, not that none would be.

    S3's packages make a PermissionError of credentials that have expired, too.
    """
    status = getattr(error, "status", None)  # of a web server's answer
    if isinstance(status, int):
        return 400 <= status < 500 and status not in PASSING
    about = getattr(error.__cause__, "response", None)
    code = about.get("Error", {}).get("Code") if isinstance(about, dict) else None
    return isinstance(error, PermissionError) and code in (None, *DENIED)


@contextlib.contextmanager
def _explained(url):
    """Makes of fsspec's many errors an OSError about this file, or else a PlaceError."""
    try:
        yield
    except PlaceError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        if error.__cause__ and _is_about_one_file(error.__cause__):
            raise PermissionError(errno.EACCES, one_line(error.__cause__), url) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    except Exception as error:  # each storage's package has errors of its own
        if _is_about_one_file(error):
            raise PermissionError(errno.EACCES, one_line(error), url) from error
        raise PlaceError(
            f"cannot read {url}: {one_line(error)}; check the network, the address and the "
            f"credentials in the environment; the same command goes on from here"
        ) from error
