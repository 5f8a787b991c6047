"""How often 95 % intervals of the accuracy cover the accuracy on new photos.

    OPENBLAS_NUM_THREADS=1 python benchmarks/coverage.py --image_dir flower_photos \\
        --architecture mobilenet_0.25_128 --head classic auto

The vectors are those that retrain.py has stored (run it first, with the same --image_dir and
--architecture). Each resample takes 20 photos of each of 5 classes at random, and splits them as
retrain.py does. The head that a run exports is trained on the training photos; its accuracy on all
photos left over is what an estimate should cover. The estimates are that on the test photos of the
single split, that of 10 folds, and that of 5 folds, which a run makes by itself. Prints, per
estimate, the share of resamples whose interval covers, with that share's own 95 % interval; the
mean width of the intervals; the mean of estimate minus accuracy; and the variance of that
difference as a multiple of what independent photos would give, which is
cross_validation.INFLATION's source.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from retraining.bottlenecks.store import BottleneckStore
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation import cross_validation
from retraining.evaluation.groups import group_photos
from retraining.evaluation.label_audit import AuditedPhotos
from retraining.metrics.classification import wilson_interval
from retraining.networks.precision import resolve_precision
from retraining.photos.dataset import load_dataset
from retraining.photos.split import SPLITS, SplitOptions, splits_by_content
from retraining.training import search
from retraining.training.head import evaluate
from retraining.training.loop import TrainingOptions, train

SINGLE = "single split"
FOLDS = {"10 folds": 10, "5 folds (automatic)": cross_validation.AUTOMATIC_FOLDS}
HEADS = ("classic", "auto")


def main():
    options = parse_flags()
    photos = stored_photos(options)
    groups = group_photos(photos)
    print(f"{len(groups)} photos in {groups.max() + 1} groups", file=sys.stderr)
    print("| head | estimate | covers | share | its interval | width | bias | variance ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for head in options.head:
        found = {way: [] for way in (SINGLE, *FOLDS)}
        for number in range(options.resamples):
            for way, result in resample(photos, groups, head, options, number).items():
                found[way].append(result)
            if (number + 1) % 50 == 0:
                print(f"{head}: {number + 1} of {options.resamples}", file=sys.stderr)
        for way, results in found.items():
            print(f"| {head} | {way} | {row(np.array(results))} |", flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    base_network.add_flags(parser)
    parser.add_argument("--bottleneck_dir", default="bottleneck_cache")
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--photos", type=int, default=20, help="of each class")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--head", nargs="+", choices=HEADS, default=HEADS)
    return parser.parse_args()


def stored_photos(options):
    """The label_audit.Photos of the folder, each content once, with the vectors of the store."""
    network = base_network.load(options)
    dataset = load_dataset(options.image_dir)
    examples = list({example.key: example for example in dataset.examples}.values())
    fingerprint = network.fingerprint(resolve_precision("auto", network.graph_def))
    about = (options.bottleneck_dir, network.name, fingerprint, network.width)
    keys = [example.key for example in examples]
    with BottleneckStore(*about) as store:
        vectors = np.array(store.read(keys))
    targets = Labelled.of(vectors, [e.label for e in examples], dataset.labels).targets
    return AuditedPhotos([e.path for e in examples], keys, dataset.labels, targets, vectors)


def resample(photos, groups, head, options, seed):
    """{estimate: (accuracy, low, high, accuracy on the photos left over, photos)}."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(len(photos.labels))[: options.classes]
    rows = np.concatenate(
        [
            rng.permutation(np.flatnonzero(photos.targets == label))[: options.photos]
            for label in labels
        ]
    )
    new_label = np.full(len(photos.labels), -1)
    new_label[labels] = np.arange(len(labels))
    targets = new_label[photos.targets]
    left = np.setdiff1d(np.flatnonzero(targets >= 0), rows)
    part = {
        name: Labelled(photos.vectors[r], targets[r]) for name, r in splits(photos, rows).items()
    }
    plan = cross_validation.TrainingPlan(TrainingOptions(seed=seed), head == "auto")
    exported = trained(part["training"], part["validation"], len(labels), plan)
    real = evaluate(exported, photos.vectors[left], targets[left]).accuracy
    count = len(part["testing"].targets)
    tested = evaluate(exported, part["testing"].vectors, part["testing"].targets).accuracy
    found = {SINGLE: (tested, *wilson_interval(tested * count, count), real, count)}
    data, of_rows = Labelled(photos.vectors[rows], targets[rows]), groups[rows]
    for way, folds in FOLDS.items():
        assigned = cross_validation.assign_folds(data.targets, of_rows, folds, seed)
        logits = cross_validation.cross_validate(data, len(labels), assigned, of_rows, plan)
        guess = cross_validation.estimate(logits, data.targets, of_rows, assigned)
        found[way] = (guess.accuracy, guess.low, guess.high, real, guess.total)
    return found


def splits(photos, rows):
    """{split: its rows}, as retrain.py would split the photos of `rows` by default."""
    classes = {}
    for row in rows:
        classes.setdefault(photos.labels[photos.targets[row]], []).append(photos.paths[row])
    keys = {photos.paths[row]: photos.keys[row] for row in rows}
    of_path = splits_by_content(classes, keys, SplitOptions())
    return {
        name: np.array([row for row in rows if of_path[photos.paths[row]] == name], int)
        for name in SPLITS
    }


def trained(training, validation, classes, plan):
    """The head as a run trains it."""
    if plan.search:
        return search.best(
            list(search.candidates(training, validation, classes, plan.options))
        ).head
    for step in train(training, validation, classes, plan.options):  # noqa: B007
        pass
    return step.head


def row(results):
    """The columns of a line: coverage, width, bias and variance over the resamples."""
    accuracy, low, high, real, count = results.T
    covers = (low <= real) & (real <= high)
    least, most = wilson_interval(covers.sum(), len(covers))
    independent = (real * (1 - real) / count).mean()
    columns = (
        f"{covers.sum()} / {len(covers)}",
        f"{covers.mean():.1%}",
        f"{least:.1%} to {most:.1%}",
        f"{(high - low).mean():.3f}",
        f"{(accuracy - real).mean():+.3f}",
        f"{(accuracy - real).var() / independent:.2f}",
    )
    return " | ".join(columns)


if __name__ == "__main__":
    main()
