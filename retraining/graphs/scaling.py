"""Adds pixel arithmetic after a graph's `input`: BGR order, a mean and a scale per channel.

Frozen models of others get it as nodes, so that they take pixels 0..255. Arithmetic outside the
graph is that of `preprocessing.Preprocessing`.
"""

from dataclasses import dataclass

import numpy as np

from retraining.graphs.front_end import look_after
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node, node_name, nodes_by_name, set_inputs

INPUT = "input"


@dataclass(frozen=True)
class Scaling:
    """`(pixel - mean) / std` of pixels 0..255, per channel or for all; `flip` means BGR order."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flip: bool = False


def add_scaling(graph_def: GraphDef, scaling: Scaling) -> None:
    """Inserts the arithmetic of a Scaling after `input`, in place."""
    if scaling == Scaling():
        return
    readers = list(graph_def.node)
    x = INPUT
    if scaling.flip:
        axis = add_constant(graph_def, f"{INPUT}/channels", np.array([3], np.int32))
        reverse = {"T": "float32", "Tidx": "int32"}
        x = add_node(graph_def, f"{INPUT}/bgr", "ReverseV2", [x, axis], **reverse)
    if any(scaling.mean):
        mean = add_constant(graph_def, f"{INPUT}/mean", np.array(scaling.mean, np.float32))
        x = add_node(graph_def, f"{INPUT}/centred", "Sub", [x, mean], T="float32")
    if any(value != 1 for value in scaling.std):
        std = add_constant(graph_def, f"{INPUT}/std", np.array(scaling.std, np.float32))
        x = add_node(graph_def, f"{INPUT}/scaled", "RealDiv", [x, std], T="float32")
    for node in readers:
        set_inputs(node, [x if name in (INPUT, f"{INPUT}:0") else name for name in node.input])
    sort_nodes(graph_def)


def sort_nodes(graph_def: GraphDef) -> None:
    """Sorts the nodes, in place, so that each follows its inputs."""
    nodes = nodes_by_name(graph_def)
    ordered: dict[str, int] = {}
    waiting = list(reversed(graph_def.node))
    while waiting:
        node = waiting.pop()
        missing = [n for n in map(node_name, node.input) if n not in ordered]
        if missing:
            waiting += [node, *(nodes[name] for name in missing)]
        else:
            ordered.setdefault(node.name, len(ordered))
    graph_def.node.sort(key=lambda node: ordered[node.name])


def scales_pixels(graph_def: GraphDef) -> bool:
    """Returns whether the graph begins by scaling pixels, as models for pixels 0..255 do."""
    return look_after(nodes_by_name(graph_def), INPUT).takes_raw
