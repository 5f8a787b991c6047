"""The flags by which a benchmark is told its photos and its base network, and its vectors."""

import sys

from retraining.bottlenecks.stream import stream
from retraining.graphs.run import Runner, Running
from retraining.networks.network import load_network
from retraining.networks.precision import resolve_precision
from retraining.networks.registry import DEFAULT
from retraining.photos.reader import ImageError, ImageReader
from retraining.run.network import choose_network
from retraining.run.notes import RunNotes
from retraining.run.settings import NetworkSettings
from retraining.system.observer import Silent

# isort: split
import numpy as np  # after retraining, which sets its threads


def add_flags(parser):
    """Adds them to an argparse parser."""
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--model_dir", default="models")
    parser.add_argument("--model_file", help="as for retrain.py")
    parser.add_argument("--architecture", default=DEFAULT, help="as for retrain.py")


def load(options):
    """The network.BaseNetwork that the flags name."""
    settings = NetworkSettings(
        architecture=options.architecture,
        model_dir=options.model_dir,
        model_file=options.model_file,
    )
    known, path = choose_network(settings, RunNotes(), Silent())
    return load_network(path, known)


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
