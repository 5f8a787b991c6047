"""Folders and files, as a source of photos in class folders shows them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from retraining.photos.formats import named_like_image
from retraining.photos.source import Facts, passed_over


class Tree(Protocol):
    """Folders and files, as a source of photos in class folders shows them."""

    @property
    def location(self) -> str:
        """The folder that holds the class folders."""

    @property
    def remote(self) -> bool:
        """Whether each reading is slow, so that only names tell what a file is."""

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the location."""

    def class_folders(self) -> list[str]:
        """Returns the names of the folders in the location that are not hidden, sorted.

        Raises:
            DatasetError: the location cannot be read.
        """

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (name, whether it is a folder not entered) for the content of a folder, sorted.

        `folder` is the location or any folder in it. Hidden files and folders are skipped.

        Raises:
            OSError: the folder cannot be read.
        """

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file.

        Raises:
            NotAnImageError: it is known not to be an image.
            ImageFileError: it cannot be read, is not a regular file, or is too large.
        """

    def check(self, name: str, max_pixels: int | None) -> None:
        """Checks that a file can be read whole; see PhotoSource.check."""

    def read(self, name: str) -> bytes:
        """Reads the bytes of a file; see PhotoSource.read."""


class LabelledFile(NamedTuple):
    """A file with a label of its own, and with a split if the layout gives one."""

    label: str
    name: str
    split: str | None = None


@dataclass(frozen=True)
class Branch:
    """A Tree: a folder of another one, with all that is below it."""

    whole: Tree
    name: str  # of the folder, relative to the location of the whole

    @property
    def location(self) -> str:
        """The folder."""
        return self.whole.path_of(self.name)

    @property
    def remote(self) -> bool:
        """Whether each reading is slow."""
        return self.whole.remote

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the folder."""
        return self.whole.path_of(f"{self.name}/{relative}")

    def class_folders(self) -> list[str]:
        """Returns the names of the folders in this one that are not hidden, sorted."""
        content = self.whole.files_below(self.location, recursive=False)
        names = (os.path.basename(path) for path, is_folder in content if is_folder)
        return [name for name in names if not passed_over(name)]

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields the content of a folder; see Tree.files_below."""
        return self.whole.files_below(folder, recursive)

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file; see Tree.look_at."""
        return self.whole.look_at(name, max_pixels)

    def check(self, name: str, max_pixels: int | None) -> None:
        """Checks that a file can be read whole."""
        self.whole.check(name, max_pixels)

    def read(self, name: str) -> bytes:
        """Reads the bytes of a file."""
        return self.whole.read(name)


def holds(tree: Tree, folder: str, files: bool = False, photos: bool = False) -> bool:
    """Returns whether a folder holds anything, or any file, or any file named like a photo.

    It ends with the first. A folder that cannot be read counts as one that does.
    """
    try:
        for name, is_folder in tree.files_below(folder, recursive=False):
            if not (files or photos) or (not is_folder and (files or named_like_image(name))):
                return True
    except OSError:
        return not photos
    return False
