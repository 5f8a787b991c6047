"""Fills the example folder `flower_photos` if it is empty: fetches photos, or draws flowers."""

import os
import tempfile
from functools import partial
from pathlib import Path

from retraining.examples.drawings import (
    LABELS,
    NOTE_NAME,
    PHOTOS_BYTES,
    PHOTOS_URL,
    DrawingError,
    draw_flower_photos,
)
from retraining.system.archives import ArchiveError, unpack
from retraining.system.download import DownloadError, Remote, fetch
from retraining.system.observer import Bar, Observer
from retraining.system.scratch import scratch_folder

NAME = "flower_photos"
PER_CLASS = 60  # drawings in each class
PHOTOS = Remote(
    (PHOTOS_URL,),
    size=PHOTOS_BYTES,
    sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


def is_example_folder(image_dir: str, project: str | os.PathLike[str]) -> bool:
    """Returns whether `image_dir` is `flower_photos` in the current or the `project` folder."""
    path = os.path.realpath(image_dir)
    return path in (os.path.realpath(NAME), os.path.realpath(os.path.join(project, NAME)))


def provide(
    image_dir: str, offline: bool, observer: Observer, remote: Remote = PHOTOS
) -> str | None:
    """Fills the example folder with the photos or, if they cannot be fetched, with drawings.

    Prepares all files in a temporary folder first, and replaces nothing that exists. The observer
    shows progress. Returns why the photos could not be fetched, or None if they were.

    Raises:
        DrawingError: the folder cannot be written.
    """
    folder = Path(image_dir)
    reason = "`NetworkSettings.offline` was given" if offline else _fetch(folder, remote, observer)
    if reason:
        _draw(folder, observer.progress("drawing", "img"))
    return reason


def caveat(image_dir: str) -> str | None:
    """Returns the warning that the pictures in a folder are drawings, or None if they are not."""
    note = os.path.join(image_dir, NOTE_NAME)
    if not os.path.exists(note):
        return None
    return (
        f"the pictures in {image_dir} are drawings, since the photos could not be downloaded: "
        f"use the model only to try the tool; {note} says how to get the photos"
    )


def _fetch(folder: Path, remote: Remote, observer: Observer) -> str | None:
    """Fetches and unpacks the photos; returns the reason if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(".unpacking-", folder) as aside:
            archive = folder / f"{NAME}.tgz"
            fetch(remote, archive, observer, partial(_unpack_to, aside / "whole"))
            _move_in(aside / "whole" / NAME, folder)
        archive.unlink(missing_ok=True)
    except (DownloadError, OSError) as error:
        return str(error)
    return None


def _unpack_to(target: Path, archive: Path) -> None:
    """Unpacks an archive into a new folder beside `target`, which that becomes if all is well.

    Raises DownloadError.
    """
    fresh = Path(tempfile.mkdtemp(dir=target.parent))
    unpack(archive, fresh)
    if not (fresh / NAME).is_dir():
        raise ArchiveError(f"{archive} holds no folder {NAME}")
    os.replace(fresh, target)


def _draw(folder: Path, bar: Bar) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(".drawing-", folder) as aside:
            drawn = aside / "drawn"  # apart from the lock
            drawn.mkdir()
            with bar(total=PER_CLASS * len(LABELS)) as shown:
                draw_flower_photos(drawn, PER_CLASS, progress=lambda *_: shown.update())
            os.replace(drawn / NOTE_NAME, folder / NOTE_NAME)  # it comes before the drawings
            _move_in(drawn, folder)
    except OSError as error:
        raise DrawingError(f"cannot draw pictures into {folder}: {error.strerror}") from error


def _move_in(source: Path, target: Path) -> None:
    """Moves the content of `source` into `target`, and leaves alone what is already there."""
    for path in sorted(source.iterdir()):
        there = target / path.name
        if not os.path.lexists(there):
            os.replace(path, there)
        elif path.is_dir() and there.is_dir():
            _move_in(path, there)
