"""Notes on what happens during a run, for its end; and what every step of a run is given."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from retraining.run.settings import RunSettings
from retraining.system.observer import Observer

log = logging.getLogger(__name__)


class Stopwatch:
    """The seconds of each step of the run, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the step `name` and begins the next one."""
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


@dataclass
class RunNotes:
    """Notes on a run: what limits its result, the number of excluded photos, timings.

    `worded` puts texts that are kept into the words of the user. `caveats` are told again at the
    end, except those that do not make the result worse; these are `remarks`, too. `warnings` are
    those of the photos.
    """

    worded: Callable[[str], str] = str
    caveats: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    excluded_photos: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def add_caveat(self, text: str) -> None:
        """Logs a caveat on the result as a warning, and keeps it for the end of the run."""
        self.caveats.append(self.worded(text))
        log.warning(text)

    def add_warning(self, text: str) -> None:
        """Logs a warning of the photos, and keeps it for the report."""
        self.warnings.append(self.worded(text))
        log.warning(text)

    def add_remark(self, text: str) -> None:
        """Does as `add_caveat` with a choice that the report tells as a plain fact."""
        self.add_caveat(text)
        self.remarks.append(self.worded(text))


@dataclass(frozen=True)
class RunContext:
    """What every step of a run is given: the settings, who sees its progress, where to note."""

    settings: RunSettings
    observer: Observer
    notes: RunNotes = field(default_factory=RunNotes)

    def lap(self, name: str) -> None:
        """Ends the step `name` of the run."""
        self.notes.watch.lap(name)
