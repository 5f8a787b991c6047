"""Chooses the precision of a graph, and makes a folded graph compute in bfloat16."""

import itertools
import os

from retraining.graphs.fold import CONVOLUTIONS
from retraining.graphs.messages import TYPE_NUMBERS, GraphDef, NodeDef
from retraining.graphs.nodes import add_node, node_name, nodes_by_name, set_constant, type_of
from retraining.graphs.tensors import array_type, to_array

PRECISIONS = ("auto", "float32", "bfloat16")

LOWERED_BEHIND_THEM = ("BiasAdd", "Relu", "Relu6", "Add", "AddV2")
LOWERED_BEFORE_THEM = ("ConcatV2", "MaxPool", "AvgPool")  # lowered only if a lowered node follows


def lower(graph_def: GraphDef) -> None:
    """Makes the convolutional part of a folded graph compute in bfloat16, in place.

    Weights become bfloat16 constants. Casts are added where values enter and leave that part. The
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


def native_precision() -> str:
    """Returns `bfloat16` if the processor multiplies it natively, otherwise `float32`.

    It looks for the flags that Linux reports for Intel's AMX and AVX-512 and AMD's Zen 4. On other
    systems, float32 is the safe answer.
    """
    flags = processor().get("flags", "").split()
    native = {"amx_bf16", "avx512_bf16"} & set(flags) and not onednn_is_capped()
    return "bfloat16" if native else "float32"


def processor() -> dict[str, str]:
    """Returns what Linux reports of the first core, such as `model name`; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = (line.split(":", 1) for line in itertools.takewhile(str.strip, file))
            return {line[0].strip(): line[-1].strip() for line in lines}
    except OSError:
        return {}


def onednn_is_capped() -> bool:
    """Returns whether ONEDNN_MAX_CPU_ISA keeps oneDNN from instructions for bfloat16.

    oneDNN then cannot compute in it at all; its documentation lists the values ("CPU Dispatcher
    Control").
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    return not any(word in cap for word in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10"))
