"""How many wrong labels and duplicates the audit finds, and how long it takes.

    python benchmarks/audit.py labels --vectors classic_bottlenecks
    python benchmarks/audit.py duplicates --image_dir flower_photos --model_dir models
    python benchmarks/audit.py few --image_dir flower_photos --architecture efficientnet_lite0
    python benchmarks/audit.py time --photos 20000 --classes 5

`labels` swaps 5 % of the labels at random, ten times, and prints the share of them among the
top-ranked of that number, for several ways to rank. The vectors are text files, one a photo in a
folder per class, as the classic retrain.py cached them. `duplicates` alters each fifteenth photo
and prints the share of altered versions that are found, and all pairs found among the photos. `few`
draws a few photos of each class, with right labels and with a tenth of them swapped, and prints how
many draws dispute labels, how many labels they dispute, and how many of those were swapped: with
MAJORITY alone, and as the audit does.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base_network
from retraining.evaluation import label_audit
from retraining.photos.registry import open_source

# isort: split
import numpy as np  # after retraining, which sets its threads
from PIL import Image

SWAPPED = 0.05  # share of the labels
SEEDS = 10
EVERY = 15  # of the photos is altered
FEW, DRAWS = (3, 5, 8, 10, 15, 20, 30, 50), 30  # photos a class; draws of each number


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("labels", "duplicates", "few", "time"))
    parser.add_argument("--vectors", default="classic_bottlenecks")
    base_network.add_flags(parser)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=5)
    options = parser.parse_args()
    kinds = {"labels": labels, "duplicates": duplicates, "few": few, "time": how_long}
    kinds[options.what](options)


# -- labels ----------------------------------------------------------------------------------


def labels(options):
    """Prints a line per ranking: share of the swapped labels found, mean and least."""
    vectors, targets = read_vectors(options.vectors)
    unit = label_audit.normalised(vectors)
    shares = {}
    for seed in range(SEEDS):
        given, rows = swapped(targets, seed)
        found = label_audit.out_of_fold(unit, given, np.arange(len(given)), seed)
        for name, scores in rankings(found, given).items():
            top = np.argsort(-scores, kind="stable")[: len(rows)]
            shares.setdefault(name, []).append(np.isin(rows, top).mean())
    print(
        f"{len(targets)} photos, {len(rows)} labels swapped, {SEEDS} seeds; found in the top list"
    )
    for name, values in shares.items():
        print(f"{name:40} {np.mean(values):.3f} mean, {min(values):.3f} least")


def rankings(probabilities, targets):
    """{name: score per photo, the higher the worse}; the first is the audit's."""
    rows = np.arange(len(targets))
    own, others = probabilities[rows, targets], probabilities.copy()
    others[rows, targets] = 0
    best, wrong = others.max(axis=1), label_audit.confidently_wrong(probabilities, targets)
    return {
        "1 - P(given)": 1 - own,
        "P(best other) - P(given)": best - own,
        "ln P(best other) - ln P(given)": np.log(best) - np.log(own),
        "confident joint, then 1 - P(given)": wrong * 2 - own,
        "confident joint, then margin": wrong * 3 + best - own,
    }


def swapped(targets, seed, share=SWAPPED):
    """(labels int [n] of which a share is another class at random, rows of that share)."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(targets), round(share * len(targets)), replace=False)
    given, classes = targets.copy(), targets.max() + 1
    given[rows] = (targets[rows] + rng.integers(1, classes, len(rows))) % classes
    return given, rows


def read_vectors(folder):
    """(float32 [n, width], class int [n]) of `folder/<class>/*.txt`."""
    files = [sorted(path.glob("*.txt")) for path in sorted(Path(folder).iterdir())]
    texts = [path.read_text() for of_class in files for path in of_class]
    vectors = np.array([np.fromstring(text, np.float32, sep=",") for text in texts])
    return vectors, np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])


# -- duplicates ------------------------------------------------------------------------------


def duplicates(options):
    """Prints the pairs found among the photos, and the share found of each kind of altered one."""
    photos = open_source(options.image_dir).scan().names.values()
    paths = [path for of_class in photos for path in of_class]
    targets = np.repeat(np.arange(len(photos)), [len(of_class) for of_class in photos])
    network = base_network.load(options)
    vectors_of = base_network.vectors_by(network)
    unit = label_audit.normalised(vectors_of(paths))
    for row, other, cosine in label_audit.near_duplicates(unit, targets):
        print(f"pair {cosine:.4f} {paths[other]} {paths[row]}")
    cosines = np.sort((unit @ unit.T)[np.triu_indices(len(unit), 1)])[::-1]
    print("nearest pairs:", " ".join(f"{cosine:.4f}" for cosine in cosines[:8]))
    kinds, vectors = altered_vectors(vectors_of, paths[::EVERY])
    least = label_audit.least_cosines(unit, targets)[targets[::EVERY]]
    found = (
        label_audit.normalised(vectors).reshape(len(least), len(kinds), -1) * unit[::EVERY, None]
    )
    for kind, cosines in zip(kinds, found.sum(axis=2).T, strict=True):
        print(f"{kind:20} {(cosines >= least).mean():4.0%} found of {len(least)}")


def altered_vectors(vectors_of, paths):
    """(what was done, float32 [photos x what, width]) of all altered versions, photo by photo."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, path in enumerate(paths):
            versions = altered(path)
            for kind, content in versions.items():
                files.append(Path(folder) / f"{number} {kind}")
                files[-1].write_bytes(content)
        return list(versions), vectors_of(files)


def altered(path):
    """{what was done: bytes of the altered JPEG}."""
    image = Image.open(path).convert("RGB")
    width, height = image.size

    def cropped(share):
        x, y = round(width * share / 2), round(height * share / 2)
        return jpeg(image.crop((x, y, width - x, height - y)))

    return {
        "JPEG quality 70": jpeg(image, 70),
        "JPEG quality 40": jpeg(image, 40),
        "half the size": jpeg(image.resize((width // 2, height // 2), Image.LANCZOS)),
        "1.5 times the size": jpeg(image.resize((width * 3 // 2, height * 3 // 2), Image.BICUBIC)),
        "2 % cropped": cropped(0.02),
        "5 % cropped": cropped(0.05),
        "10 % cropped": cropped(0.10),
        "mirrored": jpeg(image.transpose(Image.FLIP_LEFT_RIGHT)),
        "10 % brighter": jpeg(image.point(lambda value: min(255, int(value * 1.1)))),
    }


def jpeg(image, quality=92):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


# -- few photos ------------------------------------------------------------------------------


def few(options):
    """Prints a row per number of photos a class and share of swapped labels: means over DRAWS."""
    photos = open_source(options.image_dir).scan().names.values()
    vectors = base_network.vectors_by(base_network.load(options))([p for c in photos for p in c])
    unit = label_audit.normalised(vectors)
    targets = np.repeat(np.arange(len(photos)), [len(of_class) for of_class in photos])
    print(
        "| photos a class, swapped | draws that dispute | disputed, swapped | FEW: draws | both |"
    )
    print("|---|---:|---:|---:|---:|")
    for share in (0, 0.1):
        for count in FEW:
            drawn = [draw(unit, targets, count, share, seed) for seed in range(DRAWS)]
            cells = []
            for rule in zip(*drawn, strict=True):
                spoke, disputed, right = np.mean(rule, axis=0)
                cells += [f"{spoke:.0%}", f"{disputed:.2f}, {right:.2f}"]
            print(f"| {count}, {share:.0%} | {' | '.join(cells)} |", flush=True)


def draw(unit, targets, count, share, seed):
    """(whether it disputes labels, how many, of them swapped) with MAJORITY, and as in audit."""
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(targets == n), count, False) for n in np.unique(targets)]
    rows = np.concatenate(chosen)
    given, wrong = swapped(targets[rows], seed, share)
    found = label_audit.out_of_fold(unit[rows], given, np.arange(len(rows)), seed)
    known = np.isfinite(found).all(axis=1)
    right = int((found[known].argmax(axis=1) == given[known]).sum())
    most = label_audit.wilson_interval(right, known.sum())[0] > label_audit.MAJORITY
    disputed = np.flatnonzero(label_audit.confidently_wrong(found, given))
    result = 1, len(disputed), np.isin(disputed, wrong).sum()
    return [result if says else (0, 0, 0) for says in (most, label_audit._agree(found, given))]


# -- time ------------------------------------------------------------------------------------


def how_long(options):
    """Prints the seconds for random vectors of 2,048."""
    rng = np.random.default_rng(0)
    targets = np.arange(options.photos) % options.classes
    centres = rng.random((options.classes, 2048), np.float32)
    vectors = rng.random((options.photos, 2048), np.float32) + centres[targets] / 4
    names = [str(number) for number in range(options.photos)]
    photos = label_audit.AuditedPhotos(
        names, names, [str(n) for n in range(options.classes)], targets, vectors
    )
    started, cpu = time.perf_counter(), time.process_time()
    label_audit.audit(photos)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"{options.photos} photos, {options.classes} classes: {seconds:.1f} s, {cpu:.1f} s of CPU"
    )


if __name__ == "__main__":
    main()
