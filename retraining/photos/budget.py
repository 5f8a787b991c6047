"""Bounds the memory that all threads together take for decoding at the same time."""

import contextlib
import functools
import threading
from collections.abc import Iterator

from retraining.system.memory import free_memory

SHARE = 4  # of the free memory, a fourth
UNKNOWN = 2 << 30  # bytes, where the system does not tell how many are free


class Budget:
    """So many bytes for all threads. What is larger waits until nobody else has any."""

    def __init__(self, size: int) -> None:
        self._size, self._taken = size, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Waits until so many bytes are left, and takes them for the time of the context.

        A thread must not take twice.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


@functools.cache
def decoding_budget() -> Budget:
    """Returns the budget of this process: a fourth of the memory that is free at the first call."""
    free = free_memory()
    return Budget(UNKNOWN if free is None else free // SHARE)
