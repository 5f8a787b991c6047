"""Fetches an archive of photos from a URL, into a folder that keeps it."""

import hashlib
import posixpath
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from retraining.photos.source import SourceError
from retraining.photos.url import copy_file
from retraining.system.addresses import WEB, is_url, with_login
from retraining.system.download import DownloadError, Remote, fetch
from retraining.system.observer import Observer
from retraining.system.regular import ARCHIVE_NAME, head_of, is_archive, no_archive

MOST_BYTES = 256 << 30  # of an archive: a million photos of 256 kB


def archive_url(text: str) -> tuple[str, str] | None:
    """Returns (URL of an archive, path in it or ""), or None if the text is no such URL.

    The name of a folder or file in its path ends like that of an archive.
    """
    if not is_url(text):
        return None
    parts = _split(text)
    ending = ARCHIVE_NAME.search(parts.path)
    if ending is None:
        return None
    path, inner = parts.path[: ending.end()], parts.path[ending.end() :]
    return parts._replace(path=path).geturl(), unquote(inner, errors="surrogateescape").strip("/")


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
        fetch(Remote((with_login(url),), most=MOST_BYTES), target, observer, _check)
    elif not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(url, target, observer)


def _check(path: Path) -> None:
    if not is_archive(path):
        raise DownloadError(no_archive(head_of(path)))


def _name_in(url: str) -> str:
    """Returns the last part of a URL's path, as the name of a file."""
    name = posixpath.basename(unquote(_split(url).path, errors="surrogateescape"))
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[-100:]


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise SourceError(f"{url} is not a valid URL: {error}") from error
