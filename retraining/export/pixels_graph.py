"""The graph that every converter starts from: from float pixels to probabilities."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.export.build import FORMAT
from retraining.graphs.description import read_metadata
from retraining.graphs.fold import fold
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import node_name, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing, Size
from retraining.graphs.surgery import batched_part, cut, widen_batch

# Pixels by the name of an input: float32 [n, height, width, 3].
Feeds: TypeAlias = Mapping[str, NDArray[np.float32]]

DESCRIPTION_FILE = "retraining.json"  # in formats that hold files
OUTPUT = "probabilities"  # in the other formats
PIXELS = "pixels"  # float32 [n, height, width, 3], `(pixel - mean) / std`
RAW_PIXELS = "uint8 pixels"  # uint8 [n, height, width, 3], 0 to 255; the model normalises them


@dataclass(frozen=True)
class Input:
    """One float input of a graph: float32 [n, *size, 3] of preprocessed pixels.

    `node` is its name in the graph, `feed` its name in the other formats.
    """

    node: str
    feed: str
    preprocessing: Preprocessing

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.preprocessing.size

    def describe(self) -> dict[str, Any]:
        """Returns the preprocessing of this input."""
        return {"kernel": self.preprocessing.kernel, **self.preprocessing.describe()}


@dataclass(frozen=True)
class Source:
    """A folded GraphDef from `inputs` to the node `output`, float32 [n, labels], for any n."""

    graph_def: GraphDef
    inputs: tuple[Input, ...]
    output: str
    labels: tuple[str, ...]
    network: str
    temperature: float = 1.0  # by which label_image.py divides logits; the output does without it
    takes: str = PIXELS  # or RAW_PIXELS

    @classmethod
    def of(cls, graph_def: GraphDef) -> "Source":
        """Returns the Source of a retrained graph, which describes itself."""
        description = read_metadata(graph_def) or {}
        inputs, output = tuple(_inputs(description)), description["output"]
        part = _float_part(graph_def, inputs, output)
        temperature = description.get("trust", {}).get("temperature", 1.0)
        labels = tuple(description["labels"])
        return cls(part, inputs, output, labels, description["network"], temperature)

    def describe(self) -> dict[str, Any]:
        """Returns the facts that a program needs to use the model in another format.

        `inputs` {name: how to feed it} has `takes`: PIXELS, which the caller resizes to `size`
        (height, width) with the `kernel` and makes `(pixel - mean) / std`; or RAW_PIXELS, which
        the caller only resizes and rounds. `temperature_inside` tells whether the probabilities
        are those at the `temperature` already.
        """
        return {
            "format": FORMAT,
            "labels": self.labels,
            "network": self.network,
            "inputs": {i.feed: {"takes": self.takes, **i.describe()} for i in self.inputs},
            "output": OUTPUT,
            "temperature": self.temperature,
            "temperature_inside": False,
        }

    def description(self) -> bytes:
        """Returns `describe()` as the bytes of a JSON file."""
        return (json.dumps(self.describe(), indent=2) + "\n").encode("ascii")


def _inputs(description: Mapping[str, Any]) -> Iterator[Input]:
    """Yields the Inputs that the description of a graph names: one for each of its networks."""
    for part, feed in ((description, "images"), (description.get("second"), "images_2")):
        if part:
            yield Input(part["input"], feed, Preprocessing.of(part))


def _float_part(graph_def: GraphDef, inputs: Sequence[Input], output: str) -> GraphDef:
    """Returns the folded part from the inputs, placeholders [n, *size, 3], to the output."""
    part = batched_part(graph_def, inputs[0].node, output)
    for image in inputs[1:]:
        part = cut(part, image.node, output)
    widen_batch(part)
    for node in part.node:
        if node.op == "PlaceholderWithDefault":  # it takes bottlenecks, which nobody feeds here
            _make_identity(node)
    fold(part, output)
    nodes = nodes_by_name(part)
    for image in inputs:
        shape = nodes[node_name(image.node)].attr["shape"].shape
        del shape.dim[:]
        for size in (-1, *image.size, 3):
            shape.dim.add(size=size)
    return part


def _make_identity(node: NodeDef) -> None:
    dtype = node.attr["dtype"].type
    node.op = "Identity"
    node.attr.clear()
    node.attr["T"].type = dtype
