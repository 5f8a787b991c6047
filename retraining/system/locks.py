"""Holds a lock file, so that only one thread or process at a time does a piece of work."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retraining.system.observer import Observer

LOCK_POLL = 0.1  # seconds
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems


@contextmanager
def lock(target: Path, observer: Observer) -> Iterator[None]:
    """Holds `target`.lock. Waits while another thread or process holds it, and tells the observer.

    Goes on without a lock on a file system that has none.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(target.name + ".lock")
    held = FileLock(path, poll_interval=LOCK_POLL, fallback_to_soft=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        observer.tell(f"waiting for another run that downloads {target}")
        held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        if sys.platform != "win32":  # where filelock removes the file
            with suppress(OSError):
                path.unlink()
        held.release()
