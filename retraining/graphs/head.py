"""Computes with NumPy what follows the vectors in a classifier's graph: a few small layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import GraphError, attribute, constant, node_name, nodes_by_name
from retraining.graphs.surgery import in_order
from retraining.metrics.classification import softmax
from retraining.system.text import one_line

OPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("Add", "AddV2", "BiasAdd"), np.add),
    **dict.fromkeys(("Identity", "PlaceholderWithDefault"), lambda x: x),
    **{"MatMul": np.matmul, "Relu": lambda x: np.maximum(x, 0), "Softmax": softmax},
}


class HeadRunner:
    """Runs the part of a graph from its vectors to the outputs."""

    def __init__(self, graph_def: GraphDef, source: str, outputs: Sequence[str]) -> None:
        """`source` is the node that gives the vectors.

        Raises:
            GraphError: a node between is none that this module computes.
        """
        nodes = nodes_by_name(graph_def)
        self._source, self._outputs = source, outputs
        self._steps: list[NodeDef] = []
        self._constants: dict[str, NDArray[Any]] = {}
        for name in outputs:
            for node in in_order(nodes, name, stop=source):
                self._add(nodes, node)

    def _add(self, nodes: Mapping[str, NodeDef], node: NodeDef) -> None:
        value = constant(nodes, node.name)
        transposes = any(attribute(node, f"transpose_{side}").b for side in "ab")
        if value is not None:
            self._constants[node.name] = value
        elif node.name != self._source and (node.op not in OPS or transposes):
            raise GraphError(f"NumPy does not compute {node.op} ({node.name})")
        elif node.name != self._source:
            self._steps.append(node)

    def run(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the columns of all outputs, float32 [n, k], for vectors float32 [n, width].

        Raises:
            GraphError: the layers do not fit the vectors or each other.
        """
        values = {**self._constants, self._source: vectors}
        try:
            # The caller looks for NaN in the answer, as with TensorFlow.
            with np.errstate(all="ignore"):
                for node in self._steps:
                    inputs = (values[node_name(name)] for name in node.input)
                    values[node.name] = OPS[node.op](*inputs)
            return np.concatenate([values[name] for name in self._outputs], axis=1)
        except (ValueError, TypeError) as error:
            raise GraphError(
                f"the layers behind the vectors do not fit: {one_line(error)}"
            ) from error
