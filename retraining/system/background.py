"""Runs functions on threads of their own, and lets threads that wait for each other join."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
R = TypeVar("R")
Member = TypeVar("Member")


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


class Together(Generic[Member, R]):
    """Answers the questions of several threads in one call, as soon as all of them wait.

    It suits algorithms that run side by side and whose expensive steps are cheaper together.
    """

    def __init__(
        self, members: Collection[Member], answer: Callable[[list[Member]], list[R]]
    ) -> None:
        """`answer` returns the answers to those members that are still at work, in their order."""
        self._at_work, self._answer = list(members), answer
        self._waiting: set[Member] = set()
        self._answers: dict[Member, R | BaseException] = {}
        self._changed = threading.Condition()

    @contextmanager
    def member(self, member: Member) -> Iterator[Callable[[], R]]:
        """Yields the function by which a member asks on its thread; the others wait until it ends.

        It raises what `answer` raises.
        """

        def ask() -> R:
            with self._changed:
                self._waiting.add(member)
                self._answer_all()
                self._changed.wait_for(lambda: member in self._answers)
                found = self._answers.pop(member)
            if isinstance(found, BaseException):
                raise found
            return found

        try:
            yield ask
        finally:
            with self._changed:
                self._at_work.remove(member)
                self._answer_all()

    def _answer_all(self) -> None:
        if not self._waiting or len(self._waiting) < len(self._at_work):
            return
        self._waiting.clear()
        try:
            self._answers.update(zip(self._at_work, self._answer(self._at_work), strict=True))
        except BaseException as error:  # each member raises it
            self._answers.update(dict.fromkeys(self._at_work, error))
        self._changed.notify_all()
