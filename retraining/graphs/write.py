"""Writes a GraphDef as bytes."""


def graph_bytes(graph_def):
    """The file's content; the same graph always gives the same bytes."""
    return graph_def.SerializeToString(deterministic=True)
