"""Holds a lock file, so that one thread or process at a time does a piece of work."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LOCK_POLL = 0.1  # seconds


# -------------------------------------------------------------------------------- locking


@contextmanager
def lock(target: Path, quiet: bool) -> Iterator[None]:
    """Hold `target`.lock; while another thread or process has it, wait, saying so once."""
    path = target.with_name(target.name + ".lock")
    file = _open_locked(path)
    if file is None and not quiet:
        print(f"waiting for another run that downloads {target}", file=sys.stderr)
    while file is None:
        time.sleep(LOCK_POLL)
        file = _open_locked(path)
    try:
        yield
    finally:
        if sys.platform == "win32":
            file.close()  # Windows removes no open file, be it ours or that of one who waits
        with suppress(OSError):
            path.unlink()
        file.close()


def _open_locked(path: Path) -> BinaryIO | None:
    """Open and lock `path`; None if another has it."""
    file = open(path, "ab")  # noqa: SIM115 - the lock lasts as long as the file is open
    if _try_lock(file) and _still_there(path, file):
        return file
    file.close()
    return None


def _still_there(path: Path, file: BinaryIO) -> bool:
    """Whether `file` is still at `path`: the last holder may have removed it before we locked it.

    Not on Windows, where a file that we have open cannot be removed.
    """
    with suppress(FileNotFoundError):
        return sys.platform == "win32" or os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _try_lock(file: BinaryIO) -> bool:
    """Whether the lock could be had at once. The system frees it when `file` is closed."""
    if sys.platform == "win32":
        import msvcrt

        with suppress(OSError):
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # some network file systems have no locks: rather unlocked than not at all
    return True
