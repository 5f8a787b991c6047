"""Protocols for showing the progress of a run."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, overload

LATE_SECONDS = 2.0  # after which a step shows its progress

Item = TypeVar("Item")
Shown = TypeVar("Shown", covariant=True)


class Progress(Protocol[Shown]):
    """A progress display such as tqdm: yields the items of an iterable, or counts by `update`."""

    def __iter__(self) -> Iterator[Shown]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...

    def update(self, n: float = 1) -> object:
        """Counts `n` steps."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:
        """Shows a text after the numbers."""


class Bar(Protocol):
    """Starts a Progress over an iterable, or one that `update` advances, of `total` steps."""

    @overload
    def __call__(self, iterable: Iterable[Item], total: int | None = None) -> Progress[Item]: ...

    @overload
    def __call__(self, iterable: None = None, total: int | None = None) -> Progress[None]: ...


class Observer(Protocol):
    """Shows how far a run has come. The command line has its own; a program may pass another."""

    def progress(self, label: str, unit: str) -> Bar:
        """Returns a function that starts a progress display for steps counted in `unit`.

        The unit `B` stands for bytes.
        """

    def tell(self, text: str) -> None:
        """Shows one line on what the run waits for."""


def ignore(*_: object) -> None:
    """Does nothing, as a callback that nobody has set."""


class Late:
    """Counts steps, and shows them LATE_SECONDS after the first. Use as a context manager.

    So quick steps leave no line.
    """

    def __init__(self, bar: Bar, total: int | None = None) -> None:
        """Takes what starts the display, and the number of steps if it is known."""
        self._bar, self._total, self._count = bar, total, 0
        self._started = 0.0
        self._shown: Progress[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown is not None:
            self._shown.__exit__(kind, error, traceback)
            self._shown = None

    def end(self) -> None:
        """Ends the display, if there is one, before the end of the context."""
        self.__exit__(None, None, None)

    def update(self, n: int = 1) -> None:
        """Counts `n` steps."""
        self._started = self._started or time.monotonic()
        self._count += n
        if self._shown is not None:
            self._shown.update(n)
        elif time.monotonic() - self._started >= LATE_SECONDS:
            self._shown = self._bar(None, total=self._total).__enter__()
            self._shown.update(self._count)


class Silent:
    """An Observer that shows nothing."""

    def progress(self, label: str, unit: str) -> Bar:
        """See Observer."""
        from tqdm import tqdm

        def bar(iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
            return tqdm(iterable, total=total, disable=True)

        return bar

    def tell(self, text: str) -> None:
        """See Observer."""
