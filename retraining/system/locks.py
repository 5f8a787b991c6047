"""Holds a lock file, so that only one thread or process at a time does a piece of work."""

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
    """Holds `target`.lock. Waits while another thread or process holds it, and says so once."""
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
            file.close()  # Windows cannot remove a file that we or a waiting process have open
        with suppress(OSError):
            path.unlink()
        file.close()


def _open_locked(path: Path) -> BinaryIO | None:
    """Opens and locks `path`; returns None if another holder has it."""
    file = open(path, "ab")  # noqa: SIM115 - the lock lasts as long as the file is open
    if _try_lock(file) and _still_there(path, file):
        return file
    file.close()
    return None


def _still_there(path: Path, file: BinaryIO) -> bool:
    """Returns whether `file` is still at `path`: the last holder may have removed it meanwhile.

    Always true on Windows, which cannot remove a file that we have open.
    """
    with suppress(FileNotFoundError):
        return sys.platform == "win32" or os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _try_lock(file: BinaryIO) -> bool:
    """Returns whether it could lock the file at once. Closing the file releases the lock."""
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
        pass  # some network file systems have no locks: go on without one
    return True
