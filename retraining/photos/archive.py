"""Photos in an archive of this machine, which is not unpacked.

A photo's name is the archive's path and the photo's path in it: `photos.zip/daisy/1.jpg`. Every
process that reads a photo opens the archive by that name; see system/members.py.
"""

import errno
import hashlib
import os
import posixpath
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from retraining.photos.bounds import EmptyFileError, ImageFileError, NotAnImageError, check_size
from retraining.photos.class_folders import scan_class_folders
from retraining.photos.folder import FolderSource
from retraining.photos.formats import HEAD, reason_of, sniff
from retraining.photos.source import (
    RACY_SECONDS,
    DatasetError,
    Facts,
    Scan,
    ScanOptions,
    SourceError,
    passed_over,
)
from retraining.system.archives import ArchiveError
from retraining.system.members import Archive, Member, once_opened, opened, tidy
from retraining.system.observer import Observer
from retraining.system.regular import ARCHIVE_NAME, is_archive
from retraining.system.text import some

PART = re.compile(r"(.*-\d+-)\d{3}\.zip", re.I)  # of Google Drive
GONE = "the archive is gone; put it back, and run the same command again to continue"


@dataclass(frozen=True)
class ArchiveSource:
    """A PhotoSource: a zip or tar with class folders, or a folder in one (`photos.zip/2024`)."""

    location: str
    remote: ClassVar[bool] = False

    def scan(self, options: ScanOptions | None = None, least_classes: int = 2) -> Scan:
        """Finds the photos; see PhotoSource.scan."""
        scan = scan_class_folders(self, options or ScanOptions(), least_classes)
        if others := _other_parts(_parts(self.location)[0]):
            scan.warnings.insert(
                0,
                f"{self.location} seems to be one part of a download, and the run reads it alone; "
                f"unpack it and {some(others)} into one folder, and give that",
            )
        return scan

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the location."""
        return f"{self.location.rstrip('/')}/{relative}"

    @staticmethod
    def claims(text: str) -> bool:
        """Returns whether a text names an archive or goes on in one."""
        return split_name(text) is not None

    @staticmethod
    def check(name: str, max_pixels: int | None) -> None:
        """Raises ImageFileError if it is no plain file, or larger than such an image."""
        _checked(*_opened(name), max_pixels)

    @staticmethod
    def read(name: str) -> bytes:
        """Reads a file's bytes.

        Raises:
            OSError: the file is not there, or it is damaged.
            SourceError: the archive cannot be read.
        """
        archive, inner = _opened(name)
        return archive.read(inner)

    @staticmethod
    def head(name: str, size: int) -> bytes:
        """Reads the first bytes of a file; raises as `read`."""
        archive, inner = _opened(name)
        return archive.read(inner, size)

    @staticmethod
    def absolute(name: str) -> str:
        """Returns the name with the archive's absolute path."""
        path, inner = _parts(name)
        return f"{os.path.abspath(path)}/{inner}"

    @staticmethod
    def canonical(name: str) -> str:
        """Returns one spelling for all names of a file."""
        path, inner = _parts(name)
        return f"{FolderSource.canonical(path)}/{posixpath.normpath(inner)}"

    def open(self, observer: Observer) -> None:
        """Opens the archive before it is scanned, and shows progress if that decompresses it.

        Raises:
            SourceError: it cannot be read.
        """
        _opened(self.location, observer)

    def class_folders(self) -> list[str]:
        """Returns the names of the folders in the location that are not hidden, sorted.

        Raises:
            DatasetError: there is no such folder in the archive.
            SourceError: the archive cannot be read.
        """
        try:
            content = list(self.files_below(self.location, recursive=False))
        except FileNotFoundError as error:
            path, inner = _parts(self.location)
            raise DatasetError(f"there is no folder {inner} in {path}") from error
        return [posixpath.basename(name) for name, is_folder in content if is_folder]

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (name, whether it is a folder not entered), in the order of a folder on a disk.

        Raises:
            FileNotFoundError: there is no such folder in the archive.
            SourceError: the archive cannot be read.
        """
        archive, top = _opened(folder)
        outside, waiting = _parts(folder)[0], [top]
        while waiting:
            here = waiting.pop()
            inner: list[str] = []
            if here not in archive.folders:
                raise FileNotFoundError(2, "it is not in the archive", folder)
            for name in sorted(archive.folders[here]):
                path = f"{here}/{name}" if here else name
                is_folder = path in archive.folders
                if passed_over(name):
                    continue
                if is_folder and recursive:
                    inner.append(path)
                else:
                    yield f"{outside}/{path}", is_folder
            waiting += reversed(inner)

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file, judged by its size and first bytes.

        Raises:
            NotAnImageError: its content does not begin like an image.
            ImageFileError: it cannot be read, is no plain file, or is too large.
            SourceError: the archive cannot be read.
        """
        archive, inner = _opened(name)
        member = _checked(archive, inner, max_pixels)
        try:
            if not member.size:
                raise EmptyFileError
            if sniff(archive.read(inner, HEAD)) is None:
                raise NotAnImageError
        except OSError as error:
            raise ImageFileError(f"cannot be read: {reason_of(error)}") from error
        return _facts(archive, member)


def split_name(text: str) -> tuple[str, str] | None:
    """Returns (path of the archive, path in it or ""), or None if the text names no archive.

    One that this process has read is still an archive when its file is gone.
    """
    text = os.fspath(text)  # names of photos may be paths of pathlib
    for ending in ARCHIVE_NAME.finditer(text):
        path, inner = text[: ending.end()], text[ending.end() :].replace(os.sep, "/").strip("/")
        if os.path.isfile(path) and (inner or is_archive(path)):
            return path, inner
        if once_opened(path) and not os.path.lexists(path):
            return path, inner
    return None


def _other_parts(path: str) -> list[str]:
    """Returns the files near that are other parts of a download from Google Drive.

    Such files end with `-1-001.zip`, `-1-002.zip` and so on. Each is a whole archive.
    """
    folder, name = os.path.split(path)
    part = PART.fullmatch(name)
    if part is None:
        return []
    others = map(PART.fullmatch, sorted(os.listdir(folder or ".")))
    return [other[0] for other in others if other and other[1] == part[1] and other[0] != name]


def is_archive_folder(text: str) -> bool:
    """Returns whether a text names an archive, or a folder in one.

    Raises:
        SourceError: the archive cannot be read.
    """
    parts = split_name(text)
    return parts is not None and (not parts[1] or tidy(parts[1]) in _opened(text)[0].folders)


def _parts(name: str) -> tuple[str, str]:
    parts = split_name(name)
    if parts is None:
        raise SourceError(f"cannot read {name}: {GONE}")
    return parts


def _opened(name: str, observer: Observer | None = None) -> tuple[Archive, str]:
    """Returns (the archive, the path in it). Raises SourceError if it cannot be read."""
    path, inner = _parts(name)
    try:
        return opened(path, observer), tidy(inner)
    except FileNotFoundError as error:
        raise SourceError(f"cannot read {path}: {GONE}") from error
    except (ArchiveError, OSError) as error:
        raise SourceError(f"cannot read {path}: {reason_of(error)}") from error


def _checked(archive: Archive, name: str, max_pixels: int | None) -> Member:
    """Returns a file of an archive, after the checks of PhotoSource.check."""
    member = archive.members.get(name)
    if member is None:
        raise ImageFileError("cannot be read: it is not in the archive")
    if member.problem:
        reason = OSError(errno.EIO, member.problem)  # as Archive.read raises it
        raise ImageFileError(f"cannot be read: {member.problem}") from reason
    check_size(member.size, max_pixels)
    return member


def _facts(archive: Archive, member: Member) -> Facts:
    """Returns a file's Facts: in a zip its CRC-32, in a tar its place and the archive's time."""
    if member.check is not None:
        return Facts(member.size, member.check, settled=True)
    told = repr((archive.size, archive.mtime_ns, member.start)).encode()
    stamp = int.from_bytes(hashlib.sha1(told).digest()[:7])  # SQLite's integers have 8 bytes
    settled = time.time() - archive.mtime_ns / 1e9 > RACY_SECONDS
    return Facts(member.size, stamp, settled)
