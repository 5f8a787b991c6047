"""Fetches an archive of photos from a URL, into a folder that keeps it."""

import hashlib
import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

from retraining.photos.archive import ENDING
from retraining.photos.source import SourceError
from retraining.photos.url import copy_file, is_url
from retraining.system.download import DownloadError, Remote, fetch
from retraining.system.observer import Observer
from retraining.system.regular import is_archive

MOST_BYTES = 256 << 30  # of an archive: a million photos of 256 kB
WEB = ("http", "https")


def is_archive_url(text: str) -> bool:
    """Returns whether a text is a URL whose path ends like the name of an archive."""
    return is_url(text) and ENDING.search(_name_in(text)) is not None


def kept_as(url: str, folder: str) -> Path:
    """Returns where the archive at a URL is kept in a folder."""
    mark = hashlib.sha1(url.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return Path(folder) / f"{mark}-{_name_in(url)}"


def fetch_archive(url: str, target: Path, observer: Observer) -> None:
    """Fetches the archive at a URL, unless it is there; shows progress.

    A later call continues a download over http that broke off.

    Raises:
        DownloadError, SourceError: it cannot be fetched, or is no archive.
        OSError: there is no such file, or access is denied.
    """
    if urlsplit(url).scheme.lower() in WEB:
        fetch(Remote((url,), most=MOST_BYTES), target, observer, _check)
    elif not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(url, target, observer)


def _check(path: Path) -> None:
    if not is_archive(path):
        raise DownloadError("it is not a zip or tar file")


def _name_in(url: str) -> str:
    """Returns the last part of a URL's path, as the name of a file."""
    try:
        path = urlsplit(url).path
    except ValueError as error:
        raise SourceError(f"{url} is not a valid URL: {error}") from error
    name = posixpath.basename(unquote(path, errors="surrogateescape"))
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[-100:]
