"""LiteRT files in float32 and int8 beside the graph that they come from, on photos held out.

    python retrain.py --image_dir flower_photos --testing_percentage 50 --validation_percentage 10
    python benchmarks/quantized.py --image_dir flower_photos --testing_percentage 50 \\
        --validation_percentage 10 --graph models/retrained_graph.pb

Prints size, the share of test photos with the first label of the frozen graph (and its 95 %
interval), accuracy, and the processor time of a photo on one thread. Training photos calibrate.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.export.convert import read_calibration, run_frozen
from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.precision import processor
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.metrics.classification import agreement, wilson_interval
from retraining.photos.dataset import load_dataset
from retraining.photos.reader import ImageReader
from retraining.photos.split import TESTING, TRAINING, SplitOptions
from retraining.run.export import MOST_CALIBRATION, spread
from retraining.system.scratch import scratch_folder

# isort: split
import numpy as np  # after retraining, which sets its threads

KINDS = ("tflite", "tflite_int8", "tflite_full_int8")
MOST_PIXELS = 10**9
AT_ONCE = 40  # photos in memory
WARM_UP = 5  # photos


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--graph", default="models/retrained_graph.pb")
    parser.add_argument("--testing_percentage", type=int, default=10)
    parser.add_argument("--validation_percentage", type=int, default=10)
    options = parser.parse_args()
    split = SplitOptions(options.validation_percentage, options.testing_percentage)
    dataset = load_dataset(options.image_dir, split)
    graph_def = read_graph(options.graph, allow_unsafe_ops=True)
    source = Source.of(graph_def)
    testing = dataset.split(TESTING)
    training = [e.path for e in spread(dataset.split(TRAINING), MOST_CALIBRATION)]
    calibration = partial(read_calibration, source, training, MOST_PIXELS)
    targets = np.array([source.labels.index(example.label) for example in testing])
    frozen = BytesRunner(graph_def, source.output)
    expected, _ = answers(partial(run_frozen, frozen, source), source, testing)
    print(f"{processor().get('model name')}, {os.cpu_count()} cores; {source.network}")
    print(f"{len(testing)} test photos, {len(training)} to calibrate\n")
    print("| | MB | first label of the graph | accuracy | apart | ms a photo | s to convert |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    size = os.path.getsize(options.graph) / 1e6
    print(f"| frozen graph | {size:.1f} | | {accuracy(expected, targets)} | | | |", flush=True)
    with scratch_folder("quantized-") as folder:
        for kind in KINDS:
            path, started = str(folder / kind), time.perf_counter()
            CONVERTERS[kind].write(source, path, calibration)
            seconds = time.perf_counter() - started
            model = CONVERTERS[kind].load(path, threads=1)
            given, spent = answers(model.run, source, testing)
            same, difference = agreement(given, expected)
            low, high = wilson_interval(same * len(given), len(given))
            print(
                f"| {kind} | {os.path.getsize(path) / 1e6:.1f} | {same:.1%} ({low:.1%} to "
                f"{high:.1%}) | {accuracy(given, targets)} | {difference:.2f} | "
                f"{spent * 1000:.1f} | {seconds:.0f} |",
                flush=True,
            )


def answers(run, source, examples):
    """(float32 [n, k], processor seconds a photo) of `run`, which takes feeds."""
    readers = {i.feed: ImageReader(i.preprocessing, MOST_PIXELS) for i in source.inputs}
    rows, seconds = [], 0.0
    for start in range(0, len(examples), AT_ONCE):
        paths = [example.path for example in examples[start : start + AT_ONCE]]
        feeds = {f: np.concatenate([r.read(p) for p in paths]) for f, r in readers.items()}
        if not rows:
            run({feed: pixels[:WARM_UP] for feed, pixels in feeds.items()})
        started = time.process_time()
        rows.append(run(feeds))
        seconds += time.process_time() - started
    return np.concatenate(rows), seconds / len(examples)


def accuracy(probabilities, targets):
    return f"{(probabilities.argmax(axis=1) == targets).mean():.1%}"


if __name__ == "__main__":
    main()
