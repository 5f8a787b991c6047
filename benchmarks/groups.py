"""How many shots of a series running numbers join, and how many unrelated neighbours.

    python benchmarks/groups.py --architecture mobilenet_0.25_128

Makes a burst of each photo, as of a phone that moves, turns and adapts to the light. Prints, for
values of groups.ONE_NUMBERED, the share joined of neighbours in a burst, and of different subjects
in one class, as if their numbers followed each other. Look-alikes: clusters of each class.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from benchmarks.audit import jpeg
from retraining.evaluation.groups import ONE_SERIES, mean_distance
from retraining.evaluation.label_audit import normalised
from retraining.photos.registry import open_source

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image, ImageEnhance
from scipy.cluster.vq import kmeans2

SHOTS = 3
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, math.inf)  # inf: ONE_SERIES alone
CLUSTERS = 6  # in a class


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    base_network.add_flags(parser)
    parser.add_argument("--subjects", type=int, default=100, help="photos of each class to take")
    options = parser.parse_args()
    photos = open_source(options.image_dir).scan().names.values()
    chosen = [paths[:: -(-len(paths) // options.subjects)] for paths in photos]
    classes = np.repeat(np.arange(len(chosen)), [len(paths) for paths in chosen])
    bursts = burst_vectors([path for paths in chosen for path in paths], options)
    rng, clusters = np.random.default_rng(0), classes * CLUSTERS
    for label in np.unique(classes):
        rows = classes == label
        clusters[rows] += kmeans2(bursts[rows].mean(axis=1), CLUSTERS, minit="++", rng=rng)[1]
    print("| classes, ONE_NUMBERED | in bursts | different subjects |\n|---|---:|---:|")
    for name, of in (("as they are", classes), ("look-alikes", clusters)):
        for share in SHARES:
            print("| {}, {} | {:.1%} | {:.2%} |".format(name, share, *joined(bursts, of, share)))


def burst_vectors(paths, options):
    """Normalised vectors of a burst of each photo, float32 [photos, SHOTS, width]."""
    rng, files = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            image = Image.open(path).convert("RGB")
            for _ in range(SHOTS):
                files.append(Path(folder) / f"IMG_{len(files):04d}.jpg")
                files[-1].write_bytes(shot(image, rng))
        vectors = base_network.vectors_by(base_network.load(options))(files)
    return normalised(vectors).reshape(len(paths), SHOTS, -1)


def shot(image, rng):
    """A JPEG of a random 85 % of each side, turned up to 3 degrees, light changed up to 15 %."""
    size = np.array(image.size)
    left, top = (rng.uniform(0, 0.15, 2) * size).astype(int)
    turned = image.rotate(rng.uniform(-3, 3), Image.BICUBIC)
    cut = turned.crop((left, top, *((left, top) + 0.85 * size).astype(int)))
    return jpeg(ImageEnhance.Brightness(cut).enhance(rng.uniform(0.85, 1.15)), 85)


def joined(bursts, classes, share):
    """The shares joined (of neighbours in a burst, of shots of different subjects in a class)."""
    most = ONE_SERIES * mean_distance(bursts.reshape(-1, bursts.shape[2]))
    same, other = [], []
    for shots in (bursts[classes == label] for label in np.unique(classes)):
        largest = min(most, share * mean_distance(shots.reshape(-1, shots.shape[2])))
        same.append(1 - (shots[:, 1:] * shots[:, :-1]).sum(axis=2) <= largest)
        distances = 1 - shots[:, -1] @ shots[:, 0].T  # the last shot of one, the first of the next
        other.append(distances[~np.eye(len(shots), dtype=bool)] <= largest)
    return np.concatenate(same).mean(), np.concatenate(other).mean()


if __name__ == "__main__":
    main()
