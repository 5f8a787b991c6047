"""A retrained graph without its decoder, for programs that read frozen graphs but not its ops."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.export.build import FORMAT, metadata_bytes
from retraining.export.converter import Converter
from retraining.export.pixels_graph import Feeds, Source
from retraining.graphs.description import read_metadata
from retraining.graphs.read import read_graph
from retraining.graphs.session import open_session
from retraining.graphs.write import graph_bytes


def save(source: Source, path: str) -> None:
    """Writes a Source to `path`, as a frozen graph that describes itself.

    Each input is a Placeholder, float32 [n, height, width, 3] of `(pixel - mean) / std`. The output
    is float32 [n, k]. Inputs and output have the names of the retrained graph. Its constant
    `retraining/metadata` belongs to no other node.
    """
    with open(path, "wb") as file:
        file.write(graph_bytes(source.graph_def))
        file.write(metadata_bytes(_description(source)))


def _description(source: Source) -> dict[str, Any]:
    """Returns the description: as in the retrained graph, as far as this one has the nodes.

    `inputs` {node: facts} tells how to feed each input; label_image.py reads those of the first.
    """
    inputs = {image.node: image.preprocessing.describe() for image in source.inputs}
    first = source.inputs[0].node
    return {
        "format": FORMAT,
        "labels": source.labels,
        "network": source.network,
        "input": first,
        **inputs[first],
        "inputs": inputs,
        "output": source.output,
        "trust": {"temperature": source.temperature},
    }


class PixelsGraph:
    """A frozen graph that TensorFlow has loaded from its file."""

    def __init__(self, path: str) -> None:
        graph_def = read_graph(path)
        description = read_metadata(graph_def) or {}
        self._nodes, self._output = list(description["inputs"]), description["output"]
        self._session = open_session(graph_def, self._output, few=True)

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: float32 [n, height, width, 3]}."""
        tensors = (f"{node}:0" for node in self._nodes)
        fed = dict(zip(tensors, feeds.values(), strict=True))
        probabilities: NDArray[np.float32] = self._session.run(f"{self._output}:0", fed)
        return probabilities


CONVERTER = Converter(
    kind="pixels_graph",
    name="pixels_graph",
    option="pixels_graph",
    help="also write a frozen graph that takes pixels instead of files, for OpenCV, OpenVINO and "
    "TensorFlow.js",
    save=save,
    load=PixelsGraph,
)
