"""Reads the files in an archive one by one, at random, without unpacking them onto the disk.

A zip lists its members, and a tar has a header before each, so one look at either tells where each
file lies. A compressed tar can only be read from its beginning. It is decompressed once, into a
temporary file without a name, which then is a tar like any other: a pass through the archive for
each file that is read again would cost far more. Having no name, the file is gone with the process,
however that ends. The photos take the room of the archive once more, and no file each.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, NamedTuple

from retraining.system.archives import (
    BROKEN,
    ArchiveError,
    Budget,
    TarStream,
    ZipDirectory,
    check_member,
    shown,
    tar_headers,
)
from retraining.system.observer import Observer, Silent
from retraining.system.regular import TAR, no_archive, open_regular

CHUNK = 1 << 20  # bytes
MOST_MEMBERS = 1_000_000  # files and folders; some 400 MB of memory
MOST_DIRECTORY = 64 << 20  # bytes of the list of members of a zip; 100 or so for a member
MOST_NAMES = 256 << 20  # characters of the names of all files and folders
MOST_HEADERS = 1 << 30  # bytes of all headers of a tar; macOS writes 1.5 kB for a file
# Bytes that a compressed tar may decompress to: photos shrink by a few percent, bitmaps by more.
LEAST_ROOM, MOST_RATIO = 4 << 30, 20
XZ_MEMORY = 256 << 20  # bytes; `xz -9` takes 65 MiB
ZSTD_WINDOW = 128 << 20  # bytes; what `zstd --long` takes
LOCAL_HEADER = 30  # bytes, before the name, in a zip
LEAST_SHOWN = 32 << 20  # bytes of a compressed tar; smaller ones take no second
MOST_OPEN = 64  # archives that a process keeps open; a table may name photos in many
ENCRYPTED, UTF_8 = 1, 0x800  # flags of a member of a zip
DOS = 0  # the system whose programs may write \ between the parts of a path in a zip


class Member(NamedTuple):
    """Where a file lies in an archive; `problem`, if any, is why it cannot be read.

    `start`: of its local header in a zip, of its content in a tar. `check`: the CRC-32 of a file in
    a zip; in a tar None.
    """

    start: int = 0
    stored: int = 0  # bytes in the archive
    size: int = 0  # bytes of the file
    deflated: bool = False
    check: int | None = None
    problem: str = ""


class Archive:
    """The files of an archive, read by their names. Thread-safe.

    `members` {name: Member} has the last of two with one name, as after unpacking. `folders`
    {folder, "" for the top: the names in it} has the folders, too. `size` and `mtime_ns` are
    those of the archive.
    """

    def __init__(self, path: str, observer: Observer | None = None) -> None:
        """Reads the list of members; decompresses a compressed tar, and shows progress.

        Raises:
            ArchiveError: the archive is broken, hostile, or too large.
            OSError: it cannot be read, or decompressed for want of room.
        """
        self.members: dict[str, Member] = {}
        self.folders: dict[str, set[str]] = {"": set()}
        self._lock = threading.Lock()
        self._room = MOST_NAMES
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(open_regular(path, 1 << 62))
            status = os.fstat(file.fileno())
            self.size, self.mtime_ns = status.st_size, status.st_mtime_ns
            self._file: Any = file
            if chunks := decompressed(file):
                self._file = undo.enter_context(tempfile.TemporaryFile(prefix="retrain-"))
                most = max(LEAST_ROOM, MOST_RATIO * self.size)
                shows = observer if observer and self.size >= LEAST_SHOWN else Silent()
                bar = shows.progress(f"reading {os.path.basename(path)}", "B")
                with bar(total=self.size) as shown:
                    fill(self._file, told(chunks, file, shown.update), most)
            with broken_archives():
                for name, member in all_members(self._file):
                    self._add(name, member)
            undo.pop_all()
        if file is not self._file:
            file.close()
        weakref.finalize(self, self._file.close)

    def _add(self, name: str, member: Member | None) -> None:
        """Adds a file, or a folder (None)."""
        whole = tidy(name)
        self._spend(whole)
        if member is None:
            self.folders.setdefault(whole, set())
        elif whole:
            self.members[whole] = member
        if whole in self.members and whole in self.folders:
            raise ArchiveError(f"its member {shown(whole)} is both a file and a folder")
        while whole:
            whole, _, last = whole.rpartition("/")
            if whole in self.members:
                raise ArchiveError(f"its member {shown(whole)} is both a file and a folder")
            known = whole in self.folders
            self.folders.setdefault(whole, set()).add(last)
            if known:
                return
            self._spend(whole)

    def _spend(self, name: str) -> None:
        """Counts a name. Raises ArchiveError if all are too long, as of folders in folders."""
        self._room -= len(name)
        if self._room < 0:
            raise ArchiveError("its names are too long")

    def read(self, name: str, size: int | None = None) -> bytes:
        """Returns the bytes of a file, or the first `size` of them.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read; `strerror` says why.
        """
        member = self.members.get(name)
        if member is None:
            raise FileNotFoundError(2, "it is not in the archive", name)
        if member.problem:
            raise OSError(5, member.problem, name)
        whole = size is None or size >= member.size
        wanted = member.size if size is None else min(size, member.size)
        content = self._content(member, wanted, whole)
        damaged = len(content) != wanted or (
            whole and member.check not in (None, zlib.crc32(content))
        )
        if damaged:
            raise OSError(5, "the archive is damaged there, or was changed", name)
        return content

    def _content(self, member: Member, wanted: int, whole: bool) -> bytes:
        start = member.start
        if member.check is not None:
            header = self._at(start, LOCAL_HEADER)
            if not header.startswith(b"PK\3\4") or len(header) < LOCAL_HEADER:
                return b""
            lengths = header[26:28], header[28:30]  # of the name and of what else there is
            start += LOCAL_HEADER + sum(int.from_bytes(each, "little") for each in lengths)
        if not member.deflated:
            return self._at(start, wanted)
        stored = self._at(start, member.stored if whole else min(member.stored, 2 * wanted + 1024))
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, wanted) if wanted else b""
        except zlib.error:
            return b""

    def _at(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # which moves no place that processes and threads share
            return os.pread(self._file.fileno(), size, start)
        with self._lock:
            self._file.seek(start)
            content: bytes = self._file.read(size)
            return content


_OPENING = threading.Lock()
_OPEN: dict[tuple[str, int, int, int], Archive] = {}  # the last used ones, the latest last
_ONCE_OPENED: set[str] = set()  # absolute paths


def opened(path: str, observer: Observer | None = None) -> Archive:
    """Returns the Archive at a path; the same one for as long as the file does not change.

    The observer shows progress where it must be decompressed. A process keeps the last MOST_OPEN.

    Raises:
        ArchiveError, OSError: as Archive.
    """
    status = os.stat(path)
    key = os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ino
    with _OPENING:
        archive = _OPEN.pop(key, None) or Archive(path, observer)
        _OPEN[key] = archive
        _ONCE_OPENED.add(key[0])
        while len(_OPEN) > MOST_OPEN:
            del _OPEN[next(iter(_OPEN))]
    return archive


def once_opened(path: str) -> bool:
    """Returns whether this process has opened an archive at a path, which may be gone by now."""
    return os.path.abspath(path) in _ONCE_OPENED


@contextlib.contextmanager
def broken_archives() -> Iterator[None]:
    """Turns what the standard library raises for broken archives into an ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except (*BROKEN, lzma.LZMAError) as error:
        raise ArchiveError(f"it is damaged ({error})") from error


# ---------------------------------------------------------------------------------- members


def tidy(name: str) -> str:
    """Returns a path in an archive without `.` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def all_members(file: BinaryIO) -> Iterator[tuple[str, Member | None]]:
    """Yields (name, Member, or None for a folder) of an archive, in its order."""
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from zip_members(file)
    elif head[TAR] == b"ustar":
        yield from tar_members(file)
    else:
        raise ArchiveError(no_archive(head))


def zip_members(file: BinaryIO) -> Iterator[tuple[str, Member | None]]:
    """Yields (name, Member, or None for a folder) of a zip, in its order."""
    if not zipfile.is_zipfile(file):
        raise ArchiveError("it is damaged (its end is missing)")
    budget, limited = Budget(0, MOST_MEMBERS), ZipDirectory(file, MOST_DIRECTORY)
    archive: Any = zipfile.ZipFile
    with archive(limited) as listing:
        infos: list[zipfile.ZipInfo] = listing.infolist()
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ArchiveError("its members overlap")
        end = info.header_offset + LOCAL_HEADER + info.compress_size
    for info in infos:
        budget.count_member()
        name = _zip_name(info)
        name = name.replace("\\", "/") if info.create_system == DOS else name
        check_member(name)
        yield name, None if name.endswith("/") else _zip_member(info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name. Programs on Linux write UTF-8 without the flag that says so."""
    name = info.orig_filename  # on Windows, zipfile turns backslashes of .filename into slashes
    if info.flag_bits & UTF_8:
        return name
    with contextlib.suppress(UnicodeDecodeError):
        return name.encode("cp437").decode("utf-8")
    return name


def _zip_member(info: zipfile.ZipInfo) -> Member:
    problem = ""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        problem = "it is a link or a device"
    elif info.flag_bits & ENCRYPTED:
        problem = "it is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "it is compressed in an unusual way"
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    place = info.header_offset, info.compress_size, info.file_size
    return Member(*place, deflated, info.CRC, problem)


class _SeekingTarStream(TarStream):
    """Jumps over the content of members."""

    def seek(self, position: int) -> None:
        if position < self.position:
            raise ArchiveError("its members overlap")
        file: Any = self.stream
        self.position = file.seek(position)


def tar_members(file: BinaryIO) -> Iterator[tuple[str, Member | None]]:
    """Yields (name, Member, or None for a folder) of a tar, in its order."""
    file.seek(0)
    stream = _SeekingTarStream(file, Budget(MOST_HEADERS, MOST_MEMBERS), MOST_HEADERS)
    opening: Any = tarfile.open  # whose types ask for a stream that can write
    before: dict[str, Member] = {}
    names = {"encoding": "utf-8", "errors": "surrogateescape"}
    with opening(fileobj=stream, mode="r:", **names) as archive:
        for info in tar_headers(archive, stream):
            with stream.content():  # the headers of the next member have a limit of their own
                pass
            if info.isdir():
                yield info.name, None
                continue
            member = Member(info.offset_data, info.size, info.size)
            if info.islnk() and info.linkname in before:  # the same file under a second name
                member = before[info.linkname]
            elif not info.isreg() or info.issparse():
                member = Member(problem="it is a link, a device or sparse")
            before[info.name] = member
            yield info.name, member


# ------------------------------------------------------------------------------ decompression


def told(
    chunks: Iterator[bytes], file: BinaryIO, update: Callable[[float], object]
) -> Iterator[bytes]:
    """Yields the chunks; calls `update` with how many bytes of the file each took."""
    before = file.tell()
    for chunk in chunks:
        yield chunk
        update(file.tell() - before)
        before = file.tell()


def fill(spool: IO[bytes], chunks: Iterator[bytes], most: int) -> None:
    """Writes the chunks to a file.

    Raises:
        ArchiveError: they are broken, or more than `most` bytes.
        OSError: there is no room; it names the folder of temporary files.
    """
    budget = Budget(most, 0)
    with broken_archives():
        for chunk in chunks:
            budget.spend(len(chunk))
            try:
                spool.write(chunk)
                spool.flush()
            except OSError as error:
                into, reason = tempfile.gettempdir(), error.strerror
                text = f"cannot be decompressed into {into} ({reason}); set TMPDIR to a folder"
                raise OSError(error.errno, f"{text} with more room") from error


def decompressed(file: BinaryIO) -> Iterator[bytes] | None:
    """Returns the decompressed chunks of a file, or None if it is not compressed.

    Raises:
        ArchiveError: a package for this compression is missing.
    """
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return _chunks(gzip.open(file))
    if head.startswith(b"BZh"):
        return _chunks(bz2.open(file))
    if head.startswith(b"\xfd7zXZ\0"):
        return _unxz(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzstd(file)
    return None


def _chunks(stream: Any) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _unxz(file: BinaryIO) -> Iterator[bytes]:
    """Decompresses .xz with bounded memory, which lzma.open does not bound."""

    def new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)

    stream, data = new(), b""
    while True:
        if stream.eof:  # further streams may follow, and zeros
            data = stream.unused_data.lstrip(b"\0")
            while not data:
                if not (data := file.read(CHUNK)):
                    return
                data = data.lstrip(b"\0")
            stream = new()
        elif stream.needs_input and not (data := file.read(CHUNK)):
            raise EOFError("its end is missing")
        yield stream.decompress(data, CHUNK)
        data = b""


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Decompresses .zst with bounded memory.

    Raises:
        ArchiveError: the package that can is missing.
    """
    try:
        import zstandard
    except ImportError as error:
        raise ArchiveError("it needs another package: pip install zstandard") from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    try:
        yield from _chunks(decompressor.stream_reader(file, read_across_frames=True))
    except zstandard.ZstdError as error:
        raise ArchiveError(f"it is damaged ({error})") from error
