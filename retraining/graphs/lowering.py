"""Makes a folded graph compute in bfloat16."""

from collections.abc import Iterable

from retraining.graphs.fold import CONVOLUTIONS
from retraining.graphs.messages import TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.nodes import add_node, node_name, nodes_by_name, set_constant, type_of
from retraining.graphs.tensors import array_type, to_array

LOWERED_BEHIND_THEM = ("BiasAdd", "Relu", "Relu6", "Add", "AddV2")
LOWERED_BEFORE_THEM = ("ConcatV2", "MaxPool", "AvgPool")  # lowered only if a lowered node follows


def lower(graph_def: GraphDef) -> None:
    """Makes the convolutions and the lowered_products of a folded graph bfloat16, in place.

    Weights become bfloat16 constants. Casts are added where values enter and leave such a part. The
    nodes after the last convolution (the average over the image, the classifier) stay float32.
    TensorFlow's own optimizer pass for this takes three times as long to start.
    """
    nodes = nodes_by_name(graph_def)
    low: set[str] = set()
    for node in graph_def.node:  # frozen graphs list nodes after their inputs
        behind = any(node_name(name) in low for name in node.input)
        if node.op in CONVOLUTIONS or (node.op in LOWERED_BEHIND_THEM and behind):
            low.add(node.name)
    for node in reversed(graph_def.node):
        if node.name in low:
            sources = (nodes[node_name(name)] for name in node.input)
            low.update(source.name for source in sources if source.op in LOWERED_BEFORE_THEM)
    low |= lowered_products(graph_def.node)
    for node in list(graph_def.node):
        if node.name in low:
            node.attr["T"].type = TYPE_NUMBERS["bfloat16"]
        for number, name in enumerate(node.input):
            source = nodes[node_name(name)]
            if source.op == "Const" and node.name in low:
                _lower_constant(source)
            elif source.op != "Const" and (source.name in low) != (node.name in low):
                to = "bfloat16" if node.name in low else "float32"
                node.input[number] = _cast(graph_def, nodes, name, to)


def lowered_products(nodes: Iterable[NodeDef]) -> set[str]:
    """Returns the names of the products that a layer norm follows, and of the biases behind them.

    These are a transformer's. The sums between its blocks stay float32, as does a classifier, which
    no norm follows.
    """
    nodes = list(nodes)
    before_norms: set[str] = set()
    for node in reversed(nodes):
        if node.op == "Rsqrt" or node.name in before_norms:
            before_norms.update(map(node_name, node.input))
    low = {node.name for node in nodes if node.op == "MatMul" and node.name in before_norms}
    behind = (n.name for n in nodes if n.op == "BiasAdd" and node_name(n.input[0]) in low)
    return low.union(behind)


def _lower_constant(node: NodeDef) -> None:
    """Turns a float32 Const into bfloat16; keeps others, such as the axis of a concatenation."""
    if type_of(node) == "float32":
        value = to_array(node.attr["value"].tensor)
        set_constant(node, value.astype(array_type("bfloat16")))


def _cast(graph_def: GraphDef, nodes: dict[str, NodeDef], name: str, dtype: str) -> str:
    """Returns the name of the node that casts `name` to `dtype`; adds it on first use."""
    cast = f"{node_name(name)}/{dtype}"
    if cast not in nodes:
        other = "float32" if dtype == "bfloat16" else "bfloat16"
        add_node(graph_def, cast, "Cast", [name], SrcT=other, DstT=dtype)
        nodes[cast] = graph_def.node[-1]
    return cast
