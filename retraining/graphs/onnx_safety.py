"""Checks an ONNX model before it runs: a model is a program.

ONNX has loops, which may never end, subgraphs, functions, and ops of other domains, which a plugin
brings. It can keep weights in other files, wherever these lie. Only ops pass that map values to
values. The checks do not cover sizes that are computed from the image, or by several ops, nor time.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from retraining.graphs.messages import message_classes
from retraining.graphs.nodes import GraphError
from retraining.graphs.safety import MAX_ELEMENTS, MAX_NODES, first_named

# The fields of onnx.proto that are read here.
FIELDS_TEXT = """
message ModelProto {
    int64 ir_version = 1;
    GraphProto graph = 7;
    repeated Entry metadata_props = 14;
    repeated FunctionProto functions = 25;
}
message GraphProto {
    repeated NodeProto node = 1;
    repeated TensorProto initializer = 5;
    repeated SparseTensorProto sparse_initializer = 15;
}
message NodeProto {
    repeated string input = 1;
    repeated string output = 2;
    string op_type = 4;
    repeated AttributeProto attribute = 5;
    string domain = 7;
}
message AttributeProto {
    string name = 1;
    TensorProto t = 5;
    GraphProto g = 6;
    repeated TensorProto tensors = 10;
    repeated GraphProto graphs = 11;
    SparseTensorProto sparse_tensor = 22;
    repeated SparseTensorProto sparse_tensors = 23;
}
message TensorProto {
    repeated int64 dims = 1;
    int32 data_type = 2;
    repeated float float_data = 4;
    repeated int64 int64_data = 7;
    bytes raw_data = 9;
    repeated Entry external_data = 13;
    int32 data_location = 14;
    string name = 8;
}
message SparseTensorProto { TensorProto values = 1; }
message FunctionProto { string name = 1; }
message Entry {
    string key = 1;
    string value = 2;
}
"""
ModelProto = message_classes("onnx", FIELDS_TEXT)("ModelProto")
FLOAT, INT64 = 1, 7  # values of TensorProto.DataType

# Ops of the standard domain that map values to values. Left out are loops and branches (Loop, Scan,
# If, SequenceMap), sequences and optional values, strings, random numbers, decoders of files,
# sequence networks, and losses.
ALLOWED_TEXT = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip
Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod
Mul Neg Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round ScatterElements ScatterND Selu
Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where
Xor
"""
ALLOWED = frozenset(ALLOWED_TEXT.split())
STANDARD = ("", "ai.onnx")  # names of the standard domain
# The inputs that set the size of the output; ONNX Runtime computes some outputs on loading a model.
SIZE_INPUTS = {
    "ConstantOfShape": (0,),
    **dict.fromkeys(("Expand", "Tile", "OneHot", "Upsample", "Pad"), (1,)),
    "Range": (1,),
    "Resize": (2, 3),
}
MOST_SIZES = 64  # numbers in such an input
BATCH_SCALED = ("DynamicQuantizeLinear",)  # ops whose scale depends on the whole batch


def parse(content: bytes) -> Any:
    """Returns the ModelProto in a file.

    Raises:
        GraphError: it holds none.
    """
    try:
        model: Any = ModelProto.FromString(content)
    except DecodeError as error:
        raise GraphError("it is damaged or cut short") from error
    if not model.graph.node:
        raise GraphError("it is damaged, or no ONNX model: it has no nodes")
    return model


def describe_unsafe(model: Any) -> str:
    """Names the ops and functions that may do more than compute; empty if there are none."""
    ops = {_shown(node) for node in model.graph.node if not _is_safe(node)}
    names = sorted(ops) + [f"the function {f.name[:80]!a}" for f in model.functions]
    return first_named(names)


def _is_safe(node: Any) -> bool:
    subgraphs = any(a.HasField("g") or a.graphs for a in node.attribute)
    return node.domain in STANDARD and node.op_type in ALLOWED and not subgraphs


def _shown(node: Any) -> str:
    return ascii(f"{node.domain}.{node.op_type}".removeprefix(".")[:80])


def check(model: Any) -> None:
    """Checks that a model is whole, and its tensors no larger than a classifier's.

    Raises:
        GraphError: a check fails.
    """
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise GraphError(f"it has {len(graph.node)} nodes, more than {MAX_NODES}")
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    sparse = any(each.HasField("sparse_tensor") or each.sparse_tensors for each in attributes)
    if sparse or graph.sparse_initializer:
        raise GraphError("it has sparse tensors, which no classifier needs")
    for tensor in _tensors(graph):
        if tensor.external_data or tensor.data_location:
            raise GraphError("it keeps weights in other files; save it as one file")
        _check_size(tensor.dims)
    sizes = _constants(graph)
    for node in graph.node:
        for number in SIZE_INPUTS.get(node.op_type, ()):
            if number < len(node.input) and node.input[number] in sizes:
                _check_size(sizes[node.input[number]])


def _check_size(sizes: Any) -> None:
    elements = math.prod(max(1.0, abs(float(size))) for size in sizes)
    if not elements <= MAX_ELEMENTS:
        raise GraphError(f"it has a tensor of {elements:.3g} elements, more than {MAX_ELEMENTS}")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _constants(graph: Any) -> Mapping[str, NDArray[Any]]:
    """Returns {name: numbers} of the constants of a few numbers, which may be sizes."""
    named = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            named += [(node.output[0], a.t) for a in node.attribute if a.HasField("t")]
    return {
        name: _numbers(tensor)
        for name, tensor in named
        if tensor.data_type in (FLOAT, INT64) and math.prod(tensor.dims) <= MOST_SIZES
    }


def _numbers(tensor: Any) -> NDArray[Any]:
    """Returns the numbers in a TensorProto of FLOAT or INT64."""
    if not tensor.raw_data:
        return np.array(tensor.float_data if tensor.data_type == FLOAT else tensor.int64_data)
    dtype = np.dtype("<f4" if tensor.data_type == FLOAT else "<i8")
    return np.frombuffer(tensor.raw_data, dtype, len(tensor.raw_data) // dtype.itemsize)


def depends_on_batch(model: Any) -> bool:
    """Returns whether the answer to an image depends on the others in its batch."""
    return any(node.op_type in BATCH_SCALED for node in model.graph.node)


def entries(model: Any) -> dict[str, str]:
    """Returns the properties {key: value} of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}
