"""Writes files and new folders. Replaces nothing before its replacement is complete."""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, TypeAlias, TypeVar

from retraining.errors import RetrainingError

AnyPath = TypeVar("AnyPath", str, Path)
# A file, a file in parts, what writes a file, or a new folder: {path in it: bytes}.
Content: TypeAlias = bytes | tuple[bytes, ...] | Callable[[BinaryIO], None] | dict[str, bytes]

MOST_JOURNAL = 1 << 20  # bytes
LEFTOVER_SECONDS = 86_400.0  # the age at which no run can still use a temporary file


class WriteError(RetrainingError):
    """A file cannot be written. The text says which file and why."""


def write_files(
    contents: Mapping[AnyPath, Content],
    journal: Path | None = None,
    moved: Mapping[Path, Path] = MappingProxyType({}),
) -> None:
    """Writes {path: bytes} under temporary names, flushes all to disk, and only then renames them.

    To create a folder, give its content as {path in it: bytes}. A tuple holds the parts of a file;
    joining them would take their memory twice. A function writes a file that would take too much
    memory as a whole.

    `moved` are {path: new path} of existing files that are renamed first. `journal` names a file
    that lists the renames while they go on. If the process is killed meanwhile, `finish_writing`
    completes them.

    Raises:
        WriteError: a file cannot be written; then none of them is replaced. If a rename itself
            fails, the journal and the temporary files stay, and `finish_writing` tries it again.
    """
    # If a path is a link, its target is replaced.
    temporary = {Path(os.path.realpath(path)): content for path, content in contents.items()}
    for path in temporary:
        _check_replaceable(path)
    mark = _mark(journal)
    names = {path: temporary_name(path, f"{mark}{number}") for number, path in enumerate(temporary)}
    renames = [
        (Path(os.path.abspath(old)), Path(os.path.abspath(new))) for old, new in moved.items()
    ]
    renames += [(name, path) for path, name in names.items()]
    kept = False  # the journal still needs the temporary files
    try:
        try:
            for path, content in temporary.items():
                _write_flushed(names[path], content)
            if journal:
                _write_journal(journal, renames)
                kept = True
            for name, path in renames:
                _rename(name, path)
            if journal:
                journal.unlink(missing_ok=True)
                kept = False
        finally:
            for name in () if kept else names.values():
                _remove(name)
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"cannot write {error.filename or path}: {reason}") from error


def finish_writing(journal: Path) -> list[Path]:
    """Completes the renames that a killed `write_files` has listed in its journal.

    Returns the paths that have got their new content, none if there is no journal.

    Raises:
        WriteError: a file cannot be renamed. Those that can be are.
    """
    if not journal.is_file():
        return []
    done, failed = [], None
    for name, path in _read_journal(journal):
        try:
            if os.path.lexists(name):
                _rename(name, path)
                done.append(path)
        except OSError as error:
            failed = WriteError(f"cannot write {path}: {error.strerror or error}")
    if failed:
        raise failed
    with contextlib.suppress(OSError):  # a later run tries again
        journal.unlink(missing_ok=True)
    return done


def journal_of(path: str | os.PathLike[str]) -> Path:
    """Returns the path of the journal of files that are written together with `path`."""
    place = Path(os.path.realpath(path))
    digest = hashlib.sha1(os.fsencode(place.name), usedforsecurity=False).hexdigest()
    return place.with_name(f".retrain-{digest[:12]}.journal")


def _mark(journal: Path | None) -> str:
    """Returns what the names of temporary files contain that the journal may still list."""
    if journal is None:
        return ""
    place = os.fsencode(os.path.realpath(journal))
    return f"j{hashlib.sha1(place, usedforsecurity=False).hexdigest()[:12]}-"


def _write_journal(journal: Path, renames: Sequence[tuple[Path, Path]]) -> None:
    """Writes a journal, whole or not at all, once the temporary files will survive a power cut."""
    for folder in {name.parent for name, _ in renames}:
        _flush_folder(folder)
    pairs = [[os.fspath(name), os.fspath(path)] for name, path in renames]
    with replacing(journal) as file:
        file.write(json.dumps(pairs).encode("ascii"))
    _flush_folder(journal.parent)


def _read_journal(journal: Path) -> list[tuple[Path, Path]]:
    """Returns the renames in a journal; none if there is no sound one.

    A journal may come from somebody else. A rename within a folder gives nobody a file that they
    could not have put there, so only such renames count.
    """
    try:
        with open(journal, "rb") as file:
            pairs = json.loads(file.read(MOST_JOURNAL))
        renames = [(Path(name), Path(path)) for name, path in pairs]
    except (OSError, ValueError, TypeError):
        return []
    return [(name, path) for name, path in renames if name.parent == path.parent]


def _rename(name: Path, path: Path) -> None:
    """Renames a file durably; another process may have completed this rename from the journal."""
    try:
        os.replace(name, path)
    except FileNotFoundError:
        if not os.path.lexists(path):
            raise
    _flush_folder(path.parent)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], flush: bool = True) -> Iterator[BinaryIO]:
    """Yields a file under a temporary name, which replaces `path` once it is complete.

    `flush` writes it to disk before that, which takes long for thousands of files.

    Raises:
        OSError: the file cannot be written.
    """
    place = Path(os.path.realpath(path))
    temporary = temporary_name(place, os.urandom(8).hex())  # other threads may write here, too
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                yield file
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives an OSError the name of the file, which those of writing, unlike opening, lack."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def _write_flushed(path: Path, content: Content) -> None:
    if isinstance(content, dict):
        for name, inside in content.items():
            _write_flushed(path / name, inside)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.writelines(content if isinstance(content, tuple) else (content,))
        file.flush()
        os.fsync(file.fileno())


def _remove(temporary: Path) -> None:
    """Removes a file or folder under one of our temporary names, if it exists."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path, number: int | str) -> Path:
    """Returns a temporary name in the same folder, short since `path` may be as long as allowed."""
    return path.with_name(f".retrain-{os.getpid()}-{_processes()}-{number}.part")


@functools.cache
def _processes() -> str:
    """Returns a digest that two machines, boots or containers, which number processes, differ in.

    It is '0' where the system does not tell them apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        facts = f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "0"
    return hashlib.sha1(facts.encode(), usedforsecurity=False).hexdigest()[:12]


def _flush_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power failure, where the system supports it."""
    if os.name == "posix":  # Windows cannot open folders
        with contextlib.suppress(OSError):  # nor can some file systems
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _check_replaceable(path: Path) -> None:
    if path.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():  # such as /dev/null: a rename would replace it
        raise WriteError(f"cannot write {path}: it is a device or a pipe, not a file")


def check_writable(path: str | Path, journal: Path | None = None) -> None:
    """Checks that a file can be written to `path`, before a run spends hours on its content.

    Does not create the file's folder, so that a run that ends early leaves no empty folder. Removes
    temporary files of killed runs from it; call `finish_writing` for the `journal` of the file
    first.

    Raises:
        WriteError: `path` is a folder, or its folder cannot be created or written to.
    """
    path = Path(os.path.realpath(path))
    try:
        _check_replaceable(path)
        nearest = next((folder for folder in path.parents if folder.exists()), path.anchor)
        with tempfile.TemporaryFile(dir=nearest):
            pass
        _remove_leftovers(path.parent, journal)
    except OSError as error:
        raise WriteError(f"cannot write into {path.parent}: {error.strerror}") from error


def _remove_leftovers(folder: Path, journal: Path | None) -> None:
    """Removes temporary files of killed runs: at once where that is known, or after a day.

    A journal may list those that bear its mark. They stay for a day unless it is `journal`, which
    has been completed, and for ever while it lies in the folder.
    """
    listed = {
        name for other in folder.glob(".retrain-*.journal") for name, _ in _read_journal(other)
    }
    for part in set(folder.glob(".retrain-*.part")) - listed:
        with contextlib.suppress(FileNotFoundError):  # another process has removed or renamed it
            is_old = time.time() - part.stat().st_mtime > LEFTOVER_SECONDS
            if is_old or _is_abandoned(part.name, _mark(journal)):
                _remove(part)


def _is_abandoned(name: str, mark: str) -> bool:
    """Returns whether the process that chose a temporary name has ended, and no other needs it."""
    match = re.fullmatch(r"\.retrain-(\d{1,9})-(\w+)-(j\w+-)?\w+\.part", name)
    if not match or match[2] == "0" or match[2] != _processes():
        return False
    return (match[3] or "") in ("", mark) and not _is_running(int(match[1]))


def _is_running(process: int) -> bool:
    """Returns whether there is a process of this number; on Windows this would end it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def is_within(path: str | Path, folder: str | Path) -> bool:
    """Returns whether a real path is the real path `folder` or lies inside it."""
    return Path(path).is_relative_to(folder)
