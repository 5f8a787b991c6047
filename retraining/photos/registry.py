"""Chooses the photo source by the text of a location or of a photo's name."""

import hashlib
import os

from retraining.photos.archive import ArchiveSource
from retraining.photos.folder import FolderSource
from retraining.photos.formats import HEAD, sniff
from retraining.photos.source import PhotoSource
from retraining.photos.table import STDIN, TableSource
from retraining.photos.url import UrlSource

# A text belongs to the first that claims it; a folder claims any.
SOURCES: tuple[type[PhotoSource], ...] = (UrlSource, ArchiveSource, FolderSource)


def kind_of(text: str) -> type[PhotoSource]:
    """Returns the kind of source that a location or a photo's name belongs to."""
    return next(kind for kind in SOURCES if kind.claims(text))


def open_source(location: str, table: str | None = None) -> PhotoSource:
    """Returns the source of the photos at a location, such as `PhotoSettings.image_dir`.

    With a `table`, that lists the photos, by paths relative to the location if there is one. It
    reads nothing yet.
    """
    return kind_of(location)(location) if table is None else TableSource(table, location)


def is_table(text: str) -> bool:
    """Returns whether a text names a table: standard input, or a file but an archive."""
    if text == STDIN:
        return True
    return os.path.exists(text) and not os.path.isdir(text) and not ArchiveSource.claims(text)


def read_bytes(name: str, max_pixels: int | None = None) -> bytes:
    """Reads a photo's file, unless it is larger than an image of `max_pixels` can be.

    `max_pixels` None means no limit.

    Raises:
        ImageFileError: it is too large or is not a regular file.
        OSError: it cannot be read.
        SourceError: no file of its source can be read.
    """
    kind = kind_of(name)
    kind.check(name, max_pixels)
    return kind.read(name)


def pixels_version(name: str) -> int | None:
    """Returns the version of the pixels that a photo's format has now; None if unknown.

    Raises:
        SourceError: no file of its source can be read.
    """
    try:
        kind = sniff(kind_of(name).head(name, HEAD))
    except OSError:
        return None
    return None if kind is None else kind.version


def hash_file(name: str) -> str:
    """Returns the SHA-1 of a file's bytes, hex: the key of a photo.

    Raises:
        OSError: the file cannot be read.
        SourceError: no file of its source can be read.
    """
    return hashlib.sha1(kind_of(name).read(name)).hexdigest()


def canonical(name: str) -> str:
    """Returns one spelling for all names of a file."""
    return kind_of(name).canonical(name)


def absolute(name: str) -> str:
    """Returns a name of the same photo that holds in every working folder."""
    return kind_of(name).absolute(name)
