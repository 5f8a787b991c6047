"""What every converter starts from: a retrained graph from float pixels to probabilities."""

from dataclasses import dataclass

from retraining.graphs.description import read_metadata
from retraining.graphs.fold import fold
from retraining.graphs.nodes import node_name, nodes_by_name
from retraining.graphs.surgery import batched_part, cut, widen_batch


@dataclass(frozen=True)
class Input:
    """One float input of a graph: float32 [n, *size, 3] of `(pixel - mean) / std`.

    `node` is its name in the graph, `feed` the one that it has in the other formats.
    """

    node: str
    feed: str
    size: tuple[int, int]
    mean: float
    std: float


@dataclass(frozen=True)
class Source:
    """A folded GraphDef from `inputs` to the node `output`, float32 [n, labels], for any n."""

    graph_def: object
    inputs: tuple[Input, ...]
    output: str
    labels: tuple[str, ...]
    network: str

    @classmethod
    def of(cls, graph_def):
        """What a retrained graph, which describes itself, holds for converters."""
        about = read_metadata(graph_def)
        inputs = tuple(_inputs(about))
        part = _float_part(graph_def, inputs, about["output"])
        return cls(part, inputs, about["output"], tuple(about["labels"]), about["network"])


def _inputs(about):
    """The Inputs that a graph's description tells: that of its network, and of a second one."""
    for part, feed in ((about, "images"), (about.get("second"), "images_2")):
        if part:
            yield Input(part["input"], feed, tuple(part["size"]), part["mean"], part["std"])


def _float_part(graph_def, inputs, output):
    """The folded part between the inputs, placeholders [n, *size, 3], and the output."""
    part = batched_part(graph_def, inputs[0].node, output)
    for each in inputs[1:]:
        part = cut(part, each.node, output)
    widen_batch(part)
    for node in part.node:
        if node.op == "PlaceholderWithDefault":  # as for bottlenecks; nobody feeds these any more
            _make_identity(node)
    fold(part, output)
    nodes = nodes_by_name(part)
    for each in inputs:
        shape = nodes[node_name(each.node)].attr["shape"].shape
        del shape.dim[:]
        for size in (-1, *each.size, 3):
            shape.dim.add(size=size)
    return part


def _make_identity(node):
    dtype = node.attr["dtype"].type
    node.op = "Identity"
    node.attr.clear()
    node.attr["T"].type = dtype
