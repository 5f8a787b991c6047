"""retrain.py with a stopwatch: prints how long its parts took as one line of JSON, at the end."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench

from retraining import retrain
from retraining.cli.console import DONE, leave, reports_errors, set_verbosity
from retraining.cli.flags import parse_flags
from retraining.system.observer import Silent


class Stopwatch(Silent):
    """An Observer that notes when each vector is there."""

    def __init__(self):
        self.times = []

    def progress(self, label, unit):
        """See Observer."""
        return self.note if label == "bottlenecks" else super().progress(label, unit)

    def note(self, vectors, total=None):
        """Yields the vectors as they come."""
        for vector in vectors:
            self.times.append(time.perf_counter())
            yield vector

    @property
    def rate(self):
        """Images/s from the first vector to the last, so without TensorFlow's start.

        None if the run computed fewer than two.
        """
        if len(self.times) < 2:
            return None
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    (options, settings), stopwatch = parse_flags(argv, __doc__), Stopwatch()
    set_verbosity(options.logging_verbosity)
    results = retrain(settings, stopwatch)
    figures = {
        "rate": stopwatch.rate,
        "training": results.record["seconds"]["training"],
        "test_accuracy": results.test.accuracy,
        "memory": bench.peak_memory(),
    }
    print(json.dumps(figures))
    return DONE


if __name__ == "__main__":
    leave(main())
