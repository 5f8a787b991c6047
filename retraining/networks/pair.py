"""Two base networks as one: their vectors side by side, both in one exported graph."""

from dataclasses import dataclass, replace

import numpy as np

from retraining.graphs.nodes import IMAGE_BYTES
from retraining.metrics.classification import choose_rows
from retraining.networks.network import BaseNetwork

JOINT = "+"  # between the names of both
PREFIX = "second/"  # before the names of the second network's nodes in an exported graph
SHARED = (IMAGE_BYTES, "DecodeJpeg")  # nodes of a front end that both networks use
MOST_MEASURED = 4000  # vectors from which a network's scale is found


@dataclass(frozen=True)
class NetworkPair:
    """Two graph.BaseNetworks; a vector of the pair is the first's, then the second's."""

    first: BaseNetwork
    second: BaseNetwork

    @property
    def networks(self):
        """Both, in the order of their vectors."""
        return self.first, self.second

    @property
    def name(self):
        """As --architecture names it."""
        return JOINT.join(network.name for network in self.networks)

    @property
    def width(self):
        """Numbers of a vector."""
        return sum(network.width for network in self.networks)

    @property
    def exported(self):
        """Both as they are in an exported graph: the second's nodes have PREFIX."""
        return self.first, prefixed(self.second)


def prefixed(network):
    """The BaseNetwork with PREFIX before all its nodes' names but those of SHARED."""
    return replace(
        network,
        graph_def=prefixed_graph(network.graph_def),
        input=PREFIX + network.input,
        bottleneck=PREFIX + network.bottleneck,
    )


def prefixed_graph(graph_def):
    """A copy of a GraphDef with PREFIX before all names but those of SHARED."""
    renamed = type(graph_def)()
    renamed.CopyFrom(graph_def)
    for node in renamed.node:
        node.name = _prefixed_name(node.name)
        for number, name in enumerate(node.input):
            mark = "^" if name.startswith("^") else ""
            node.input[number] = mark + _prefixed_name(name.removeprefix("^"))
    return renamed


def _prefixed_name(reference):
    return reference if reference.split(":")[0] in SHARED else PREFIX + reference


def add_second(graph_def, second):
    """Appends a prefixed GraphDef to another, in place; the nodes of SHARED are the other's.

    The version becomes the older one: ops that today's version lacks are known to that.
    """
    names = {node.name for node in graph_def.node}
    graph_def.node.extend(node for node in second.node if node.name not in names)
    versions, others = graph_def.versions, second.versions
    versions.producer = min(versions.producer, others.producer)
    versions.min_consumer = max(versions.min_consumer, others.min_consumer)


# -- the scale of both vectors ---------------------------------------------------------------


def scale_factors(vectors, networks):
    """float32 [width]: 1 / standard deviation of each network's values, over all its numbers.

    So both count alike, whatever the size of their numbers. A factor for each number of the vector
    gives no better accuracy (benchmarks/pair.py).

    Args:
        vectors: float32 [n, width] of the training photos, as the networks give them.
    """
    rows = vectors[choose_rows(len(vectors), MOST_MEASURED)]
    ends = np.cumsum([network.width for network in networks])
    parts = np.split(rows, ends[:-1], axis=1)
    deviations = [float(part.std(dtype=np.float64)) or 1.0 if part.size else 1.0 for part in parts]
    factors = [np.full(part.shape[1], 1 / d) for part, d in zip(parts, deviations, strict=True)]
    return np.concatenate(factors).astype(np.float32)


def scale_alike(labelled, training, network):
    """Multiplies, in place, vectors of two networks by `scale_factors`, so that both count alike.

    Returns the factors, float32 [width]; None for one network, whose vectors stay as they are.

    Args:
        labelled: {split: train.Labelled}; `training` is the split that the factors are of.
    """
    if len(network.networks) == 1:
        return None
    factors = scale_factors(labelled[training].vectors, network.networks)
    for part in labelled.values():
        np.multiply(part.vectors, factors, out=part.vectors)
    return factors


def fold_scale(head, factors):
    """The train.Head that answers for `vectors` as `head` does for `vectors * factors`."""
    (weights, bias), *_ = head.layers
    scaled = weights * factors[:, None]
    if head.hidden:
        return replace(head, hidden=((scaled, bias), *head.hidden[1:]))
    return replace(head, weights=scaled)
