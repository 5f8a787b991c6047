"""Compares scores that tell images of no known class from photos of the classes.

    python benchmarks/unknown.py --image_dir flower_photos --architecture inception_v3

Each class, then each pair of classes, is left out in turn and a softmax layer is trained on 70 % of
the photos of the others. Known are the other 30 %, unknown the photos of what was left out, and
pictures that show nothing of the kind (noise, plain colours, text, charts). Prints, per score,
the AUROC (the chance that a known photo scores above an unknown one), its spread over the
left-out classes, the share of unknown ones caught where 95 % of the known photos keep their label,
microseconds per photo and bytes to be stored.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.unknown import principal_axes
from retraining.photos.registry import open_source
from retraining.training.loop import TrainingOptions, train

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image, ImageDraw

KNOWN_KEPT = 0.95
SHRINKAGE = 0.1
FAR = 25  # pictures of each far-away kind


def main():
    options = parse_flags()
    photos = open_source(options.image_dir).scan().names
    paths = [path for paths in photos.values() for path in paths]
    classes = np.repeat(np.arange(len(photos)), [len(paths) for paths in photos.values()])
    if options.vectors and Path(options.vectors).exists():
        vectors = np.load(options.vectors)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compute = base_network.vectors_by(base_network.load(options))
            vectors = compute(paths + draw_far(Path(folder)))
        if options.vectors:
            np.save(options.vectors, vectors)
    near, far = vectors[: len(paths)], vectors[len(paths) :]
    for count in options.left_out:
        measure(near, classes, far, count)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    base_network.add_flags(parser)
    parser.add_argument("--vectors", help=".npy file that keeps the vectors for the next run")
    parser.add_argument("--left_out", type=int, nargs="+", default=[1, 2], help="classes at a time")
    return parser.parse_args()


def draw_far(folder):
    """Writes pictures that are no photos of anything; returns their paths."""
    rng, paths = np.random.default_rng(0), []
    for kind in (noise, plain, text, chart):
        for number in range(FAR):
            paths.append(str(folder / f"{kind.__name__}{number}.png"))
            kind(rng).save(paths[-1])
    return paths


def noise(rng):
    return Image.fromarray(rng.integers(0, 256, (240, 320, 3)).astype(np.uint8))


def plain(rng):
    return Image.new("RGB", (320, 240), tuple(rng.integers(0, 256, 3).tolist()))


def text(rng):
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    for line in range(5, 235, 12):
        letters = rng.integers(97, 123, 50).astype(np.uint8).tobytes().decode()
        draw.text((6, line), letters, fill="black")
    return image


def chart(rng):
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(20, 10), (20, 220), (310, 220)], fill="black", width=2)
    for column in range(8):
        top, colour = int(rng.integers(20, 210)), tuple(rng.integers(0, 256, 3).tolist())
        draw.rectangle([30 + column * 35, top, 52 + column * 35, 219], fill=colour)
    return image


def measure(vectors, classes, far, left_out):
    """Prints the table for `left_out` classes at a time."""
    results = {}
    sets = list(itertools.combinations(range(classes.max() + 1), left_out))
    held_out = np.random.default_rng(0).random(len(classes)) < 0.3
    for out in sets:
        unknown = np.isin(classes, out)
        kept = [label for label in range(classes.max() + 1) if label not in out]
        rows = ~unknown & ~held_out
        fitting = Labelled.of(vectors[rows], classes[rows], kept)
        known, near = vectors[~unknown & held_out], vectors[unknown]
        head = train_head(fitting)
        for name, make in SCORES.items():
            results.setdefault(name, []).append(predict(make(fitting, head), known, near, far))
    print_table(results, left_out, len(sets))


def train_head(fitting):
    """The softmax layer, as retrain.py trains it."""
    nothing = Labelled(fitting.vectors[:0], fitting.targets[:0])
    for step in train(fitting, nothing, fitting.targets.max() + 1, TrainingOptions()):
        head = step.head
    return head


def predict(fitted, known, near, far):
    """(AUROC near, AUROC far, caught near, caught far, microseconds, bytes) of a fitted score."""
    score, stored = fitted
    started = time.perf_counter()
    of_known = score(known)
    cost = (time.perf_counter() - started) / len(known) * 1e6
    threshold = np.quantile(of_known, 1 - KNOWN_KEPT)
    of_near, of_far = score(near), score(far)
    areas = auroc(of_known, of_near), auroc(of_known, of_far)
    return *areas, (of_near < threshold).mean(), (of_far < threshold).mean(), cost, stored


def auroc(known, unknown):
    """The chance that a known score is above an unknown one; ties count half."""
    ordered = np.sort(unknown)
    below, up_to = (np.searchsorted(ordered, known, side) for side in ("left", "right"))
    return (below + up_to).mean() / (2 * len(unknown))


# -- the scores: (Labelled, Head) -> (vectors -> higher is more like the classes, bytes stored) ----


def max_probability(fitting, head):
    return lambda vectors: head.probabilities(vectors).max(axis=1), 0


def max_logit(fitting, head):
    return lambda vectors: head.logits(vectors).max(axis=1), 0


def energy(fitting, head):
    return lambda vectors: np.logaddexp.reduce(head.logits(vectors), axis=1), 0


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def neighbours(fitting, head, nearest=10):
    """Cosine to the tenth nearest training vector (Sun et al. 2022, arXiv:2204.06507)."""
    stored = unit(fitting.vectors)
    return lambda vectors: np.sort(unit(vectors) @ stored.T, axis=1)[:, -nearest], stored.nbytes


def class_means(fitting):
    return np.stack(
        [fitting.vectors[fitting.targets == c].mean(0) for c in np.unique(fitting.targets)]
    )


def mean_cosine(fitting, head):
    means = unit(class_means(fitting))
    return lambda vectors: (unit(vectors) @ means.T).max(axis=1), means.nbytes


def whitener(centred):
    """[width, width] that makes the shrunk covariance of the rows the identity."""
    covariance = np.cov(centred.T, dtype=np.float32)
    width = len(covariance)
    shrunk = (1 - SHRINKAGE) * covariance
    shrunk += SHRINKAGE * np.trace(covariance) / width * np.eye(width, dtype=np.float32)
    return np.linalg.inv(np.linalg.cholesky(shrunk)).T


def mahalanobis(fitting, head, relative=False):
    """To the nearest class mean (Lee et al. 2018, arXiv:1807.03888).

    `relative` takes off the distance to the mean of all (Ren et al. 2021, arXiv:2106.09022).
    """
    means, centre = class_means(fitting), fitting.vectors.mean(axis=0)
    within = whitener(fitting.vectors - means[fitting.targets])
    overall = whitener(fitting.vectors) if relative else None

    def score(vectors):
        distances = [np.square((vectors - mean) @ within).sum(axis=1) for mean in means]
        nearest = np.min(distances, axis=0)
        if relative:
            nearest = nearest - np.square((vectors - centre) @ overall).sum(axis=1)
        return -nearest

    return score, (2 if relative else 1) * within.nbytes + means.nbytes


def relative_mahalanobis(fitting, head):
    return mahalanobis(fitting, head, relative=True)


def residual(fitting, head, kept=64):
    """Length outside the training vectors' principal subspace."""
    centre = fitting.vectors.mean(axis=0)
    axes = principal_axes(fitting.vectors - centre, kept)
    return lambda vectors: -outside(vectors - centre, axes), axes.nbytes + centre.nbytes


def outside(vectors, axes):
    return np.linalg.norm(vectors - vectors @ axes @ axes.T, axis=1)


def virtual_logit(fitting, head, kept=64):
    """ViM (Wang et al. 2022, arXiv:2203.10807): energy less the scaled residual."""
    origin = -np.linalg.pinv(head.weights.T) @ head.bias
    axes = principal_axes(fitting.vectors - origin, kept)
    lengths = outside(fitting.vectors - origin, axes)
    scale = head.logits(fitting.vectors).max(axis=1).mean() / lengths.mean()

    def score(vectors):
        return energy(fitting, head)[0](vectors) - scale * outside(vectors - origin, axes)

    return score, axes.nbytes + origin.nbytes


SCORES = {
    "largest probability": max_probability,
    "largest logit": max_logit,
    "energy": energy,
    "10th nearest neighbour, cosine": neighbours,
    "nearest class mean, cosine": mean_cosine,
    "Mahalanobis": mahalanobis,
    "relative Mahalanobis": relative_mahalanobis,
    "residual, 64 axes": residual,
    "ViM, 16 axes": lambda fitting, head: virtual_logit(fitting, head, 16),
    "ViM, 64 axes": virtual_logit,
    "ViM, 256 axes": lambda fitting, head: virtual_logit(fitting, head, 256),
}


def print_table(results, left_out, count):
    print(f"\n{left_out} of the classes left out, {count} times\n")
    print(
        "| score | AUROC | far-away | caught | far-away caught | us/photo | kB |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, figures in results.items():
        mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0)
        print(
            f"| {name} | {mean[0]:.3f} ± {spread[0]:.3f} | {mean[1]:.3f} ± {spread[1]:.3f} | "
            f"{mean[2]:.0%} | {mean[3]:.0%} | {mean[4]:.0f} | {mean[5] / 1000:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
