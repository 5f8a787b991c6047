"""The example folder `flower_photos`: fetched when it is empty, or else drawn. No TensorFlow."""

import os
import tempfile
from pathlib import Path

from retraining.examples.drawings import (
    LABELS,
    NOTE_NAME,
    PHOTOS_BYTES,
    PHOTOS_URL,
    DrawingError,
    draw_flower_photos,
)
from retraining.system.archives import unpack
from retraining.system.download import DownloadError, Remote, fetch

NAME = "flower_photos"
PER_CLASS = 60  # drawings
PHOTOS = Remote(
    (PHOTOS_URL,),
    size=PHOTOS_BYTES,
    sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


def is_example_folder(image_dir, project):
    """Whether `image_dir` is `flower_photos` in the current folder or in the `project` folder."""
    path = os.path.realpath(image_dir)
    return path in (os.path.realpath(NAME), os.path.realpath(os.path.join(project, NAME)))


def provide(image_dir, offline, bar, remote=PHOTOS):
    """Fills the example folder with the photos or, where they are not to be had, with drawings.

    What is put there is completed aside first, and nothing that exists is replaced. `bar(total=n)`
    makes a progress bar. Returns why the photos could not be fetched, or None if they were.

    Raises:
        DrawingError: the folder cannot be written.
    """
    folder = Path(image_dir)
    reason = "--offline was given" if offline else _fetch(folder, remote)
    if reason:
        _draw(folder, bar)
    return reason


def caveat(image_dir):
    """What must be said of the pictures in a folder: that they are drawings; else None."""
    note = os.path.join(image_dir, NOTE_NAME)
    if not os.path.exists(note):
        return None
    return (
        f"the pictures in {image_dir} are drawings, since the photos could not be fetched: the "
        f"model is for trying the tool only; {note} says how to get the photos"
    )


def _fetch(folder, remote):
    """Fetches and unpacks the photos; returns the reason if they are not to be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive = fetch(remote, folder / f"{NAME}.tgz")
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as aside:
            unpack(archive, Path(aside))
            _move_in(Path(aside) / NAME, folder)
        archive.unlink()
    except (DownloadError, OSError) as error:
        return str(error)
    return None


def _draw(folder, bar):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder) as aside:
            with bar(total=PER_CLASS * len(LABELS)) as shown:
                draw_flower_photos(Path(aside), PER_CLASS, progress=lambda *_: shown.update())
            os.replace(Path(aside) / NOTE_NAME, folder / NOTE_NAME)  # drawings never lie unmarked
            _move_in(Path(aside), folder)
    except OSError as error:
        raise DrawingError(f"cannot draw pictures into {folder}: {error.strerror}") from error


def _move_in(source, target):
    """Moves what is in `source` into `target`, leaving alone what is there already."""
    for path in sorted(source.iterdir()):
        there = target / path.name
        if not os.path.lexists(there):
            os.replace(path, there)
        elif path.is_dir() and there.is_dir():
            _move_in(path, there)
