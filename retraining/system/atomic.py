"""Writes files, and new folders, so that nothing is replaced before its replacement is complete."""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from retraining.errors import RetrainingError

LEFTOVER_SECONDS = 86_400.0  # age of a temporary file that no run can be using any more


class WriteError(RetrainingError):
    """A file cannot be written; says which and why."""


def write_files(contents):
    """Writes {path: bytes}: all under temporary names, flushed to disk, and only then renamed.

    In place of bytes there may be the content of a new folder, {path in it: bytes}.

    Raises:
        WriteError: one of them cannot be written; then none is replaced.
    """
    # Where a path is a link, what it points to is replaced.
    temporary = {Path(os.path.realpath(path)): content for path, content in contents.items()}
    for path in temporary:
        _check_replaceable(path)
    names = {path: temporary_name(path, number) for number, path in enumerate(temporary)}
    try:
        try:
            for path, content in temporary.items():
                _write_flushed(names[path], content)
            for path, name in names.items():
                os.replace(name, path)
                _flush_folder(path.parent)
        finally:
            for name in names.values():
                _remove(name)
    except OSError as error:
        raise WriteError(f"cannot write {error.filename or path}: {error.strerror}") from error


def _write_flushed(path, content):
    if isinstance(content, dict):
        for name, inside in content.items():
            _write_flushed(path / name, inside)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(temporary):
    """Removes a file or folder that has one of our temporary names, if there is one."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def temporary_name(path, number):
    """A temporary name in the same folder; short, since `path` may be as long as names can be."""
    return path.with_name(f".retrain-{os.getpid()}-{number}.part")


def _flush_folder(folder):
    """Makes the renaming of a file in it outlive a loss of power, where the system can."""
    if os.name == "posix":  # Windows does not open folders
        with contextlib.suppress(OSError):  # nor do all file systems
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _check_replaceable(path):
    if path.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():  # as /dev/null: renaming would put a file in its place
        raise WriteError(f"cannot write {path}: it is a device or a pipe, not a file")


def check_writable(path):
    """Whether a file can be put at `path`, before hours are spent on its content.

    Its folder is not made yet, so that a run that ends early leaves no empty one.

    Raises:
        WriteError: it is a folder, or its folder cannot be made or written to.
    """
    path = Path(os.path.realpath(path))
    try:
        _check_replaceable(path)
        nearest = next((folder for folder in path.parents if folder.exists()), path.anchor)
        with tempfile.TemporaryFile(dir=nearest):
            pass
        _remove_leftovers(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write into {path.parent}: {error.strerror}") from error


def _remove_leftovers(folder):
    """Removes temporary files of runs that were killed, once they are a day old."""
    for part in folder.glob(".retrain-*.part"):
        if time.time() - part.stat().st_mtime > LEFTOVER_SECONDS:
            _remove(part)


def is_within(path, folder):
    """Whether a real path is the real path `folder` or lies in it."""
    return Path(path).is_relative_to(folder)
