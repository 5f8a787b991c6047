"""Compares base networks on photos: width, speed, accuracy, size of the exported graph.

    python benchmarks/networks.py --image_dir flower_photos inception_v3 efficientnet_lite0 \\
        "keras:VGG16 --bottleneck_layer fc1"

Each argument is what follows `--architecture`, flags included. Each network is run through
retrain.py, whose metrics give the accuracy on the test photos, of the exported file. For the speed,
batches of 8 go through all networks in turn, on one core each, --rounds times; the fastest of each
counts, so that other programs disturb little, and it is given as a multiple of the first network's.
Decoding the photos is not in it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.cli import flags
from retraining.run.network import choose_networks, make_extractor
from retraining.run.notes import RunContext
from retraining.system.observer import Silent

RETRAIN = Path(__file__).resolve().parent.parent / "retrain.py"
BATCH = 8


def main():
    options = parse_flags()
    times = seconds_per_photo(
        [retrain_flags(row, options) for row in options.networks], options.rounds
    )
    print("| network | photos/s of one core | times | vector | test accuracy | exported graph |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for row, seconds in zip(options.networks, times, strict=True):
        results = " | |" if options.speed_only else run(row, options)
        speed = f"{1 / seconds:.1f} | {times[0] / seconds:.2f}"
        print(f"| `{row}` | {speed} | {results}", flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--bottleneck_dir", default="bottleneck_cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed_only", action="store_true", help="nothing is trained")
    return parser.parse_args()


def retrain_flags(row, options):
    """The arguments of retrain.py for one row."""
    folders = ("image_dir", "model_dir", "bottleneck_dir")
    given = [part for name in folders for part in (f"--{name}", getattr(options, name))]
    return [*given, "--architecture", *shlex.split(row)]


def seconds_per_photo(arguments, rounds):
    """The least seconds that each network took for a photo, of several rounds."""
    steps = [runners(each) for each in arguments]
    best = np.full(len(steps), np.inf)
    for _ in range(1 + rounds):  # the first warms up
        for number, parts in enumerate(steps):
            started = time.perf_counter()
            for runner, batch in parts:
                runner.run(batch)
            best[number] = min(best[number], (time.perf_counter() - started) / BATCH)
    return best


def runners(arguments):
    """[(Runner, float32 [8, height, width, 3])] of the one or two networks of a row."""
    context = RunContext(flags.parse_flags(arguments, None)[1], Silent())
    chosen = choose_networks(context.settings.network, context.notes, context.observer)
    extractor = make_extractor(chosen, context)
    found = []
    for part in extractor.parts:
        _, batches = part.started()
        size = part.network.preprocessing.size
        pixels = np.random.default_rng(0).uniform(-1, 1, (BATCH, *size, 3))
        found.append((batches.runner, pixels.astype(np.float32)))
    return found


def run(row, options):
    """What a run of retrain.py gives: the width, the accuracy and the size of the graph."""
    with tempfile.TemporaryDirectory() as folder:
        graph, metrics = Path(folder, "graph.pb"), Path(folder, "metrics.json")
        outputs = ["--output_graph", str(graph), "--metrics", str(metrics)]
        outputs += ["--output_labels", str(Path(folder, "labels.txt")), "--no_report"]
        outputs += ["--summaries_dir", str(Path(folder, "summaries"))]
        command = [sys.executable, str(RETRAIN), *retrain_flags(row, options), *outputs]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found = json.loads(metrics.read_text(encoding="utf-8"))
        network, test = found["network"], found["test"]
        width = network["vector_width"] + network.get("second_vector_width", 0)
        size = graph.stat().st_size / 1e6
        return f"{width:,} | {test['accuracy']:.3f} | {size:.1f} MB |"


if __name__ == "__main__":
    main()
