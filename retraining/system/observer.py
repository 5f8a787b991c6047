"""What a run tells of its progress while it works, and to whom."""

from typing import Any, Protocol


class Observer(Protocol):
    """Sees how far a run is. The command line shows it; a program may pass its own."""

    def progress(self, label: str, unit: str) -> Any:
        """Returns `bar(iterable, total)`, which yields what the iterable yields, as tqdm does."""
