"""Compares the first labels of photos with those of the same photos as HEIC files.

    pip install pillow-heif
    python benchmarks/heic_labels.py --image_dir flower_photos --graph retrained_graph.pb

Takes --photos of them, spread evenly over the classes, and encodes each as HEIC (--quality). Prints
how many get the same first label, and how far the scores of that label lie apart. Exits with 1 if
less than 95 % do. pillow-heif can encode; what reads the files is the tool's own decoder.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retraining.labelling.classifier import load_classifier
from retraining.photos.decode import decode
from retraining.photos.registry import open_source

# isort: split
import numpy as np  # after retraining, which sets its threads
import pillow_heif
from PIL import Image

ENOUGH = 0.95


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--graph", default="retrained_graph.pb")
    parser.add_argument("--photos", type=int, default=150)
    parser.add_argument("--quality", type=int, default=80)
    options = parser.parse_args()
    classes = open_source(options.image_dir).scan().names.values()
    each = -(-options.photos // len(classes))
    names = [name for photos in classes for name in photos[:: max(1, len(photos) // each)][:each]]
    names = names[: options.photos]
    with tempfile.TemporaryDirectory(prefix="heic-") as folder:
        encoded = [
            encode(name, number, folder, options.quality) for number, name in enumerate(names)
        ]
        compare(load_classifier(options.graph), names, encoded)


def encode(name, number, folder, quality):
    """Writes a photo as a HEIC file; returns its path."""
    path = str(Path(folder) / f"{number}.heic")
    image = Image.fromarray(decode(Path(name).read_bytes()))
    pillow_heif.from_pillow(image).save(path, quality=quality)
    return path


def compare(classifier, names, encoded):
    """Prints the figures, and exits with 1 if too few first labels agree."""
    before, after = (first(classifier, paths) for paths in (names, encoded))
    same = sum(a[0] == b[0] for a, b in zip(before, after, strict=True))
    apart = np.abs([a[1] - b[1] for a, b in zip(before, after, strict=True) if a[0] == b[0]])
    print(f"same first label: {same} of {len(names)} ({same / len(names):.1%})")
    print(f"scores of it apart: median {np.median(apart):.4f}, largest {apart.max():.4f}")
    sys.exit(same < ENOUGH * len(names))


def first(classifier, paths):
    """[(label, score)] of photos."""
    found = []
    for _, scores, _ in classifier.predict(paths, count=1):
        found.append((classifier.labels[int(np.argmax(scores))], float(np.max(scores))))
    return found


if __name__ == "__main__":
    main()
