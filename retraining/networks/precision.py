"""Chooses the precision of a network's arithmetic."""

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import nodes_by_name
from retraining.graphs.precision import native_precision

# {network: its bottleneck} where the cosine between the vectors in bfloat16 and in float32 was at
# least 0.999 for every photo measured.
BEARS_BFLOAT16 = {"inception_v3": "pool_3/_reshape"}


def resolve_precision(precision: str, graph_def: GraphDef, prefix: str = "") -> str:
    """Turns `auto` into `float32` or `bfloat16`; returns other precisions unchanged.

    `auto` means bfloat16 if the processor has it and the graph's network tolerates it. `prefix`
    precedes the names of the network's nodes if it is the second network in a graph.
    """
    if precision != "auto":
        return precision
    nodes = nodes_by_name(graph_def)
    bears_it = any(prefix + bottleneck in nodes for bottleneck in BEARS_BFLOAT16.values())
    return native_precision() if bears_it else "float32"
