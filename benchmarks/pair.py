"""Compares two networks together with each alone, and averages over mirror images with none.

    python benchmarks/pair.py --image_dir flower_photos

Vectors are computed as retrain.py does, and kept in --bottleneck_dir. For each of --splits random
splits, a softmax layer is trained on 80 % of the photos, with the steps, the batches and the
learning rate of retrain.py, and tested on the rest. Prints the accuracy of each split and their
mean.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.bottlenecks.extract import ExtractionSettings, Extractor, Job, fill_store
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.vectors import Labelled
from retraining.networks.mirror import mirror_average
from retraining.networks.network import load_network
from retraining.networks.pair import scale_factors
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import find, obtain
from retraining.photos.dataset import Example
from retraining.photos.registry import hash_file, open_source
from retraining.training.loop import TrainingOptions, train

# isort: split
import numpy as np  # after retraining, which sets its threads
from tqdm import tqdm

HELD_OUT = 0.2


def main():
    options = parse_flags()
    examples = list_examples(options.image_dir)
    labels = sorted({example.label for example in examples})
    targets = np.array([labels.index(example.label) for example in examples])
    splits = [split(len(targets), seed) for seed in range(options.splits)]
    print(f"{len(examples)} photos, accuracy on {len(splits[0][1])} held out of each split\n")
    names = " | ".join(f"split {number}" for number in range(options.splits))
    print(f"| vectors | {names} | mean |\n|---|{'---:|' * (options.splits + 1)}")
    for mirrored in (False, True):
        found = [stored(name, mirrored, examples, options) for name in options.architectures]
        for title, make in ways(found, mirrored):
            accuracies = [accuracy(make(rows), targets, rows, tested) for rows, tested in splits]
            figures = " | ".join(f"{each:.3f}" for each in [*accuracies, np.mean(accuracies)])
            print(f"| {title} | {figures} |", flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--bottleneck_dir", default="bottleneck_cache")
    parser.add_argument(
        "--architectures", nargs=2, default=["inception_v3", "efficientnet_lite0"], metavar="NAME"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--splits", type=int, default=3)
    return parser.parse_args()


def list_examples(folder):
    """An Example for each photo; its split is not used."""
    photos = open_source(folder).scan().names
    return [
        Example(path, label, "", hash_file(path))
        for label, paths in photos.items()
        for path in paths
    ]


def split(count, seed):
    """(rows to train on, rows held out), in a random order."""
    order = np.random.default_rng(seed).permutation(count)
    tested = round(count * HELD_OUT)
    return order[tested:], order[:tested]


@dataclass(frozen=True)
class Vectors:
    """A network's vectors of all photos, float32 [n, width]."""

    name: str
    vectors: np.ndarray

    @property
    def width(self):
        return self.vectors.shape[1]


def stored(name, mirrored, examples, options):
    """The Vectors of one network, from its store as far as they are there."""
    known = find(name)
    network = load_network(obtain(known, options.model_dir), known)
    precision = resolve_precision(options.precision, network.graph_def)
    network = mirror_average(network) if mirrored else network
    extractor = Extractor(network, ExtractionSettings(precision))
    fingerprint = network.fingerprint(precision)
    with BottleneckStore(options.bottleneck_dir, name, fingerprint, network.width) as store:
        jobs = [Job(example) for example in examples]
        bad = fill_store(store, jobs, extractor, partial(tqdm, desc=name))
        if bad:
            sys.exit(f"{len(bad)} photos cannot be read, so rows would differ; take them out")
        return Vectors(name, store.read([example.key for example in examples]))


def ways(found, mirrored):
    """Yields (title, function of the training rows that gives all vectors) to be compared."""
    end = ", mirror images averaged" if mirrored else ""
    for each in found:
        yield each.name + end, lambda rows, each=each: each.vectors
    both = np.concatenate([each.vectors for each in found], axis=1)
    yield f"both{end}", lambda rows: both * scale_factors(both[rows], found)
    if not mirrored:
        yield "both, as they are", lambda rows: both
        yield "both, each number by its own deviation", partial(by_number, both)


def by_number(vectors, rows):
    deviations = vectors[rows].std(axis=0)
    return vectors / np.where(deviations > 0, deviations, 1)


def accuracy(vectors, targets, rows, tested):
    """Share of right answers on the `tested` rows of a layer trained on the others."""
    training, held_out = (Labelled(vectors[part], targets[part]) for part in (rows, tested))
    *_, last = train(training, held_out.first(0), targets.max() + 1, TrainingOptions())
    return (last.head.probabilities(held_out.vectors).argmax(axis=1) == held_out.targets).mean()


if __name__ == "__main__":
    main()
