"""Damages tiny graphs' files and runs what is left on an image; a program of its own, too.

`python -m tests.fuzz SEED COUNT FOLDER` notes in FOLDER/last which one it is about to try, and its
file is FOLDER/graph.pb, so that one that ends the process is known.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from retraining.errors import RetrainingError
from retraining.graphs.description import METADATA
from retraining.graphs.nodes import set_constant
from retraining.graphs.run import Runner, Running
from retraining.graphs.safety import ALLOWED_OPS
from retraining.labelling.classifier import load_classifier
from retraining.labelling.resolve import Overrides
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.reader import ImageReader
from tests import tiny

OVERRIDES = {
    "bytes": Overrides("DecodeJpeg/contents", "softmax"),
    "pixels": Overrides("Mul", "softmax"),
    "mobilenet": Overrides("input", "MobilenetV1/Predictions/Softmax"),
    "described": Overrides(),
}
DESCRIPTION = {"labels": list("0123456789"), "input": "Mul", "output": "softmax"}
DESCRIPTION |= {"size": [32, 32], "mean": 128.0, "std": 128.0}


def originals():
    """{name: bytes} of the tiny graphs; `base` is for retrain.py, the others for label_image.py."""
    inception = tiny.tiny_inception()
    plain = inception.SerializeToString(deterministic=True)
    text = json.dumps(DESCRIPTION).encode()
    set_constant(inception.node.add(name=METADATA), np.array(text, object))
    return {
        **dict.fromkeys(("base", "bytes", "pixels"), plain),
        "described": inception.SerializeToString(deterministic=True),
        "mobilenet": tiny.tiny_mobilenet(size=32).SerializeToString(deterministic=True),
    }


def damaged(content, rng):
    """A copy with bits flipped, bytes replaced, a piece cut out, doubled or moved, or cut short."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(content)))
        length = int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        elif kind == 4:
            other = int(rng.integers(len(content)))
            content[at : at + length] = content[other : other + length]
        elif kind == 5:
            content[at:at] = rng.bytes(length)
        elif rng.random() < 0.2:
            del content[max(at, 1) :]
    return bytes(content)


NASTY = (-(1 << 63), -2, -1, 0, 1, 2, 3, 255, 1 << 16, 1 << 31, (1 << 63) - 1)
OPS = sorted(ALLOWED_OPS)
definition = op_def_registry.get


def restructured(content, rng):
    """A copy that still is a GraphDef, with ops, inputs, attributes and constants changed."""
    graph_def = tf.compat.v1.GraphDef.FromString(content)
    for _ in range(rng.integers(1, 4)):
        node, other = (graph_def.node[int(rng.integers(len(graph_def.node)))] for _ in range(2))
        kind = rng.integers(7)
        if kind == 0:
            count = len(node.input)
            node.op = str(rng.choice([op for op in OPS if len(definition(op).input_arg) == count]))
            for attribute in definition(node.op).attr:
                if attribute.type == "type" and attribute.name not in node.attr:
                    node.attr[attribute.name].type = tf.float32.as_datatype_enum
        elif kind == 1 and node.input:
            node.input[int(rng.integers(len(node.input)))] = other.name
        elif kind == 2 and other.attr:
            key = str(rng.choice(sorted(other.attr)))
            node.attr[key].CopyFrom(other.attr[key])
        elif kind == 3 and node.attr:
            del node.attr[str(rng.choice(sorted(node.attr)))]
        elif kind == 4:
            node.op = other.op
            for key in other.attr:
                node.attr[key].CopyFrom(other.attr[key])
        else:
            _unsettle(node, rng)
    return graph_def.SerializeToString(deterministic=True)


def _unsettle(node, rng):
    """Puts odd numbers into what a node says of sizes, or into its constant."""
    odd = int(rng.choice(NASTY))
    for key in sorted(node.attr):
        value = node.attr[key]
        for sizes in (value.shape.dim, value.tensor.tensor_shape.dim):
            if sizes and rng.random() < 0.5:
                sizes[int(rng.integers(len(sizes)))].size = odd
        if value.list.i:
            value.list.i[int(rng.integers(len(value.list.i)))] = odd
        elif value.HasField("i"):
            value.i = odd
        elif value.HasField("type"):
            value.type = int(rng.integers(1, 24))
        elif value.HasField("f"):
            value.f = odd
        elif value.HasField("tensor") and value.tensor.dtype == tf.int32.as_datatype_enum:
            value.tensor.tensor_content = b""
            value.tensor.int_val[:] = [max(min(odd, (1 << 31) - 1), -(1 << 31))]


def attempt(name, content, folder, image):
    """Runs a graph of these bytes on an image: what it gives, float [n], or the RetrainingError."""
    path = Path(folder) / "graph.pb"
    path.write_bytes(content)
    try:
        return vector(path, image) if name == "base" else probabilities(name, path, image)
    except RetrainingError as error:
        return error


def vector(path, image):
    """As retrain.py computes it."""
    network = load_network(path, NETWORKS["inception_v3"])
    about = network.preprocessing
    images = ImageReader(about).read(image)
    runner = Runner(network.graph_def, network.input, network.bottleneck, Running(optimize=False))
    (found,) = runner.run(images)
    assert len(found.reshape(-1)) == network.width
    return found


def probabilities(name, path, image):
    """As label_image.py computes them."""
    labels = path.with_name("labels.txt")
    labels.write_text("".join(f"{n}\n" for n in range(8 if name == "mobilenet" else 10)))
    flags = (None if name == "described" else labels, OVERRIDES[name], "float32")
    classifier = load_classifier(path, *flags)
    ((_, found, _),) = classifier.predict([str(image)], count=1)
    if isinstance(found, RetrainingError):
        raise found
    assert found.shape == (len(classifier.labels),)
    return found


def attempts(seed, numbers, folder):
    """Tries one damaged file a number; returns (answers, errors) counted.

    Three of four are damaged as graphs, since few that are damaged as bytes are read at all.
    """
    files, counts = originals(), [0, 0]
    image = Path(folder) / "photo.jpg"
    tiny.photo(tiny.COLOURS["red"], np.random.default_rng(0)).save(image)
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        name = sorted(files)[number % len(files)]
        damage = damaged if rng.random() < 0.25 else restructured
        (Path(folder) / "last").write_text(f"{seed} {number}")
        answer = attempt(name, damage(files[name], rng), folder, image)
        counts[isinstance(answer, RetrainingError)] += 1
    return tuple(counts)


if __name__ == "__main__":
    print(attempts(int(sys.argv[1]), range(int(sys.argv[2])), sys.argv[3]))
