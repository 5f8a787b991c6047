"""The flags by which a benchmark is told its photos and its base network, and its vectors."""

import sys

from retraining.bottlenecks.stream import stream
from retraining.graphs.run import Runner, Running
from retraining.networks.network import load_network
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import NETWORKS, obtain
from retraining.photos.reader import ImageError, ImageReader

# isort: split
import numpy as np  # after retraining, which sets its threads


def add_flags(parser):
    """Adds them to an argparse parser."""
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--model_file", help="the network's frozen graph")
    parser.add_argument("--architecture", choices=NETWORKS, default="inception_v3")


def load(options):
    """The network.BaseNetwork that the flags name."""
    known = NETWORKS[options.architecture]
    return load_network(options.model_file or obtain(known, options.model_dir), known)


def vectors_by(network, precision="auto"):
    """A function that computes the vectors of photos, float32 [n, width], given their paths.

    It ends the program at a photo that cannot be read.
    """
    reader = ImageReader(network.preprocessing)
    precision = resolve_precision(precision, network.graph_def)
    runner = Runner(network.graph_def, network.input, network.bottleneck, Running(precision))

    def compute(paths):
        vectors = []
        for path, answer in stream(paths, reader.read, runner):
            if isinstance(answer, ImageError):
                sys.exit(f"{path} {answer}; take it out")
            vectors.append(answer)
        return np.concatenate(vectors)

    return compute
