"""What happens during a run and must be told at its end."""

import logging
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds per step of the run, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the step `name`; the next one begins."""
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


@dataclass
class RunNotes:
    """What happens during a run: caveats of its result, photos left out on demand, timings."""

    caveats: list[str] = field(default_factory=list)
    excluded_photos: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def add_caveat(self, text: str) -> None:
        """Warns of what limits the result, now and again at the end."""
        self.caveats.append(text)
        log.warning(text)
