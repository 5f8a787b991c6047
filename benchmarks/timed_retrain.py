"""retrain.py with a stopwatch: prints how long its parts took as one line of JSON, at the end."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench

from retraining.bottlenecks import compute
from retraining.cli.console import leave
from retraining.cli.retrain import main
from retraining.run import retrain as run

figures = {}


def timed(module, name, label):
    """Makes `module.name` add the seconds of its calls to `figures[label]`."""
    original = getattr(module, name)

    def measured(*arguments, **settings):
        started = time.perf_counter()
        answer = original(*arguments, **settings)
        figures[label] = figures.get(label, 0) + time.perf_counter() - started
        figures.setdefault("answers", {})[label] = answer
        return answer

    setattr(module, name, measured)


def count_images(progress):
    """Notes the rate from the first answer to the last: after TensorFlow has warmed up."""

    def counted(iterable, total):
        times = []
        for answer in progress(iterable, total=total):
            times.append(time.perf_counter())
            yield answer
        figures["rate"] = (total - 1) / (times[-1] - times[0])

    return counted


def fill_store(store, jobs, extractor, progress, broken=()):
    """As extract.fill_store, with its images counted."""
    return original_fill(store, jobs, extractor, count_images(progress), broken)


original_fill, compute.fill_store = compute.fill_store, fill_store
timed(run, "train_head", "training")
timed(run, "export_and_test", "export")

if __name__ == "__main__":
    code = main()
    result, _ = figures.pop("answers", {}).get("export", (None, None))
    figures["test_accuracy"] = result.accuracy if result else None
    figures["memory"] = bench.peak_memory()
    print(json.dumps(figures))
    leave(code)
