"""Handles SIGTERM and Ctrl-C for a while."""

import contextlib
import signal
import threading


@contextlib.contextmanager
def signals_to(handle):
    """Has `handle(number, frame)` called on SIGTERM and Ctrl-C, and what was there before after."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
