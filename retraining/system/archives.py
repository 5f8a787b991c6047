"""Unpacks an archive completely or not at all, within limits that bind hostile archives, too."""

import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from retraining.system.atomic import replacing
from retraining.system.download import CHUNK, DownloadError
from retraining.system.regular import no_archive

MAX_BYTES = 2 << 30  # 2 GiB: ten times the largest archive that we fetch
MAX_MEMBERS = 10_000  # flower_photos, the largest that we fetch, has 3,679
MAX_NAME = 80  # characters of a member's name in a message
MAX_HEADER = 1 << 20  # bytes of all headers of one member of a tar
MAX_HEADERS = 128 << 20  # bytes of all headers of a tar
MAX_DIRECTORY = 32 << 20  # bytes of the list of members in a zip
MOST_DEFAULTS = 100  # values that a tar gives for all its members, each of which has a copy
# tarfile before Python 3.11.10 looks at such a run once for each of its digits (CVE-2024-6232).
DIGITS = re.compile(rb"[0-9]{64}")

# What the standard library raises for a broken archive.
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,  # an OSError, so caught before those
    zlib.error,
    EOFError,
    RuntimeError,  # from zipfile: encrypted, or an unknown compression
    ValueError,
)


class ArchiveError(DownloadError):
    """An archive is broken, hostile, or not an archive."""


def unpack(
    archive: Path,
    folder: Path,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> list[Path]:
    """Unpacks a zip, tar or tar.gz file; returns the paths of its files, in archive order.

    Keeps files that already exist. `max_bytes` limits the decompressed size, for a tar including
    headers; `max_members` limits the files and folders.

    Raises:
        ArchiveError: the archive is broken, too large, or holds anything but plain files and
            folders inside itself.
        DownloadError: a file cannot be written.
    After either error, no file that this call has written is left.
    """
    placed, written = [], []
    try:
        with _archive_errors(archive, folder):
            for name, open_member in _members(archive, Budget(max_bytes, max_members)):
                path = _destination(name, folder)
                if path is None:
                    continue
                if not os.path.lexists(path):
                    _write_member(open_member, path)
                    written.append(path)
                placed.append(path)
    except BaseException:
        # The checksum may be at the archive's very end: no file is known to be good.
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return placed


# ------------------------------------------------------------------------------ unpacking


class _Readable(Protocol):
    """A stream of bytes, read forwards only."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


_Member = tuple[str, Callable[[], _Readable]]  # path inside the archive, and its opener


@contextmanager
def _archive_errors(archive: Path, folder: Path) -> Iterator[None]:
    """Turns all errors of a broken archive or a full disk into our one-line errors."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"cannot unpack {archive}: {error}") from error
    except BROKEN as error:
        raise ArchiveError(f"cannot unpack {archive}: it is damaged ({error})") from error
    except OSError as error:
        reason = error.strerror or error
        raise DownloadError(f"cannot unpack {archive} into {folder}: {reason}") from error


class Budget:
    """Limits the bytes and members that are read, whatever sizes the archive claims."""

    def __init__(self, left: int, max_members: int) -> None:
        self.left, self.max_members = left, max_members
        self.members = 0

    def spend(self, size: int) -> None:
        """Counts bytes. Raises ArchiveError if they are too many."""
        self.left -= size
        if self.left < 0:
            raise ArchiveError("it unpacks to more bytes than allowed")

    def count_member(self) -> None:
        """Counts a file or folder. Raises ArchiveError if they are too many."""
        self.members += 1
        if self.members > self.max_members:
            raise ArchiveError(f"it has more than {self.max_members} files and folders")


class Metered:
    """Reads a stream forwards only and charges each byte to `budget`."""

    def __init__(self, stream: _Readable, budget: Budget) -> None:
        self.stream = stream
        self.budget = budget
        self.position = 0
        self.last = b""  # the bytes that the last read returned

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        self.last = self.stream.read(size)
        self.position += len(self.last)
        self.budget.spend(len(self.last))
        return self.last

    def seek(self, position: int) -> None:
        if position < self.position:
            raise ArchiveError("its members overlap")
        while self.position < position and Metered.read(self, min(CHUNK, position - self.position)):
            pass

    def close(self) -> None:
        self.stream.close()


class TarStream(Metered):
    """Limits what tarfile reads as headers: it keeps them in memory, however many there are."""

    def __init__(self, stream: _Readable, budget: Budget, headers: int | None = None) -> None:
        super().__init__(stream, budget)
        self._headers = MAX_HEADERS if headers is None else headers  # bytes left
        self._header: int | None = MAX_HEADER  # bytes left; None in the content of a member

    @contextmanager
    def content(self) -> Iterator[None]:
        """Lifts the limits of headers for the time of the context."""
        self._header = None
        yield
        self._header = MAX_HEADER

    def read(self, size: int) -> bytes:
        if self._header is None:
            return super().read(size)
        self._header -= size
        self._headers -= size
        if min(self._header, self._headers) < 0:
            raise ArchiveError("it has an oversized header")
        header = super().read(size)
        if size > tarfile.BLOCKSIZE and DIGITS.search(header):
            raise ArchiveError("it has a header of nothing but digits")
        return header


class ZipDirectory:
    """Limits what zipfile reads at once: it keeps the list of all members in memory."""

    def __init__(self, file: BinaryIO, most: int | None = None) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read, self._most = file.read, MAX_DIRECTORY if most is None else most

    def read(self, size: int = -1) -> bytes:
        content = self._read(size if 0 <= size <= self._most else self._most + 1)
        if len(content) > self._most:
            raise ArchiveError("it has an oversized list of members")
        return content


def _members(archive: Path, budget: Budget) -> Iterator[_Member]:
    """Yields the plain files in `archive`. Read each of them before the next."""
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
            raise ArchiveError(no_archive(start))


def _zip_members(file: BinaryIO, budget: Budget) -> Iterator[_Member]:
    limited: Any = ZipDirectory(file)  # zipfile's types ask for more of it
    with zipfile.ZipFile(limited) as archive:
        for info in archive.infolist():
            budget.count_member()
            # Not .filename: on Windows, zipfile turns its backslashes into slashes.
            name = info.orig_filename
            check_member(name)
            if info.is_dir():
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ArchiveError(f"its member {shown(name)} is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"its member {shown(name)} is compressed in an unusual way")
            yield name, partial(_open_zip_member, archive, info, budget)


def _open_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Metered:
    return Metered(archive.open(info), budget)


def _tar_members(stream: _Readable, budget: Budget) -> Iterator[_Member]:
    metered = TarStream(stream, budget)
    stream_of_tarfile: Any = metered  # whose types ask for write(), too
    with tarfile.open(fileobj=stream_of_tarfile, mode="r:") as archive:
        # It returns None only for members that are not files.
        open_member: Callable[[tarfile.TarInfo], Any] = archive.extractfile
        for member in tar_headers(archive, metered):
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():  # Metered does not see the zeros of holes
                raise ArchiveError(f"its member {shown(member.name)} is a link, a device or sparse")
            with metered.content():
                yield member.name, partial(open_member, member)
    while Metered.read(metered, CHUNK):
        pass  # the gzip checksum comes last


def tar_headers(archive: tarfile.TarFile, stream: TarStream) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar that reads `stream`, charged to the stream's budget, checked.

    Raises:
        ArchiveError: there are too many, one has a forbidden path or an oversized header, or the
            end is missing.
    """
    for member in archive:
        stream.budget.count_member()
        vars(archive)["members"].clear()  # it would keep all
        if len(archive.pax_headers) > MOST_DEFAULTS:
            raise ArchiveError("it has an oversized header")
        check_member(member.name)
        yield member
    # tarfile takes a damaged header for the end. A block of zeros marks the real end.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise ArchiveError("it is damaged (its end is missing)")


def shown(name: str) -> str:
    """Returns the name of a member for a message."""
    return repr(name[:MAX_NAME])


def check_member(name: str) -> None:
    """Raises ArchiveError for a path that would, on any system, lead out of the target folder."""
    parts = name.split("/")
    # Windows drops trailing dots and spaces: there, '.. ' means '..'.
    dots = any(part != "." and part and not part.strip(". ") for part in parts)
    drive = any(re.match("[A-Za-z]:", part) for part in parts)
    if name.startswith("/") or "\\" in name or "\0" in name or dots or drive:
        raise ArchiveError(f"its member {shown(name)} has a forbidden path")


def _destination(name: str, folder: Path) -> Path | None:
    """Returns a member's path on disk; None for the folder itself. Raises ArchiveError."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        return None
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ArchiveError(f"its member {shown(name)} would follow a link out of {folder}")
    return path


def _write_member(open_member: Callable[[], _Readable], path: Path) -> None:
    with closing(open_member()) as source, replacing(path, flush=False) as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
