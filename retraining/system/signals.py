"""Handles SIGTERM and Ctrl-C temporarily."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def signals_to(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Calls `handle(number, frame)` on SIGTERM and Ctrl-C, then restores the former handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell sets it for background jobs
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
