"""Opens files that users name: regular files only, and none larger than they can be."""

import contextlib
import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO

# {what an archive begins with: what its name ends with, or "" if the tool does not read it}
ARCHIVES = {
    b"PK\3\4": ".zip",
    b"PK\5\6": ".zip",  # without members
    b"\x1f\x8b": ".tgz",
    b"BZh": ".tar.bz2",
    b"\xfd7zXZ\0": ".tar.xz",
    b"\x28\xb5\x2f\xfd": ".tar.zst",
    b"7z\xbc\xaf'\x1c": "",
    b"Rar!\x1a\7": "",
}
TAR = slice(257, 262)  # where a tar has `ustar`
# What ends the name of an archive, where a path ends or goes on in the archive.
ARCHIVE_NAME = re.compile(
    r"\.(?:zip|t(?:gz|bz2?|xz|zst)|tar(?:\.(?:gz|bz2|xz|zst))?)(?=[/\\]|$)", re.I
)


def is_archive(path: str | Path) -> bool:
    """Returns whether a regular file begins like an archive or a compressed file."""
    return archive_ending(path) is not None


def archive_ending(path: str | Path) -> str | None:
    """Returns what the name of an archive with this content ends with; None if it is no archive.

    Archives that the tool does not read give "".
    """
    head = head_of(path)
    if head[TAR] == b"ustar":
        return ".tar"
    return next((ending for start, ending in ARCHIVES.items() if head.startswith(start)), None)


def is_compressed_tar(path: str) -> bool:
    """Returns whether an archive can only be read from its beginning, judging by its name."""
    return not path.lower().endswith((".zip", ".tar"))


def head_of(path: str | Path) -> bytes:
    """Returns the first bytes of a regular file; none if it cannot be read."""
    with contextlib.suppress(OSError), open_regular(path, sys.maxsize) as file:
        return file.read(TAR.stop)
    return b""


def no_archive(head: bytes) -> str:
    """Returns why a file that begins with `head` is not an archive, as a clause."""
    if not head:
        return "it is empty"
    is_page = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    return "it is not a zip or tar file" + (" but a web page" if is_page else "")


def open_regular(path: str | Path, most: int) -> BinaryIO:
    """Opens a file for reading bytes.

    Opening a named pipe would wait for its writer, and a device such as /dev/zero has no end.

    Raises:
        OSError: it cannot be opened, is no regular file, or has more than `most` bytes; `strerror`
            says which.
    """
    try:
        _check(path, os.stat(path), most)  # first: opening some devices has effects
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        _check(path, os.fstat(file.fileno()), most)  # it may have been replaced meanwhile
    except OSError:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag


def _check(path: str | Path, status: os.stat_result, most: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(status.st_mode):
        reason = "it is a pipe, a socket or a device, not a file"
        raise OSError(errno.EINVAL, reason, str(path))
    if status.st_size > most:
        reason = f"it has {status.st_size} bytes, more than the {most} that such a file can have"
        raise OSError(errno.EFBIG, reason, str(path))
