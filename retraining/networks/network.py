"""Loads a base network: its frozen graph and how to feed it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.batches import is_quantised
from retraining.graphs.description import METADATA
from retraining.graphs.front_end import before, look_after, read_preprocessing
from retraining.graphs.lowering import lowered_products
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import GraphError, attribute, constant, node_name, nodes_by_name
from retraining.graphs.preprocessing import PartialPreprocessing, PerChannel, Preprocessing
from retraining.graphs.read import import_shapes, output_tensor
from retraining.graphs.safety import load_graph
from retraining.networks.registry import Network
from retraining.photos.reader import POLICY


@dataclass(frozen=True)
class BaseNetwork:
    """A base network as read from its file; `width` is the length of its bottleneck vector."""

    name: str
    graph_def: GraphDef
    input: str
    bottleneck: str
    preprocessing: Preprocessing
    width: int
    file_sha1: str

    @property
    def networks(self) -> "tuple[BaseNetwork, ...]":
        """Returns the networks that it consists of: only itself; see pair.NetworkPair."""
        return (self,)

    @property
    def exported(self) -> "tuple[BaseNetwork, ...]":
        """Returns these networks as an exported graph contains them."""
        return (self,)

    def fingerprint(self, precision: str) -> str:
        """Returns a hex SHA-1 of all that vectors depend on besides the image.

        That is the network's file, its preprocessing, the precision, and our decoding of images.
        """
        facts = (
            self.file_sha1,
            self.input,
            self.bottleneck,
            self.preprocessing.facts(),
            precision,
            POLICY,
            # Other vectors than those of batches, which older versions stored for such networks.
            *(("one at a time",) if is_quantised(n.op for n in self.graph_def.node) else ()),
            # Older versions computed these in float32.
            *(("products",) if self._lowers_products(precision) else ()),
        )
        return hashlib.sha1(repr(facts).encode()).hexdigest()

    def _lowers_products(self, precision: str) -> bool:
        return precision == "bfloat16" and bool(lowered_products(self.graph_def.node))


def load_network(path: str | Path, network: Network, allow_unsafe_ops: bool = False) -> BaseNetwork:
    """Reads a base network's file and checks that it holds `network`.

    Raises:
        GraphError: the file is no frozen graph, is not known to be harmless, or holds another
            network.
    """
    graph_def, content = load_graph(path, allow_unsafe_ops)
    file_sha1 = hashlib.sha1(content).hexdigest()
    del content  # as large as the graph
    nodes = nodes_by_name(graph_def)
    missing = sorted(network.required_nodes - set(nodes))
    if missing:
        raise GraphError(
            f"{path} is not {network.name}: it has no node {', '.join(missing)}; check "
            f"`NetworkSettings.architecture` and `NetworkSettings.model_file`"
        )
    if METADATA in nodes:
        raise GraphError(
            f"{path} is a retrained graph, not a base network; see `NetworkSettings.model_file`"
        )
    own = read_preprocessing(nodes, network.input)
    size = own.size or (network.size, network.size)
    if network.first_weights and (
        size != (network.size, network.size) or _differ(nodes, *network.first_weights)
    ):
        raise GraphError(
            f"{path} is another network than {network.name}; check `NetworkSettings.architecture`"
        )
    return BaseNetwork(
        name=network.name,
        graph_def=graph_def,
        input=network.input,
        bottleneck=network.bottleneck,
        preprocessing=Preprocessing(size, *_scale(nodes, network, own), kernel=network.kernel),
        width=_width(path, graph_def, nodes, network.bottleneck),
        file_sha1=file_sha1,
    )


def _scale(
    nodes: Mapping[str, NodeDef], network: Network, own: PartialPreprocessing
) -> tuple[PerChannel, PerChannel]:
    """Returns (mean, std) as the graph tells, else the network's, less what the graph does itself.

    The numbers of a recipe are those of the whole graph that it makes.
    """
    if own.mean is not None and own.std is not None:
        return own.mean, own.std
    scale = network.mean, network.std
    return scale if network.recipe else before(scale, look_after(nodes, network.input).affine)


def _differ(nodes: Mapping[str, NodeDef], name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a constant of that name exists and has another shape."""
    weights = constant(nodes, name)
    return weights is not None and weights.shape != shape


def _width(path: str | Path, graph_def: GraphDef, nodes: Mapping[str, NodeDef], name: str) -> int:
    """Returns the length of the bottleneck vector, from constants or by shape inference."""
    node = nodes[name]
    shape = constant(nodes, node.input[1]) if node.op == "Reshape" else _shape_of_mean(nodes, node)
    if shape is None:
        inferred = output_tensor(import_shapes(graph_def, name), name).shape
        shape = np.array(inferred.as_list() if inferred.rank is not None else ())
    if shape.shape != (2,) or not shape[1] or shape[1] < 1:
        raise GraphError(f"{path}: {name} has shape {shape}, not one vector per image")
    return int(shape[1])


def _shape_of_mean(nodes: Mapping[str, NodeDef], node: NodeDef) -> NDArray[Any] | None:
    """Returns [-1, width] of a mean over height and width of biased features; else None.

    It spares EfficientNet-Lite the import of TensorFlow.
    """
    if node.op != "Mean" or attribute(node, "keep_dims").b:
        return None
    axes, features = constant(nodes, node.input[1]), nodes[node_name(node.input[0])]
    while features.op in ("Relu", "Relu6", "Identity"):
        features = nodes[node_name(features.input[0])]
    biases = constant(nodes, features.input[1]) if features.op == "BiasAdd" else None
    if axes is None or biases is None or sorted(axes.reshape(-1)) != [1, 2] or biases.ndim != 1:
        return None
    return np.array([-1, len(biases)])
