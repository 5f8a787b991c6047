"""Combines two base networks: concatenates their vectors, and exports both in one graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.description import SECOND_PREFIX
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import IMAGE_BYTES
from retraining.metrics.classification import choose_rows
from retraining.networks.network import BaseNetwork

JOINT = "+"  # joins the names of both networks
SHARED = (IMAGE_BYTES, "DecodeJpeg")  # nodes of the front end that both networks use
MOST_MEASURED = 4000  # vectors that determine a network's scale


@dataclass(frozen=True)
class NetworkPair:
    """Two BaseNetworks. The pair's vector is the first network's followed by the second's."""

    first: BaseNetwork
    second: BaseNetwork

    @property
    def networks(self) -> tuple[BaseNetwork, ...]:
        """Returns both networks in the order of their vectors."""
        return self.first, self.second

    @property
    def name(self) -> str:
        """Returns the names of both networks, as a user gives them to select this pair."""
        return JOINT.join(network.name for network in self.networks)

    @property
    def width(self) -> int:
        """Returns the length of a vector."""
        return sum(network.width for network in self.networks)

    @property
    def exported(self) -> tuple[BaseNetwork, ...]:
        """Returns both networks as in an exported graph: the second's nodes have SECOND_PREFIX."""
        return self.first, prefixed(self.second)


def prefixed(network: BaseNetwork) -> BaseNetwork:
    """Returns the BaseNetwork with SECOND_PREFIX before its nodes' names, except SHARED."""
    return replace(
        network,
        graph_def=prefixed_graph(network.graph_def),
        input=SECOND_PREFIX + network.input,
        bottleneck=SECOND_PREFIX + network.bottleneck,
    )


def prefixed_graph(graph_def: GraphDef) -> GraphDef:
    """Copies a GraphDef, with SECOND_PREFIX before the names of all nodes except SHARED."""
    renamed = type(graph_def)()
    renamed.CopyFrom(graph_def)
    for node in renamed.node:
        node.name = _prefixed_name(node.name)
        for number, name in enumerate(node.input):
            mark = "^" if name.startswith("^") else ""
            node.input[number] = mark + _prefixed_name(name.removeprefix("^"))
    return renamed


def _prefixed_name(reference: str) -> str:
    return reference if reference.split(":")[0] in SHARED else SECOND_PREFIX + reference


def add_second(graph_def: GraphDef, second: GraphDef) -> None:
    """Appends a prefixed GraphDef to another, in place, which already has the SHARED nodes.

    The graph takes the older version of both, which still has ops that newer versions lack.
    """
    names = {node.name for node in graph_def.node}
    graph_def.node.extend(node for node in second.node if node.name not in names)
    versions, others = graph_def.versions, second.versions
    versions.producer = min(versions.producer, others.producer)
    versions.min_consumer = max(versions.min_consumer, others.min_consumer)


def scale_factors(
    vectors: NDArray[np.float32], networks: Sequence[BaseNetwork]
) -> NDArray[np.float32]:
    """Returns 1 / standard deviation of each network's values, repeated to float32 [width].

    Scaling by these factors gives both networks the same weight, whatever the range of their
    values. A separate factor for each feature does not improve accuracy (benchmarks/pair.py).

    Args:
        vectors: float32 [n, width], the unscaled vectors of the training photos.
    """
    rows = vectors[choose_rows(len(vectors), MOST_MEASURED)]
    ends = np.cumsum([network.width for network in networks])
    parts = np.split(rows, ends[:-1], axis=1)
    deviations = [float(part.std(dtype=np.float64)) or 1.0 if part.size else 1.0 for part in parts]
    factors = [np.full(part.shape[1], 1 / d) for part, d in zip(parts, deviations, strict=True)]
    return np.concatenate(factors).astype(np.float32)


class HasVectors(Protocol):
    """Holds writable vectors float32 [n, width], as vectors.Labelled does."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...


def scale_alike(
    labelled: Mapping[str, HasVectors], training: str, network: BaseNetwork | NetworkPair
) -> NDArray[np.float32] | None:
    """Multiplies the vectors of two networks by `scale_factors`, in place.

    Returns the factors, float32 [width]; None for one network, whose vectors stay unchanged.

    Args:
        labelled: {split: vectors.Labelled}.
        training: the split that determines the factors.
    """
    if len(network.networks) == 1:
        return None
    factors = scale_factors(labelled[training].vectors, network.networks)
    for part in labelled.values():
        np.multiply(part.vectors, factors, out=part.vectors)
    return factors


class HasLayers(Protocol):
    """A dataclass of weights and biases, as head.Head is."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def weights(self) -> NDArray[np.float32]: ...

    @property
    def hidden(self) -> Any:
        """Returns (weights, bias) of each layer but the last."""

    @property
    def layers(self) -> Any: ...


AnyHead = TypeVar("AnyHead", bound=HasLayers)


def fold_scale(head: AnyHead, factors: NDArray[np.float32]) -> AnyHead:
    """Returns a head whose logits for `vectors` are those of `head` for `vectors * factors`."""
    (weights, bias), *_ = head.layers
    scaled = weights * factors[:, None]
    if head.hidden:
        return replace(head, hidden=((scaled, bias), *head.hidden[1:]))
    return replace(head, weights=scaled)
