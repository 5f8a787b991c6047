"""The flags by which a benchmark is told its photos and its base network, and that network."""

from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS, obtain


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
