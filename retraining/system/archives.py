"""Unpacks an archive whole or not at all, within limits that no hostile archive can exceed."""

import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from retraining.system.download import CHUNK, DownloadError

MAX_BYTES = 2 << 30  # 2 GiB: ten times the largest archive we know of
MAX_MEMBERS = 100_000
MAX_READ = 1 << 20  # bytes that a header of an archive may have


class ArchiveError(DownloadError):
    """An archive is broken, hostile, or not an archive."""


def unpack(
    archive: Path,
    folder: Path,
    wanted: Collection[str] | None = None,
    max_bytes: int = MAX_BYTES,
    strip: int = 0,
) -> list[Path]:
    """Unpack a zip, tar or tar.gz file and return where its files now are, in archive order.

    `wanted` limits this to the members of those file names; `strip` drops that many leading
    folders from each member's path. A file that is there already is left as it is. `max_bytes`
    bounds all that is decompressed, for a tar including headers and what is not wanted.

    Raises ArchiveError if the archive is broken, holds anything but plain files and folders inside
    itself, or is too large; DownloadError if files cannot be written. Either way nothing that this
    call has written is left.
    """
    placed, written = [], []
    try:
        with _archive_errors(archive, folder):
            for name, open_member in _members(archive, _Budget(max_bytes)):
                path = _destination(name, folder, strip)
                if path is None or (wanted is not None and path.name not in wanted):
                    continue
                if not os.path.lexists(path):
                    _write_member(open_member, path)
                    written.append(path)
                placed.append(path)
    except BaseException:
        # A checksum may be at the archive's very end: none of the files is known to be good.
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return placed


# ------------------------------------------------------------------------------ unpacking

_Member = tuple[str, Callable[[], BinaryIO]]  # path inside the archive, and what opens it


@contextmanager
def _archive_errors(archive: Path, folder: Path) -> Iterator[None]:
    """Turn whatever a broken archive or a full disk can raise into our one-line errors."""
    broken = (
        zipfile.BadZipFile,
        tarfile.TarError,
        gzip.BadGzipFile,  # an OSError, hence caught before those
        zlib.error,
        EOFError,
        RuntimeError,  # zipfile: encrypted, or a compression it does not know
        ValueError,
    )
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"cannot unpack {archive}: {error}") from error
    except broken as error:
        raise ArchiveError(f"cannot unpack {archive}: it is damaged ({error})") from error
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"cannot unpack {archive} into {folder}: {reason}") from error


class _Budget:
    """The bytes that may still come out of an archive, whatever it says of its sizes."""

    def __init__(self, left: int):
        self.left = left

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ArchiveError("it unpacks to more bytes than allowed")


class _Metered:
    """A stream read forwards only, each byte of which is charged to `budget`.

    A read of more than MAX_READ bytes is refused: only for a hostile header does tarfile ask for
    so much at once, to keep it in memory.
    """

    def __init__(self, stream: BinaryIO, budget: _Budget):
        self.stream = stream
        self.budget = budget
        self.position = 0
        self.last = b""  # what the last read returned

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if size > MAX_READ:
            raise ArchiveError("it has an oversized header")
        self.last = self.stream.read(size)
        self.position += len(self.last)
        self.budget.spend(len(self.last))
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            raise ArchiveError("its members overlap")
        while self.position < position and self.read(min(CHUNK, position - self.position)):
            pass

    def close(self) -> None:
        self.stream.close()


def _members(archive: Path, budget: _Budget) -> Iterator[_Member]:
    """The plain files in `archive`, each to be read before the next is asked for."""
    with open(archive, "rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_members(file, budget)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as unzipped:
                yield from _tar_members(unzipped, budget)
        elif start[257:262] == b"ustar":
            yield from _tar_members(file, budget)
        else:
            hint = " but a web page" if start.lstrip().startswith(b"<") else ""
            raise ArchiveError(f"it is not a zip or tar file{hint}")


def _zip_members(file: BinaryIO, budget: _Budget) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for count, info in enumerate(archive.infolist(), 1):
            # Not .filename, in which zipfile on Windows has turned backslashes into slashes.
            name = info.orig_filename
            _check_member(name, count)
            if info.is_dir():
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ArchiveError(f"its member {name!r} is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"its member {name!r} is compressed in an unusual way")
            yield name, partial(_open_zip_member, archive, info, budget)


def _open_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget) -> _Metered:
    return _Metered(archive.open(info), budget)


def _tar_members(stream: BinaryIO, budget: _Budget) -> Iterator[_Member]:
    metered = _Metered(stream, budget)
    with tarfile.open(fileobj=metered, mode="r:") as archive:
        for count, member in enumerate(archive, 1):
            _check_member(member.name, count)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():  # a hole is a bomb not metered
                raise ArchiveError(f"its member {member.name!r} is a link, a device or sparse")
            yield member.name, partial(archive.extractfile, member)
    # tarfile takes a damaged header for the end, which is really marked by a block of zeros.
    if metered.last != bytes(tarfile.BLOCKSIZE):
        raise ArchiveError("it is damaged (its end is missing)")
    while metered.read(CHUNK):
        pass  # the gzip checksum comes last


def _check_member(name: str, count: int) -> None:
    """Raise ArchiveError for a path that leads, on any system, out of the folder unpacked into."""
    if count > MAX_MEMBERS:
        raise ArchiveError(f"it has more than {MAX_MEMBERS} members")
    parts = name.split("/")
    # Windows drops trailing dots and spaces, so that '.. ' would be '..' there.
    dots = any(part != "." and part and not part.strip(". ") for part in parts)
    drive = any(re.match("[A-Za-z]:", part) for part in parts)
    if name.startswith("/") or "\\" in name or "\0" in name or dots or drive:
        raise ArchiveError(f"its member {name!r} has a forbidden path")


def _destination(name: str, folder: Path, strip: int) -> Path | None:
    """Where a member goes; None if nothing of its path is left. Raises ArchiveError."""
    parts = [part for part in name.split("/") if part not in ("", ".")][strip:]
    if not parts:
        return None
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ArchiveError(f"its member {name!r} would follow a link out of {folder}")
    return path


def _write_member(open_member: Callable[[], BinaryIO], path: Path) -> None:
    """Write a member to `path` under a temporary name, which it loses when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with closing(open_member()) as source, open(temporary, "wb") as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
