"""Runs a function beside the others, on a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


def beside(function: Callable[[*Ts], R], *arguments: *Ts) -> Future[R]:
    """Calls a function on its own daemon thread; returns its Future."""
    future: Future[R] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # `result` raises it
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future
