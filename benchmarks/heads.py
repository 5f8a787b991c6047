"""Compares ways to train the head, over random splits of one folder of photos.

    python benchmarks/heads.py --image_dir flower_photos --architecture mobilenet_0.25_128

The vectors are those that retrain.py has stored (run it first, with the same --image_dir and
--architecture). The photos are split 8:1:1 at random, ten times; each way trains on the first
part and may look at the second. Prints, per way, the accuracy and the cross entropy on the third
part, mean and standard deviation over the splits, the mean difference in accuracy from the classic
with its standard error, on how many splits it is better and worse, and the median
seconds of CPU.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.vectors import Labelled
from retraining.networks.precision import resolve_precision
from retraining.photos.dataset import load_dataset
from retraining.training import search
from retraining.training.head import evaluate
from retraining.training.loop import TrainingOptions, train

# isort: split
import numpy as np  # after retraining, which sets its threads

AUTO = "--head auto"
CLASSIC = "classic"
HIDDEN = {"hidden_units": (256,), "optimizer": "adam", "epochs": 20}
WAYS = {
    CLASSIC: {},
    AUTO: {},
    "--early_stopping 20": {"early_stopping": 20},
    "--optimizer momentum": {"optimizer": "momentum"},
    "--optimizer adam": {"optimizer": "adam"},
    "--optimizer rmsprop": {"optimizer": "rmsprop"},
    "--optimizer lbfgs": {"optimizer": "lbfgs"},
    "--hidden_units 256 --optimizer adam --epochs 20": HIDDEN,
    "the same and --dropout 0.5": {**HIDDEN, "dropout": 0.5},
    "--hidden_units 256": {"hidden_units": (256,)},
}


def main():
    options = parse_flags()
    vectors, targets = stored_vectors(options)
    found = {way: [] for way in WAYS if way == CLASSIC or way in (options.ways or WAYS)}
    for seed in range(options.splits):
        parts = split(vectors, targets, seed)
        for way, results in found.items():
            results.append(measure(way, parts, targets.max() + 1, seed))
        print(f"split {seed + 1} of {options.splits}", file=sys.stderr)
    print("| head | accuracy | difference | better / worse | cross entropy | CPU s |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, results in found.items():
        print(row(way, np.array(results), np.array(found[CLASSIC])))


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    base_network.add_flags(parser)
    parser.add_argument("--bottleneck_dir", default="bottleneck_cache")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="beside the classic; default: all")
    return parser.parse_args()


def stored_vectors(options):
    """(float32 [n, width], class int [n]) of the photos."""
    network = base_network.load(options)
    dataset = load_dataset(options.image_dir)
    fingerprint = network.fingerprint(resolve_precision("auto", network.graph_def))
    about = (options.bottleneck_dir, network.name, fingerprint, network.width)
    keys = [example.key for example in dataset.examples]
    with BottleneckStore(*about) as store:
        if missing := store.missing(keys):
            sys.exit(
                f"{options.bottleneck_dir} lacks the vectors of {len(missing)} of {len(keys)} "
                f"photos; first run retrain.py with the same --image_dir, --architecture and "
                f"--bottleneck_dir, and take out photos that it cannot read"
            )
        vectors = np.array(store.read(keys))
    labels = [example.label for example in dataset.examples]
    return vectors, Labelled.of(vectors, labels, dataset.labels).targets


def split(vectors, targets, seed):
    """Three Labelled, 8:1:1."""
    order = np.random.default_rng(seed).permutation(len(targets))
    cuts = len(targets) * 8 // 10, len(targets) * 9 // 10
    return [Labelled(vectors[rows], targets[rows]) for rows in np.split(order, cuts)]


def measure(way, parts, classes, seed):
    """(accuracy, cross entropy, seconds of CPU) of a way."""
    training, validation, testing = parts
    options, started = TrainingOptions(seed=seed, **WAYS[way]), time.process_time()
    if way == AUTO:
        head = search.best(list(search.candidates(training, validation, classes, options))).head
    else:
        head = list(train(training, validation, classes, options))[-1].head
    seconds = time.process_time() - started
    found = evaluate(head, testing.vectors, testing.targets)
    return found.accuracy, found.cross_entropy, seconds


def row(way, results, classic):
    accuracy, loss = results[:, 0], results[:, 1]
    gain = accuracy - classic[:, 0]
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
    columns = (
        way,
        f"{accuracy.mean():.3f} ± {accuracy.std():.3f}",
        f"{gain.mean():+.3f} ± {error:.3f}",
        f"{(gain > 0).sum()} / {(gain < 0).sum()}",
        f"{loss.mean():.3f} ± {loss.std():.3f}",
        f"{np.median(results[:, 2]):.1f}",
    )
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
