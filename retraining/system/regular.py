"""Opens files that users name: regular files only, and none larger than they can be."""

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

# What an archive begins with: zip, also an empty one, gzip, bzip2, xz, Zstandard, 7-Zip, RAR.
ARCHIVES = (
    b"PK\3\4",
    b"PK\5\6",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf'\x1c",
    b"Rar!\x1a\7",
)
TAR = slice(257, 262)  # where a tar has `ustar`


def is_archive(path: str | Path) -> bool:
    """Returns whether a regular file begins like an archive or a compressed file."""
    with contextlib.suppress(OSError), open_regular(path, sys.maxsize) as file:
        head = file.read(TAR.stop)
        return head.startswith(ARCHIVES) or head[TAR] == b"ustar"
    return False


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
