"""Makes temporary folders; removes those of runs that were killed."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retraining.system.locks import NO_LOCKS

LOCK = ".retrain-lock"  # in each folder; held by the process that made it


@contextlib.contextmanager
def scratch_folder(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """Yields a new folder in `place` (by default that of `tempfile`) and removes it at the end.

    A process that is killed leaves its folder behind, but the system releases the lock in it. The
    next call with the same prefix and place removes such folders.

    Raises:
        OSError: the folder cannot be made; it names the folder.
    """
    from filelock import BaseFileLock, FileLock, Timeout

    where = Path(place or _temporary_place())
    for leftover in where.glob(f"{prefix}*"):
        _remove_if_abandoned(leftover)
    held: BaseFileLock
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        held = FileLock(folder / LOCK, fallback_to_soft=False)
        try:
            held.acquire(timeout=0)
        except Timeout:
            continue  # another process took the folder for a leftover, before it was locked
        except OSError as error:
            if error.errno not in NO_LOCKS:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        if (folder / LOCK).exists():
            break
    try:
        yield folder
    finally:
        _remove_content(folder)
        if sys.platform == "win32":  # which cannot remove an open file
            held.release()
        shutil.rmtree(folder, ignore_errors=True)
        held.release()


def _temporary_place() -> str:
    """Returns the folder for temporary files. Raises OSError with the names of those tried."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        named = os.environ.get("TMPDIR", "/tmp")
        raise OSError(
            error.errno,
            "cannot write a temporary file; set TMPDIR to a folder that you can write to",
            named,
        ) from error


def _remove_if_abandoned(folder: Path) -> None:
    """Removes a folder of `scratch_folder` if its process has ended."""
    from filelock import FileLock, Timeout

    lock = folder / LOCK
    with contextlib.suppress(OSError, Timeout):
        mine = not hasattr(os, "getuid") or os.lstat(folder).st_uid == os.getuid()
        if folder.is_symlink() or not lock.is_file() or not mine:
            return  # not ours, or too new to be locked
        with FileLock(lock, timeout=0, fallback_to_soft=False):
            _remove_content(folder)
            if sys.platform != "win32":
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_content(folder: Path) -> None:
    """Removes all but the lock; without that, the next call takes the folder for somebody else's.

    This matters if the process is killed meanwhile.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
