"""TensorFlow beside LiteRT: vectors a second, agreement, and one photo labelled as a whole process.

    python benchmarks/runtimes.py --architecture efficientnet_lite0 --graph retrained_graph.pb

Speeds alternate between the runtimes, each on one thread; the median of the rounds counts. Vectors
are compared with those of the unchanged graph, one photo at a time. `--graph` names a graph of the
same network that retrain.py made; it is labelled in processes of their own, beside
`python -c "import tensorflow"`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import base_network  # noqa: E402
from retraining.bottlenecks.runtime import RuntimeSettings, open_lite  # noqa: E402
from retraining.graphs.precision import processor  # noqa: E402
from retraining.graphs.run import BytesRunner, Runner, Running  # noqa: E402
from retraining.graphs.twin import VectorPart, cache_folder  # noqa: E402
from retraining.photos.reader import ImageReader  # noqa: E402

BATCH = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base_network.add_flags(parser)
    parser.add_argument("--graph", help="a retrained graph of the network")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    network = base_network.load(options)
    paths = sorted(str(path) for path in Path(options.image_dir).glob("*/*.jpg"))[: options.photos]
    part = VectorPart(network.graph_def, network.input, network.bottleneck, network.preprocessing)
    print(f"{processor().get('model name')}, {os.cpu_count()} cores; {network.name}\n")
    print_speeds(part, paths, options.rounds)
    if options.graph:
        print_labelling(options.graph, paths[0], options.rounds)


def print_speeds(part, paths, rounds):
    """Prints the table of vectors a second, and the largest difference of a vector."""
    reader = ImageReader(part.preprocessing)
    images = np.concatenate([reader.read(path) for path in paths])
    one = Running(cores=1)
    lite = open_lite(part, one, RuntimeSettings("litert", (cache_folder(),)))
    runners = {
        "TensorFlow": Runner(part.graph_def, part.input, part.bottleneck, one),
        "LiteRT": lite,
    }
    seconds = {name: [] for name in runners}
    vectors = {}
    for _ in range(rounds + 1):  # the first round prepares
        for name, runner in runners.items():
            start = time.process_time()
            vectors[name] = run_batches(runner, images)
            seconds[name].append(time.process_time() - start)
    whole = BytesRunner(part.graph_def, part.bottleneck, part.input)
    expected = np.concatenate([whole.run_pixels({part.input: image[None]}) for image in images])
    print(
        "| runtime | vectors a processor second | largest difference of a vector |\n|---|--:|--:|"
    )
    for name, each in seconds.items():
        speed = len(images) / statistics.median(each[1:])
        apart = np.abs(vectors[name] - expected).max()
        print(f"| {name} | {speed:.1f} | {apart:.1e} |")
    print(f"\nLargest number in a vector: {np.abs(expected).max():.1f}\n")


def run_batches(runner, images):
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([runner.run(batch) for batch in batches])


def print_labelling(graph, photo, rounds):
    """Prints the table of whole processes: wall seconds, processor seconds, peak memory."""
    label = [sys.executable, str(ROOT / "label_image.py"), "--graph", graph, photo]
    commands = {
        "label_image.py, LiteRT": [*label, "--runtime", "auto"],
        "label_image.py, TensorFlow": [*label, "--runtime", "tensorflow"],
        "import tensorflow": [sys.executable, "-c", "import tensorflow"],
    }
    figures = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            figures[name].append(measured(command))
    print("| whole process, one photo | seconds | processor seconds | MB |\n|---|--:|--:|--:|")
    for name, each in figures.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*each[1:], strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {memory:,.0f} |")


MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def measured(command):
    """(wall seconds, processor seconds, peak memory in MB) of a command that must succeed."""
    whole = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(whole, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
