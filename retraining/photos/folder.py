"""Photos in a folder of this machine."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retraining.photos.bounds import MAX_PIXELS, ImageFileError, InCloudError, NotAnImageError
from retraining.photos.class_folders import scan_class_folders
from retraining.photos.formats import begins_like_image, check_regular, reason_of
from retraining.photos.source import (
    ARCHIVE,
    IN_CLOUD,
    RACY_SECONDS,
    DatasetError,
    Facts,
    Scan,
    ScanOptions,
    passed_over,
)
from retraining.system.regular import ARCHIVE_NAME, archive_ending, head_of, no_archive

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")  # endings of tables of photos


@dataclass(frozen=True)
class FolderSource:
    """A PhotoSource: a folder with a sub-folder for each class."""

    location: str
    remote: ClassVar[bool] = False

    def scan(self, options: ScanOptions | None = None, least_classes: int = 2) -> Scan:
        """Finds the photos; see PhotoSource.scan."""
        return scan_class_folders(self, options or ScanOptions(), least_classes)

    def path_of(self, relative: str) -> str:
        """Returns the path of what lies at a path relative to the folder."""
        return os.path.join(self.location, relative)

    @staticmethod
    def claims(text: str) -> bool:
        """Returns True: any text can be a path."""
        return True

    @staticmethod
    def check(name: str, max_pixels: int | None) -> None:
        """Raises ImageFileError if it is not a regular file, or larger than such an image."""
        check_regular(name, max_pixels)

    @staticmethod
    def read(name: str) -> bytes:
        """Reads a file's bytes, no more than its size. Raises OSError if it cannot be read."""
        with open(name, "rb") as file:
            return file.read(os.fstat(file.fileno()).st_size)

    @staticmethod
    def head(name: str, size: int) -> bytes:
        """Reads the first bytes of a file. Raises OSError if it cannot be read."""
        with open(name, "rb") as file:
            return file.read(size)

    @staticmethod
    def absolute(name: str) -> str:
        """Returns the absolute path."""
        return os.path.abspath(name)

    @staticmethod
    def canonical(name: str) -> str:
        """Returns one spelling for all paths to a file; a link counts as a file of its own."""
        folder, file = os.path.split(name)
        return os.path.join(os.path.normcase(os.path.realpath(folder)), os.path.normcase(file))

    def class_folders(self) -> list[str]:
        """Returns the names of the sub-folders that are not hidden, sorted.

        Raises:
            DatasetError: the folder cannot be read.
        """
        try:
            names = sorted(os.listdir(self.location))
        except OSError as error:
            raise DatasetError(_no_folder(self.location, error)) from error
        return [name for name in names if not passed_over(name) and self._is_inner(name)]

    def _is_inner(self, name: str) -> bool:
        """Returns whether it is a folder, but no link that leads back to this one or above it."""
        path = self.path_of(name)
        if not os.path.isdir(path):
            return False
        return not os.path.islink(path) or os.path.realpath(path) not in _above(self.location)

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (path, whether it is a folder not entered); see `files_below`."""
        return files_below(folder, recursive)

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file; see `look_at_image`."""
        return look_at_image(name, max_pixels)

    def holds_images(self) -> bool:
        """Returns whether any folder below this one holds an image."""
        try:
            folders = [entry.path for entry in os.scandir(self.location) if entry.is_dir()]
            files = (file for folder in folders for file in files_below(folder))
            return any(not is_folder and _is_image(path) for path, is_folder in files)
        except OSError:
            return False


def _no_folder(location: str, error: OSError) -> str:
    """Returns a text on a location that cannot be listed, such as a file."""
    ending = archive_ending(location)
    if ending:
        return f"{location} is an archive; rename it so that its name ends in {ending}"
    if ending is not None:
        return f"{location} {ARCHIVE}"
    if os.path.isfile(location) and ARCHIVE_NAME.search(os.path.basename(location)):
        return f"{location} is no archive: {no_archive(head_of(location))}; download it again"
    if os.path.isfile(location) and os.path.splitext(location)[1].lower() in TABLES:
        return f"{location} is a file; give a table of photos as `PhotoSettings.photo_table`"
    return (
        f"cannot read the image folder {location} ({error.strerror}); it must be a folder with one "
        f"sub-folder of photos per class"
    )


def files_below(
    folder: str, recursive: bool = True, left_out: str | None = None
) -> Iterator[tuple[str, bool]]:
    """Yields (path, whether it is a folder not entered) for the content of a folder, sorted.

    Skips hidden files and folders, and the folder whose real path is `left_out`. Enters a folder
    once, however many links lead to it, and none that holds `folder`.
    """
    entered, waiting = {left_out, *_above(folder)[1:]}, [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        inner: list[str] = []
        try:
            with os.scandir(here) as entries:  # these know which are folders
                names = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError:
            if here == folder:
                raise
            yield here, False  # reported as an unreadable image
            continue
        for name, is_folder in names:
            path = os.path.join(here, name)
            if passed_over(name):
                continue
            if not is_folder:
                yield path, False
            elif recursive:
                inner.append(path)
            else:
                yield path, True
        waiting += reversed(inner)


def _above(folder: str) -> list[str]:
    """Returns the real paths of a folder and of those that it lies in, up to the root."""
    path = Path(os.path.realpath(folder))
    return [str(path), *map(str, path.parents)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def look_at_image(path: str, max_pixels: int = MAX_PIXELS) -> Facts:
    """Returns the Facts of an image file, judged by its size and first bytes.

    Raises:
        NotAnImageError: its content does not begin like an image.
        ImageFileError: it cannot be read, is not a regular file, is too large, or stands for a
            photo in a cloud.
    """
    status = check_regular(path, max_pixels)
    if path.lower().endswith(IN_CLOUD):
        raise InCloudError
    try:
        with open(path, "rb", buffering=0) as file:
            if not begins_like_image(file):
                raise NotAnImageError
    except OSError as error:
        raise ImageFileError(f"cannot be read: {reason_of(error)}") from error
    return facts_of(status)


def facts_of(status: os.stat_result) -> Facts:
    """Returns the Facts in a file's status."""
    settled = time.time() - status.st_mtime > RACY_SECONDS
    return Facts(status.st_size, status.st_mtime_ns, settled)


def _is_image(path: str) -> bool:
    try:
        look_at_image(path)
    except ImageFileError:
        return False
    return True
