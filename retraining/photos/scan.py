"""Finds the class folders of an image folder, and the images in them."""

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass, replace

from retraining.errors import RetrainingError
from retraining.photos import places
from retraining.photos.decode import MAX_PIXELS, ImageFileError, looks_like_image, named_like_image
from retraining.photos.listing import Listing
from retraining.system.text import counted, some


class DatasetError(RetrainingError):
    """The folder cannot be trained on; says why and what to do."""


@dataclass(frozen=True)
class BadImage:
    """A file that was left out, and why. One that is not `claimed` is no image, nor named so."""

    path: str
    reason: str
    claimed: bool = True


@dataclass(frozen=True)
class ScanOptions:
    """Which files are looked at: those below the class folders, too; how large they may be; the
    paths `listed` (see `read_listed`) are left out; the `listing` of what lies below a URL."""

    recursive: bool = False
    max_pixels: int = MAX_PIXELS
    listed: tuple[str, ...] = ()
    listing: Listing | None = None


def list_photos(image_dir, scan=None, least_classes=2):
    """Returns ({label: [path, ...]}, [BadImage, ...], warnings), sorted.

    A label is the folder's name as it is spelled. Hidden files are passed over; what is no image
    by its content is among the bad ones.

    Raises:
        DatasetError: as `load_dataset`.
    """
    scan = scan or ScanOptions()
    photos, bad, warnings = {}, [], []
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
                f"{counted(len(inner), *said)} not looked into ({some_names(inner)}); --recursive "
                f"takes photos there, too"
            )
    return photos, bad, warnings


def some_names(paths):
    return some([os.path.basename(path) for path in paths])


def _folders(image_dir):
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


def _class_folders(image_dir, scan, least):
    names = scan.listing.folders() if scan.listing else _folders(image_dir)
    if len(names) < least:
        wanted = "at least two class folders" if least == 2 else "a class folder"
        found = f"only one ({names[0]})" if names else "none"
        if _image_files(image_dir, replace(scan, recursive=False))[0]:
            found += "; it holds images itself: name the folder above it, or sort them into classes"
        raise DatasetError(f"{image_dir} must hold {wanted} with photos and has {found}")
    _check_labels(image_dir, names)
    return names


def same_label(name):
    """The name without what a reader overlooks: case, spaces, `_`, `-`, the form of accents."""
    text = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"[\s_-]+", " ", text).strip()


def _check_labels(image_dir, names):
    first = {}
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


def holds_images(image_dir):
    """Whether some sub-folder of `image_dir` holds an image."""
    try:
        folders = [entry.path for entry in os.scandir(image_dir) if entry.is_dir()]
        return any(_image_files(folder, ScanOptions())[0] for folder in folders)
    except OSError:
        return False


def files_below(folder, recursive=True, left_out=None):
    """Yields (path, whether it is a folder not entered) of what is in a folder, sorted.

    Hidden files and folders are passed over, as is the folder of real path `left_out`. A folder
    is entered once, however links lead to it.
    """
    entered, waiting = {left_out}, [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        inner = []
        try:
            names = sorted(os.listdir(here))
        except OSError:
            if here == folder:
                raise
            yield here, False  # which is no image that can be read
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


def _image_files(folder, scan):
    """(images, BadImages, folders not entered) of a class folder."""
    images, bad, folders = [], [], []
    below, why_not = files_below, why_no_image
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


def why_no_image(path, max_pixels=MAX_PIXELS):
    """Why a file is no image as far as its size and beginning tell, or None."""
    try:
        return None if looks_like_image(path, max_pixels) else NO_IMAGE
    except ImageFileError as error:
        return str(error)


def hash_file(path):
    """SHA-1 of the file's bytes, hex.

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
