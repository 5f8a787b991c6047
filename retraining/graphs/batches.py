"""Tells whether a graph computes each image of a batch on its own.

A node is believed to do so by its op and, where that counts, by its constants. All others count as
mixing images: that costs time, never an answer.
"""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.fold import BATCH_NORMS
from retraining.graphs.front_end import ASKING, Nodes
from retraining.graphs.messages import NodeDef
from retraining.graphs.nodes import attribute, constant, node_name

PADDINGS = ("Pad", "PadV2", "MirrorPad")
PRODUCTS = ("BatchMatMul", "BatchMatMulV2")
RANK_STEPS = 8  # nodes from a product back to one that tells the number of axes; attention has 4
# Ops that compute each value alone, each pixel with its neighbours, or along the last axis.
ALONE_TEXT = """
Identity StopGradient PreventGradient Snapshot CheckNumerics EnsureShape Cast
Placeholder PlaceholderV2 PlaceholderWithDefault NoOp Assert
Abs Add AddN AddV2 BiasAdd BiasAddV1 ClipByValue Div Elu Erf Erfc Exp Floor Inv LeakyRelu Log Log1p
Maximum Minimum Mul Neg Pow RealDiv Reciprocal Relu Relu6 Rint Round Rsqrt Select SelectV2 Selu
Sigmoid Sign Softplus Softsign Sqrt Square SquaredDifference Sub Tanh
LogSoftmax Softmax
AvgPool Conv2D DepthwiseConv2dNative LRN MaxPool BatchNormWithGlobalNormalization
DepthToSpace SpaceToDepth ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor
FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
"""
ALONE = frozenset(ALONE_TEXT.split())
# The number of the input that decides: most hold axes, which must not be that of the batch.
DECIDING = {
    **dict.fromkeys(("Mean", "Sum", "Max", "Min", "Prod", "ExpandDims", "ReverseV2"), 1),
    **dict.fromkeys(("Reshape", "Transpose", *PADDINGS), 1),
    **dict.fromkeys(("Concat", "Split"), 0),
    **dict.fromkeys(("ConcatV2", "SplitV"), -1),
    "StridedSlice": 3,
}


def is_quantised(ops: Iterable[str]) -> bool:
    """Returns whether a graph computes in integers, as those of the classic `quantize_graph` do."""
    return any(op.startswith("Quantize") for op in ops)


def mixes_images(nodes: Nodes, name: str, one_row: bool) -> bool:
    """Returns whether an image's answer may depend on the other images in its batch.

    `nodes` are those that the output needs, `name` is the input. `one_row` tells that the graph may
    reshape to [1, n], which `surgery.widen_batch` turns into [-1, n].
    """
    users: dict[str, list[NodeDef]] = {}
    for node in nodes.values():
        for reference in node.input:
            users.setdefault(node_name(reference), []).append(node)
    reached, queue = {name}, [name]
    while queue:
        for node in users.get(queue.pop(), ()):
            if node.name not in reached and node.op not in ASKING:
                reached.add(node.name)
                queue.append(node.name)
    others = (nodes[each] for each in reached - {name})
    return not all(
        _is_alone(nodes, node, reached, one_row) or _joins_mirror_images(nodes, node)
        for node in others
    )


def _is_alone(nodes: Nodes, node: NodeDef, reached: Collection[str], one_row: bool) -> bool:
    """Returns whether a node computes each image alone; `reached` depend on images."""
    inputs = [name for name in node.input if name[0] != "^"]
    if node.op in ALONE:
        return True
    if node.op in BATCH_NORMS:
        return "is_training" in node.attr and not attribute(node, "is_training").b
    if node.op == "MatMul":
        return not attribute(node, "transpose_a").b and node_name(inputs[1]) not in reached
    if node.op in PRODUCTS:
        return _keeps_to_images(nodes, inputs)
    if node.op == "Squeeze":
        return _spare_the_batch(np.array(attribute(node, "squeeze_dims").list.i, np.int64))
    if node.op not in DECIDING:
        return False
    deciding = nodes[node_name(inputs[DECIDING[node.op]])]
    joined = node.op == "Transpose" and deciding.op == "ConcatV2"  # as in tf.tensordot
    value = constant(nodes, deciding.input[0] if joined else deciding.name)
    if node.op == "Reshape":
        return _begins_with_batch(nodes, node, value, one_row)
    if value is None or not value.size:
        return False
    if node.op == "StridedSlice":
        return _keeps_batch(node, value)
    if node.op == "Transpose":
        return bool(value.ravel()[0] == 0)
    if node.op in PADDINGS:
        return not value.reshape(-1, 2)[0].any()
    return _spare_the_batch(value)


def _keeps_to_images(nodes: Nodes, inputs: list[str]) -> bool:
    """Returns whether a product multiplies only matrices of one image, both `inputs` being batches.

    It does if the inputs have the same number of axes, three or more: the first is the batch in
    both. Otherwise the batch of one input meets another axis of the other.
    """
    left, right = (_rank(nodes, name) for name in inputs)
    return left == right and left > 2


def _rank(nodes: Nodes, reference: str) -> int:
    """Returns the number of axes of a node's output; 0 if the few nodes before it do not tell."""
    for _ in range(RANK_STEPS):
        node = nodes[node_name(reference)]
        if node.op in ("Reshape", "Transpose"):
            return len(_value(nodes, node.input[1]))
        axes = any(attribute(node, f"{k}_axis_mask").i for k in ("new", "shrink"))
        if axes or node.op not in (*PRODUCTS, "Softmax", "StridedSlice"):
            break
        reference = node.input[0]
    return 0


def _joins_mirror_images(nodes: Nodes, node: NodeDef) -> bool:
    """Returns whether a node is one of mirror averaging, which gives a row for each photo.

    That puts the mirror images behind a batch, and takes the mean of both halves of the vectors. A
    graph with only one of the two gives more or fewer rows than it has photos, which is an error.
    """
    if node.op == "Reshape":
        return _value(nodes, node.input[1])[:2] == [2, -1]
    if node.op not in ("ConcatV2", "Mean") or _value(nodes, node.input[-1]) != [0]:
        return False
    if node.op == "Mean":
        halves = nodes[node_name(node.input[0])]
        return halves.op == "Reshape" and _joins_mirror_images(nodes, halves)
    mirrored = nodes[node_name(node.input[1])]
    return bool(mirrored.op == "ReverseV2" and [mirrored.input[0]] == node.input[:-2])


def _value(nodes: Nodes, reference: str) -> list[Any]:
    """Returns a constant as a flat list; [] for other nodes."""
    value = constant(nodes, reference)
    return [] if value is None else value.ravel().tolist()


def _spare_the_batch(axes: NDArray[Any]) -> bool:
    """Returns whether axes are any but the first: counted from the end, only the last is sure."""
    return axes.size > 0 and bool(((axes > 0) | (axes == -1)).all())


def _keeps_batch(node: NodeDef, strides: NDArray[Any]) -> bool:
    """Returns whether a StridedSlice begins with `:` or `...`."""
    masks = [attribute(node, f"{k}_mask").i & 1 for k in ("begin", "end", "ellipsis", "new_axis")]
    begin, end, ellipsis, new = masks
    whole = ellipsis or (begin and end and strides[0] == 1)
    return bool(whole and not new and not attribute(node, "shrink_axis_mask").i & 1)


def _begins_with_batch(
    nodes: Nodes, node: NodeDef, sizes: NDArray[Any] | None, one_row: bool
) -> bool:
    """Returns whether a Reshape is to [n, ...], where n is -1 or taken from a shape."""
    if sizes is not None:
        return sizes.size > 1 and bool(sizes[0] == -1 or (one_row and sizes[0] == 1))
    shape = nodes[node_name(node.input[1])]
    if shape.op == "Pack" and len(shape.input) < 2:
        return False
    while shape.op in ("Pack", "ConcatV2", "Prod"):  # the last two as in tf.tensordot
        first = constant(nodes, shape.input[0])
        if first is not None:
            return first.size == 1 and bool(first.item() == -1)
        shape = nodes[node_name(shape.input[0])]
    if shape.op not in ("StridedSlice", "GatherV2"):
        return False
    begin = constant(nodes, shape.input[1])
    whole = nodes[node_name(shape.input[0])].op == "Shape"
    return whole and begin is not None and begin.size > 0 and bool(begin.ravel()[0] == 0)
