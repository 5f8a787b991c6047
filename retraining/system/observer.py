"""Who sees how far a run is."""

from typing import Any, Protocol


class Observer(Protocol):
    """Sees how far a run is. The command line shows it; a program may pass its own."""

    quiet: bool  # downloads show no progress either

    def progress(self, label: str, unit: str) -> Any:
        """Returns `bar(iterable, total)`, a tqdm or what behaves like one."""


class Silent:
    """The Observer that shows nothing."""

    quiet = True

    def progress(self, label: str, unit: str) -> Any:
        """As Observer."""
        from tqdm import tqdm

        return lambda iterable=None, total=None: tqdm(iterable, total=total, disable=True)
