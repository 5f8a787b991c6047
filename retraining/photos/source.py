"""Defines a photo source: what lists photos, and reads the bytes of each by its name.

A folder, an archive, a URL and a table are photo sources. `registry` chooses among
them. A photo's name says which kind of source reads it, so that names alone suffice to read photos
on threads, in other processes and on other machines.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Protocol

from retraining.errors import RetrainingError
from retraining.photos.bounds import MAX_PIXELS
from retraining.system.observer import ignore

# What systems and programs keep beside photos, in lower case. Names with a dot in front count, too.
IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"}
IGNORED |= {"system volume information", "lost+found"}
IN_CLOUD = ".icloud"  # ends the hidden file `.1.jpg.icloud` that stands for a photo in iCloud
FOLDER, NAME = LABELS_FROM = ("folder", "name")
ARCHIVE = "is an archive; unpack it, and give the unpacked folder"
RACY_SECONDS = 2.0  # a file changed so recently may change again within the clock's resolution


class DatasetError(RetrainingError):
    """Photos cannot be used for training. The text says why and what to do."""


class SourceError(RetrainingError):
    """A photo source cannot be listed or read. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Shows whether a file has changed: its size in bytes and a number that changes with it.

    `settled`: whether they will show every later change.
    """

    size: int
    stamp: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of a source: its name there, its label and split if the source assigns them.

    `facts` are those of the time of the scan; the default never counts as unchanged.
    """

    name: str
    label: str | None = None
    split: str | None = None
    facts: Facts = Facts(0, 0, settled=False)


@dataclass(frozen=True)
class BadImage:
    """A file that was left out, and why; `claimed` if its name or content is that of an image."""

    path: str
    reason: str
    claimed: bool = True
    label: str | None = field(default=None, compare=False)  # that it would have, if known


@dataclass(frozen=True)
class ScanOptions:
    """Which photos of a source a run takes."""

    recursive: bool = False  # also those in folders below the class folders
    max_pixels: int = MAX_PIXELS  # of the largest image
    excluded: tuple[str, ...] = ()  # names to leave out, see `exclude.without`
    not_images: Set[str] = frozenset()  # names of files that turned out to be no images
    seen: Callable[[], object] = ignore  # called for each file, to show progress
    split_folders: bool = True  # whether folders named `train`, `test` ... are splits, no classes
    classes: tuple[str, ...] = ()  # to take, in the order of the labels; none for all, sorted
    label_from: str = FOLDER  # or NAME: the label is in the photo's name


@dataclass(frozen=True)
class Scan:
    """The content of a source: {label: its photos}, in order; files left out; a line per oddity.

    `notes` are lines on a layout other than class folders.
    `folders` {label: the folders of the class} tells of labels that come from folders; `nested` are
    the folders in those that were skipped.
    """

    photos: dict[str, list[Photo]]
    bad: list[BadImage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folders: dict[str, list[str]] = field(default_factory=dict)
    nested: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, list[str]]:
        """{label: the names of its photos}."""
        return {label: [photo.name for photo in photos] for label, photos in self.photos.items()}


class PhotoSource(Protocol):
    """A place that holds photos. Instances can be pickled; making one reads nothing.

    The static methods take the name of any photo of this kind; `registry` calls them by the name
    alone. A source may list photos of another kind, as a table of URLs does.
    """

    def __init__(self, location: str) -> None:
        """Takes the text of `PhotoSettings.image_dir`."""

    @property
    def remote(self) -> bool:
        """Whether each reading is slow, so that a run reads a photo only once."""

    @property
    def location(self) -> str:
        """The text of `PhotoSettings.image_dir`."""

    def scan(self, options: ScanOptions | None = None, least_classes: int = 2) -> Scan:
        """Finds the photos and their labels.

        Raises:
            DatasetError: there are fewer than `least_classes` classes, or one has a name that
                cannot be a label.
            SourceError: the source cannot be listed.
        """

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the location."""

    @staticmethod
    def claims(text: str) -> bool:
        """Returns whether a location or a photo's name belongs to this kind of source."""

    @staticmethod
    def check(name: str, max_pixels: int | None) -> None:
        """Checks that a photo's file can be read whole: `max_pixels` limits its size in bytes.

        Raises:
            ImageFileError: it is not a regular file, or larger than an image of so many pixels.
            OSError, SourceError: as for `read`.
        """

    @staticmethod
    def read(name: str) -> bytes:
        """Reads the bytes of a photo's file.

        Raises:
            OSError: this file cannot be read.
            SourceError: no file of the source can be read, as far as is known.
        """

    @staticmethod
    def head(name: str, size: int) -> bytes:
        """Reads the first `size` bytes of a photo's file; raises as `read`."""

    @staticmethod
    def absolute(name: str) -> str:
        """Returns a name of the same photo that holds in every working folder."""

    @staticmethod
    def canonical(name: str) -> str:
        """Returns one spelling for all names of a file."""


def passed_over(name: str) -> bool:
    """Returns whether to skip files and folders of this name, such as hidden ones."""
    hidden = name.startswith(".") and not name.lower().endswith(IN_CLOUD)
    return hidden or name.lower() in IGNORED
