"""Fuzzes the readers of what comes from outside, guided by the Python code that inputs reach.

    pip install -r requirements-fuzz.txt
    python -m tests.guided_fuzz images FOLDER -max_total_time=3600 -timeout=20 -rss_limit_mb=4096

The targets are `images`, `graphs` and `descriptions`; tests/corpus has their seeds. What libFuzzer
finds goes into FOLDER, and an input that is neither read nor refused in words into ./crash-...;
tests/test_corpus.py tries each file of tests/corpus.
"""

import gc
import logging
import sys
from pathlib import Path
from types import FunctionType

import numpy as np

from retraining.errors import RetrainingError
from retraining.evaluation import trust
from retraining.export.changes import describe_changes
from retraining.export.verify import HeldOutResult
from retraining.graphs import safety
from retraining.graphs.description import METADATA, read_metadata
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import constant, nodes_by_name, set_constant
from retraining.graphs.tensorflow import import_tensorflow
from retraining.labelling.resolve import Overrides, resolve
from retraining.photos import decode
from retraining.photos.bounds import ImageFileError

CORPUS = Path(__file__).with_name("corpus")
INSTRUMENTED = ("retraining.", "PIL.")  # whose lines guide libFuzzer
MOST_PIXELS = 1 << 20
LABELS = ["a", "b"]


def read_image(content):
    """Decodes an image file's bytes."""
    try:
        with decode.decoded(content, MOST_PIXELS) as pixels:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert 0 < pixels.size <= 3 * MOST_PIXELS
    except ImageFileError:
        pass


def read_graph(content):
    """Reads and checks a graph's bytes, and decides how to feed it."""
    try:
        graph_def = safety.parse("graph.pb", content)
        safety.describe_unsafe(graph_def)
        safety.check(graph_def, len(content))
        resolve(graph_def, Overrides(), read_metadata(graph_def) or {})
    except RetrainingError:
        pass


def read_description(content):
    """Reads a graph's description of itself, and compares a new graph with it."""
    graph_def = GraphDef()
    set_constant(graph_def.node.add(name=METADATA), np.array(content, object))
    scores = np.eye(2, dtype="f4")
    result = HeldOutResult(["a.jpg", "b.jpg"], ["a", "b"], np.arange(2), scores, scores)
    try:
        described = read_metadata(graph_def) or {}
        list(describe_changes(described, result, LABELS))
        nodes = nodes_by_name(graph_def)
        trust.read(described.get("trust", {}), lambda name: constant(nodes, name))
    except RetrainingError:
        pass


TARGETS = {"images": read_image, "graphs": read_graph, "descriptions": read_description}


def main():
    """Runs libFuzzer on the target that the first argument names."""
    import atheris

    name, *flags = sys.argv[1:]
    logging.disable()
    decode.silence_pillow()
    import_tensorflow()
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and str(function.__module__).startswith(INSTRUMENTED):
            atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *flags, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
