"""A base network: its frozen graph and how to feed it."""

import hashlib
from dataclasses import dataclass

import numpy as np

from retraining.graphs.description import METADATA, Preprocessing, read_preprocessing
from retraining.graphs.nodes import GraphError, constant, nodes_by_name
from retraining.graphs.read import import_shapes, output_tensor
from retraining.graphs.safety import load_graph
from retraining.photos.reader import POLICY


@dataclass(frozen=True)
class BaseNetwork:
    """A base network as read from its file; `width` is that of its bottleneck vector."""

    name: str
    graph_def: object
    input: str
    bottleneck: str
    preprocessing: Preprocessing
    width: int
    file_sha1: str

    @property
    def networks(self):
        """The networks it is made of: itself; see pair.NetworkPair."""
        return (self,)

    @property
    def exported(self):
        """The networks as they are in an exported graph."""
        return (self,)

    def fingerprint(self, precision):
        """Hex SHA-1 of everything a vector depends on but the image: file, pixels, arithmetic."""
        about = self.preprocessing
        facts = (
            self.file_sha1,
            self.input,
            self.bottleneck,
            (about.size, about.mean, about.std),
            precision,
            POLICY,
        )
        return hashlib.sha1(repr(facts).encode()).hexdigest()


def load_network(path, network, allow_unsafe_ops=False):
    """Reads a base network's file and checks that it is `network` (networks.Network).

    Raises:
        GraphError: not a frozen graph, one not known to be harmless, or not that network.
    """
    graph_def, content = load_graph(path, allow_unsafe_ops)
    file_sha1 = hashlib.sha1(content).hexdigest()
    del content  # as large as the graph
    nodes = nodes_by_name(graph_def)
    missing = sorted(network.required_nodes - set(nodes))
    if missing:
        raise GraphError(
            f"{path} is not {network.name}: it has no node {', '.join(missing)}; check "
            f"--architecture and --model_file"
        )
    if METADATA in nodes:
        raise GraphError(f"{path} is a retrained graph, not a base network; see --model_file")
    found = read_preprocessing(graph_def, network.input)
    size = found.size or (network.size, network.size)
    weights = network.first_weights and constant(nodes, network.first_weights[0])
    wrong_weights = weights is not None and weights.shape != network.first_weights[1]
    if network.first_weights and (wrong_weights or size != (network.size, network.size)):
        raise GraphError(f"{path} is another network than {network.name}; check --architecture")
    return BaseNetwork(
        name=network.name,
        graph_def=graph_def,
        input=network.input,
        bottleneck=network.bottleneck,
        preprocessing=Preprocessing(
            size,
            network.mean if found.mean is None else found.mean,
            network.std if found.std is None else found.std,
        ),
        width=_width(path, graph_def, nodes, network.bottleneck),
        file_sha1=file_sha1,
    )


def _width(path, graph_def, nodes, name):
    """The length of the bottleneck vector: from its Reshape, or by TensorFlow's shape inference."""
    node = nodes[name]
    shape = constant(nodes, node.input[1]) if node.op == "Reshape" else None
    if shape is None:
        found = output_tensor(import_shapes(graph_def, name), name).shape
        shape = np.array(found.as_list() if found.rank is not None else ())
    if shape.shape != (2,) or not shape[1] or shape[1] < 1:
        raise GraphError(f"{path}: {name} has shape {shape}, not one vector per image")
    return int(shape[1])
