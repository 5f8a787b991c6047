"""The graph that every converter starts from: from float pixels to probabilities."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.export.build import FORMAT, OWN_NODES
from retraining.graphs.description import IMAGE, OUTPUT, PIXELS, read_metadata
from retraining.graphs.fold import fold
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import add_constant, add_node, node_name, nodes_by_name
from retraining.graphs.preprocessing import Preprocessing, Size
from retraining.graphs.surgery import batched_part, cut, widen_batch

# By the name of an input: preprocessed pixels, float32 [n, height, width, 3], or images as decoded,
# uint8 [1, height, width, 3].
Pixels: TypeAlias = Mapping[str, NDArray[np.float32]]
Feeds: TypeAlias = Mapping[str, NDArray[np.float32] | NDArray[np.uint8]]


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
    """A folded GraphDef from `inputs` to the node `output`, float32 [n, labels], for any n.

    If the model takes IMAGE, converters put the preprocessing in front (see `image_input`), and
    `output` is at the temperature already.
    """

    graph_def: GraphDef
    inputs: tuple[Input, ...]
    output: str
    labels: tuple[str, ...]
    network: str
    temperature: float = 1.0  # by which label_image.py divides logits
    takes: str = PIXELS  # one of TAKES, or RAW_PIXELS

    @classmethod
    def of(cls, graph_def: GraphDef, takes: str = PIXELS) -> "Source":
        """Returns the Source of a retrained graph, which describes itself."""
        description = read_metadata(graph_def) or {}
        inputs, output = tuple(_inputs(description)), description["output"]
        part = _float_part(graph_def, inputs, output)
        temperature = description.get("trust", {}).get("temperature", 1.0)
        if has_temperature(takes):
            _divide_logits(part, output, temperature)
        labels = tuple(description["labels"])
        return cls(part, inputs, output, labels, description["network"], temperature, takes)

    @property
    def temperature_inside(self) -> bool:
        """Whether `output` is at the temperature already."""
        return has_temperature(self.takes)

    def describe(self) -> dict[str, Any]:
        """Returns the facts that a program needs to use the model in another format.

        `inputs` {name: how to feed it} has `takes`. It is PIXELS where the caller resizes to `size`
        (height, width) with the `kernel` and makes `(pixel - mean) / std`, RAW_PIXELS where the
        caller only resizes and rounds, and IMAGE where the model does all of that.
        `temperature_inside` tells whether the probabilities are those at the `temperature` already.
        """
        return {
            "format": FORMAT,
            "labels": self.labels,
            "network": self.network,
            "inputs": self._describe_inputs(),
            "output": OUTPUT,
            "temperature": self.temperature,
            "temperature_inside": self.temperature_inside,
        }

    def _describe_inputs(self) -> dict[str, dict[str, Any]]:
        """Returns {name of an input: how to feed it}; two networks see one image."""
        if self.takes != IMAGE:
            return {i.feed: {"takes": self.takes, **i.describe()} for i in self.inputs}
        first, *others = (each.describe() for each in self.inputs)
        second = {"second": others[0]} if others else {}
        return {IMAGE: {"takes": IMAGE, **first, **second}}

    def description(self) -> bytes:
        """Returns `describe()` as the bytes of a JSON file."""
        return (json.dumps(self.describe(), indent=2) + "\n").encode("ascii")


def has_temperature(takes: str) -> bool:
    """Returns whether the probabilities of a model that `takes` this are at the temperature."""
    return takes == IMAGE


def _divide_logits(graph_def: GraphDef, output: str, temperature: float) -> None:
    """Makes the Softmax node `output` that of the logits / temperature."""
    if temperature == 1:
        return
    softmax = nodes_by_name(graph_def)[output]
    scope = f"{OWN_NODES}temperature"
    factor = add_constant(graph_def, f"{scope}/factor", np.float32(1 / temperature))
    softmax.input[0] = add_node(
        graph_def, f"{scope}/logits", "Mul", [softmax.input[0], factor], T="float32"
    )


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
