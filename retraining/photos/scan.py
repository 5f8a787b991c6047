"""Finds the class folders of an image folder, and the images in them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from retraining.errors import RetrainingError
from retraining.photos import places
from retraining.photos.decode import MAX_PIXELS, ImageFileError, looks_like_image, named_like_image
from retraining.photos.listing import Listing
from retraining.system.text import counted, some


class DatasetError(RetrainingError):
    """A folder cannot be used for training. The text says why and what to do."""


@dataclass(frozen=True)
class BadImage:
    """A file that was left out, and why; `claimed` if its name or content is that of an image."""

    path: str
    reason: str
    claimed: bool = True


@dataclass(frozen=True)
class ScanOptions:
    """Which files a scan takes."""

    recursive: bool = False  # also those in folders below the class folders
    max_pixels: int = MAX_PIXELS  # of the largest image
    listed: tuple[str, ...] = ()  # paths to leave out, see `read_listed`
    listing: Listing | None = None  # of the files below a URL


def list_photos(
    image_dir: str, scan: ScanOptions | None = None, least_classes: int = 2
) -> tuple[dict[str, list[str]], list[BadImage], list[str]]:
    """Returns ({label: [path, ...]}, [BadImage, ...], warnings), sorted.

    A label is the folder's name as it is spelled. Hidden files are skipped. Files whose content is
    not an image are BadImages.

    Raises:
        DatasetError: as for `load_dataset`.
    """
    scan = scan or ScanOptions()
    photos: dict[str, list[str]] = {}
    bad: list[BadImage] = []
    warnings: list[str] = []
    for name in _class_folders(image_dir, scan, least_classes):
        folder = places.join(image_dir, name)
        photos[name], bad_here, inner = _image_files(folder, scan)
        bad += bad_here
        if others := [image.path for image in bad_here if not image.claimed]:
            said = f"file in {folder} is no image", f"files in {folder} are no images"
            warnings.append(f"{counted(len(others), *said)}: {some_names(others)}")
        if inner and not scan.recursive:
            said = f"folder in {folder} is", f"folders in {folder} are"
            warnings.append(
                f"{counted(len(inner), *said)} not looked into ({some_names(inner)}); "
                f"`PhotoSettings.recursive` takes photos there, too"
            )
    return photos, bad, warnings


def some_names(paths: Sequence[str]) -> str:
    return some([os.path.basename(path) for path in paths])


def _folders(image_dir: str) -> list[str]:
    try:
        entries = sorted(os.listdir(image_dir))
    except OSError as error:
        raise DatasetError(
            f"cannot read the image folder {image_dir} ({error.strerror}); it must be a folder "
            f"with one sub-folder of photos per class"
        ) from error
    return [
        n for n in entries if not n.startswith(".") and os.path.isdir(os.path.join(image_dir, n))
    ]


def _class_folders(image_dir: str, scan: ScanOptions, least: int) -> list[str]:
    names = scan.listing.folders() if scan.listing else _folders(image_dir)
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        found = f"only one ({names[0]})" if names else "none"
        if _image_files(image_dir, replace(scan, recursive=False))[0]:
            found += "; it holds images itself: name the folder above it, or sort them into classes"
        raise DatasetError(f"{image_dir} must hold {wanted} with photos and has {found}")
    _check_labels(image_dir, names)
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


def holds_images(image_dir: str) -> bool:
    """Returns whether any sub-folder of `image_dir` holds an image."""
    try:
        folders = [entry.path for entry in os.scandir(image_dir) if entry.is_dir()]
        return any(_image_files(folder, ScanOptions())[0] for folder in folders)
    except OSError:
        return False


def files_below(
    folder: str, recursive: bool = True, left_out: str | None = None
) -> Iterator[tuple[str, bool]]:
    """Yields (path, whether it is a folder not entered) for the content of a folder, sorted.

    Skips hidden files and folders, and the folder whose real path is `left_out`. Enters a folder
    once, however many links lead to it.
    """
    entered, waiting = {left_out}, [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        inner: list[str] = []
        try:
            names = sorted(os.listdir(here))
        except OSError:
            if here == folder:
                raise
            yield here, False  # reported as an unreadable image
            continue
        for name in names:
            path = os.path.join(here, name)
            if places.passed_over(name):
                continue
            if not os.path.isdir(path):
                yield path, False
            elif recursive:
                inner.append(path)
            else:
                yield path, True
        waiting += reversed(inner)


def _image_files(folder: str, scan: ScanOptions) -> tuple[list[str], list[BadImage], list[str]]:
    """Returns (images, BadImages, folders not entered) of a class folder."""
    images: list[str] = []
    bad: list[BadImage] = []
    folders: list[str] = []
    below: Callable[[str, bool], Iterator[tuple[str, bool]]] = files_below
    why_not: Callable[[str, int], str | None] = why_no_image
    if scan.listing:
        below, why_not = scan.listing.files_below, scan.listing.why_no_image
    for path, is_folder in below(folder, scan.recursive):
        if is_folder:
            folders.append(path)
        elif reason := why_not(path, scan.max_pixels):
            claimed = named_like_image(path) or reason != NO_IMAGE
            bad.append(BadImage(path, reason, claimed))
        else:
            images.append(path)
    return images, bad, folders


NO_IMAGE = "is not an image of a known format"


def why_no_image(path: str, max_pixels: int = MAX_PIXELS) -> str | None:
    """Returns why a file is not an image, judged by its size and first bytes, or None."""
    try:
        return None if looks_like_image(path, max_pixels) else NO_IMAGE
    except ImageFileError as error:
        return str(error)


def hash_file(path: str) -> str:
    """Returns the SHA-1 of the file's bytes, hex.

    Raises:
        OSError: the file cannot be read.
    """
    if places.is_url(path):
        return hashlib.sha1(places.read(path)).hexdigest()
    digest = hashlib.sha1()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
