"""Serializes a GraphDef."""

from retraining.graphs.messages import GraphDef


def graph_bytes(graph_def: GraphDef) -> bytes:
    """Returns the content of a .pb file. The same graph always gives the same bytes."""
    content: bytes = graph_def.SerializeToString(deterministic=True)
    return content
