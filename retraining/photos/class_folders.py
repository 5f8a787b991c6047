"""Finds the class folders of a tree of files, and the photos in them, for any photo source."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from retraining.photos.decode import ImageFileError, NotAnImageError, claims_to_be_image
from retraining.photos.source import BadImage, DatasetError, Facts, Photo, Scan, ScanOptions
from retraining.system.text import counted, some


class Tree(Protocol):
    """Folders and files, as a source of photos in class folders shows them."""

    @property
    def location(self) -> str:
        """The folder that holds the class folders."""

    def path_of(self, relative: str) -> str:
        """Returns the name of what lies at a path relative to the location."""

    def class_folders(self) -> list[str]:
        """Returns the names of the folders in the location that are not hidden, sorted.

        Raises:
            DatasetError: the location cannot be read.
        """

    def files_below(self, folder: str, recursive: bool) -> Iterator[tuple[str, bool]]:
        """Yields (name, whether it is a folder not entered) for the content of a folder, sorted.

        `folder` is the location or a class folder. Hidden files and folders are skipped.
        """

    def look_at(self, name: str, max_pixels: int) -> Facts:
        """Returns the Facts of an image file.

        Raises:
            NotAnImageError: it is known not to be an image.
            ImageFileError: it cannot be read, is not a regular file, or is too large.
        """


def scan_class_folders(tree: Tree, options: ScanOptions, least_classes: int) -> Scan:
    """Finds the photos below class folders, sorted.

    A label is the folder's name as it is spelled. Hidden files are skipped. Files whose content is
    not an image are BadImages.

    Raises:
        DatasetError: as for PhotoSource.scan.
    """
    scan = Scan({})
    for name in _class_names(tree, options, least_classes):
        folder = tree.path_of(name)
        files = _files_of(tree, folder, options, name)
        scan.photos[name] = files.photos
        scan.bad.extend(files.bad)
        if others := [image.path for image in files.bad if not image.claimed]:
            forms = f"file in {folder} is no image", f"files in {folder} are no images"
            scan.warnings.append(f"{counted(len(others), *forms)}: {some_names(others)}")
        if files.folders and not options.recursive:
            forms = f"folder in {folder} is", f"folders in {folder} are"
            scan.warnings.append(
                f"{counted(len(files.folders), *forms)} not looked into "
                f"({some_names(files.folders)}); `PhotoSettings.recursive` takes photos there, too"
            )
    return scan


def some_names(paths: Sequence[str]) -> str:
    """Returns the first of the paths' last parts, as text."""
    return some([os.path.basename(path) for path in paths])


def _class_names(tree: Tree, options: ScanOptions, least: int) -> list[str]:
    names = tree.class_folders()
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        has = f"only one ({names[0]})" if names else "none"
        if _files_of(tree, tree.location, replace(options, recursive=False)).photos:
            has += "; it holds images itself: name the folder above it, or sort them into classes"
        raise DatasetError(f"{tree.location} must hold {wanted} with photos and has {has}")
    _check_labels(tree.location, names)
    return names


def same_label(name: str) -> str:
    """Returns the name without what readers overlook: case, spaces, `_`, `-`, accents' form."""
    text = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"[\s_-]+", " ", text).strip()


def _check_labels(image_dir: str, names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise DatasetError(
                f"the class folder {name!r} in {image_dir} has characters that cannot stand in a "
                f"labels file; rename it"
            )
        other = first.setdefault(same_label(name), name)
        if other != name:
            raise DatasetError(
                f"the class folders {other!r} and {name!r} in {image_dir} would become one label; "
                f"rename or merge them"
            )


@dataclass(frozen=True)
class _Files:
    """The content of a folder: photos, files left out, folders not entered."""

    photos: list[Photo] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _files_of(tree: Tree, folder: str, options: ScanOptions, label: str | None = None) -> _Files:
    """Returns the content of the class folder of a label, or of another folder."""
    files = _Files()
    for name, is_folder in tree.files_below(folder, options.recursive):
        if is_folder:
            files.folders.append(name)
            continue
        try:
            facts = tree.look_at(name, options.max_pixels)
            if name in options.not_images:
                raise NotAnImageError
        except ImageFileError as error:
            files.bad.append(BadImage(name, str(error), claims_to_be_image(name, error)))
        else:
            files.photos.append(Photo(name, label, facts=facts))
    return files
