"""Writes the part of a frozen graph that computes vectors as a LiteRT model, without TensorFlow.

The graph is folded first (see `fold`), so what is left of a convolutional network are a dozen kinds
of nodes; a transformer has a few more. Each becomes one operator of LiteRT that computes the same
in float32; a bias and a ReLU join the operator before them, and the nodes of a GELU become one. A
graph with any other node is refused: it stays with TensorFlow.

With every change of the numbers, raise twin.CONVERSION.

The file follows tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.fold import BATCH_NORMS, batch_norm_factors, fold
from retraining.graphs.litert import ConversionError
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import (
    attribute,
    constant,
    node_name,
    nodes_by_name,
    set_inputs,
    type_of,
    users_of,
)
from retraining.graphs.preprocessing import Size
from retraining.graphs.surgery import batched_part, in_order

Shape: TypeAlias = tuple[int, ...]
MOST_BYTES = (1 << 31) - (1 << 20)  # of a FlatBuffer, whose offsets are signed 32-bit numbers


def to_litert(graph_def: GraphDef, input_name: str, output_name: str, size: Size) -> bytes:
    """Returns a LiteRT model from an image, float32 [1, *size, 3], to a vector, float32 [1, n].

    Raises:
        ConversionError: a node has no counterpart.
        GraphError: the graph lacks one of the two nodes, or they are not connected.
        ModuleNotFoundError: the package `ai-edge-litert` is not installed.
    """
    part = batched_part(graph_def, input_name, output_name)
    fold(part, output_name)
    _join_gelus(part)
    writer = _Writer(nodes_by_name(part), {n: len(u) for n, u in users_of(part).items()})
    writer.define(input_name, (1, *size, 3))
    for node in in_order(writer.nodes, output_name):
        writer.add(node)
    return writer.finish(input_name, output_name)


@dataclass
class _Operator:
    """An operator that is about to be written; `options` are a table of the schema."""

    kind: int
    inputs: list[int]
    options: Any = None


@dataclass
class _Writer:
    """Collects tensors and operators; `tensors` has the number of the one that each node gives."""

    nodes: Mapping[str, NodeDef]
    users: Mapping[str, int]
    tensors: dict[str, int] = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    values: list[NDArray[Any] | None] = field(default_factory=list)
    makers: dict[int, _Operator] = field(default_factory=dict)  # by the tensor that each gives
    schema: ModuleType = field(default_factory=lambda: _schema())

    def define(self, name: str, shape: Shape) -> int:
        """Adds the tensor that a node gives; returns its number."""
        self.tensors[name] = self._tensor(shape, None)
        return self.tensors[name]

    def constant(self, value: NDArray[Any]) -> int:
        """Adds a constant, float32 or int32; returns its number."""
        return self._tensor(value.shape, np.ascontiguousarray(value))

    def _tensor(self, shape: Shape, value: NDArray[Any] | None) -> int:
        self.shapes.append(tuple(map(int, shape)))
        self.values.append(value)
        return len(self.shapes) - 1

    def emit(self, node: NodeDef, shape: Shape, operator: _Operator) -> None:
        """Adds an operator that computes a node."""
        self.makers[self.define(node.name, shape)] = operator

    def add(self, node: NodeDef) -> None:
        """Adds what computes a node; constants wait until they are read.

        Raises:
            ConversionError: it has no counterpart.
        """
        if node.op in ("Const", "Placeholder"):
            return
        convert = CONVERSIONS.get(node.op)
        if convert is None or any(":" in n or n.startswith("^") for n in node.input):
            raise ConversionError(f"LiteRT has no operator for {node.op} ({node.name})")
        if type_of(node, "T") not in ("float32", None):
            raise ConversionError(f"the node {node.name} is not of float32")
        try:
            convert(self, node)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ConversionError(f"the node {node.name} is malformed: {error!r}") from error

    def data(self, node: NodeDef, index: int = 0) -> int:
        """Returns the number of the tensor of floats that an input of a node names."""
        name = node_name(node.input[index])
        if name not in self.tensors:
            self.tensors[name] = self.constant(self.value(node, index, "float32"))
        return self.tensors[name]

    def value(self, node: NodeDef, index: int, kind: str | None = None) -> NDArray[Any]:
        """Returns the constant that an input of a node names, of a type or any integers.

        Raises:
            ConversionError: the input is no such constant.
        """
        value = constant(self.nodes, node.input[index])
        if value is None or (value.dtype != kind if kind else value.dtype.kind != "i"):
            raise ConversionError(f"input {index} of {node.name} is no constant that is known here")
        return value

    def sole(self, node: NodeDef) -> _Operator | None:
        """Returns the operator of a node's first input if nothing else reads what it gives."""
        name = node_name(node.input[0])
        number = self.tensors.get(name)
        alone = self.users.get(name) == 1 and number is not None
        return self.makers.get(number) if alone and number is not None else None

    def finish(self, input_name: str, output_name: str) -> bytes:
        """Returns the model's file."""
        if sum(v.nbytes for v in self.values if v is not None) > MOST_BYTES:
            raise ConversionError("the weights are more than a LiteRT model can hold")
        if output_name not in self.tensors:
            raise ConversionError(f"the node {output_name} is not computed")
        ends = [self.tensors[input_name]], [self.tensors[output_name]]
        return _pack(self, *ends)


def _schema() -> ModuleType:
    return importlib.import_module("ai_edge_litert.schema_py_generated")


def _pack(writer: _Writer, inputs: list[int], outputs: list[int]) -> bytes:
    import flatbuffers

    s = writer.schema
    model, graph = s.ModelT(), s.SubGraphT()
    model.version, model.subgraphs = 3, [graph]
    kinds = sorted({operator.kind for operator in writer.makers.values()})
    model.operatorCodes = [_code(s, kind) for kind in kinds]
    model.buffers = [s.BufferT()]  # the first is empty, for tensors that are computed
    graph.tensors, graph.operators = [], []
    for shape, value in zip(writer.shapes, writer.values, strict=True):
        tensor = s.TensorT()
        tensor.shape, tensor.type = np.array(shape, np.int32), s.TensorType.FLOAT32
        tensor.buffer = 0
        if value is not None:
            tensor.type = s.TensorType.FLOAT32 if value.dtype == np.float32 else s.TensorType.INT32
            tensor.buffer = len(model.buffers)
            model.buffers.append(s.BufferT())
            model.buffers[-1].data = value.reshape(-1).view(np.uint8)
        graph.tensors.append(tensor)
    for number, operator in writer.makers.items():
        made = s.OperatorT()
        made.opcodeIndex = kinds.index(operator.kind)
        made.inputs, made.outputs = operator.inputs, [number]
        if operator.options is not None:
            name = type(operator.options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(s.BuiltinOptions, name)
            made.builtinOptions = operator.options
        graph.operators.append(made)
    graph.inputs, graph.outputs = inputs, outputs
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(s: ModuleType, kind: int) -> Any:
    code = s.OperatorCodeT()
    # The older field holds the numbers up to 127 (schema.fbs).
    code.deprecatedBuiltinCode, code.builtinCode, code.version = min(kind, 127), kind, 1
    return code


def _options(writer: _Writer, table: str, **fields: Any) -> Any:
    options = getattr(writer.schema, f"{table}T")()
    for name, value in fields.items():
        assert hasattr(options, name), f"{table} has no {name}"
        setattr(options, name, value)
    return options


def _kind(writer: _Writer, name: str) -> int:
    return int(getattr(writer.schema.BuiltinOperator, name))


def _convolution(writer: _Writer, node: NodeDef) -> None:
    """Conv2D and DepthwiseConv2dNative, whose weights LiteRT keeps in another order."""
    weights = writer.value(node, 1, "float32")
    source = writer.data(node)
    depthwise = node.op != "Conv2D"
    if not depthwise and writer.shapes[source][3] != weights.shape[2]:
        raise ConversionError(f"{node.name} convolves groups of channels")
    rows, columns, depth, times = weights.shape
    window = _window(writer, node, source, (rows, columns))
    name = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    fields = dict(zip(("dilationHFactor", "dilationWFactor"), window.dilations, strict=True))
    if depthwise:
        fields["depthMultiplier"] = times
        weights = weights.reshape(1, rows, columns, depth * times)
    else:
        weights = weights.transpose(3, 0, 1, 2)
    channels = weights.shape[3] if depthwise else weights.shape[0]
    bias = writer.constant(np.zeros(channels, np.float32))
    writer.emit(
        node,
        (writer.shapes[source][0], *window.sides, channels),
        _Operator(
            _kind(writer, "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"),
            [source, writer.constant(weights), bias],
            _options(writer, name, **window.fields, **fields),
        ),
    )


@dataclass(frozen=True)
class _Window:
    """How a window moves over an image: the result's sides, and what the operator is told."""

    sides: tuple[int, int]
    dilations: tuple[int, int]
    fields: Mapping[str, Any]


def _window(writer: _Writer, node: NodeDef, source: int, window: tuple[int, int]) -> _Window:
    """Returns how the window of a convolution or pooling moves.

    Raises:
        ConversionError: channels come first, or the padding is explicit.
    """
    padding = bytes(attribute(node, "padding").s).decode(errors="replace")
    data_format = attribute(node, "data_format").s or b"NHWC"
    strides = list(attribute(node, "strides").list.i)
    dilations = list(attribute(node, "dilations").list.i) or [1] * 4
    usual = data_format == b"NHWC" and padding in ("SAME", "VALID") and len(dilations) == 4
    if not usual or [*strides[::3], *dilations[::3]] != [1] * 4 or len(strides) != 4:
        raise ConversionError(f"the window of {node.name} moves in a way that is not known here")
    sides = []
    for side, length, stride, dilation in zip(
        writer.shapes[source][1:3], window, strides[1:3], dilations[1:3], strict=True
    ):
        reach = 0 if padding == "SAME" else (length - 1) * dilation
        sides.append(-(-(side - reach) // stride))
    if min(sides) < 1:
        raise ConversionError(f"the window of {node.name} is larger than the image")
    fields = {
        "padding": getattr(writer.schema.Padding, padding),
        "strideH": strides[1],
        "strideW": strides[2],
    }
    return _Window((sides[0], sides[1]), (dilations[1], dilations[2]), fields)


def _pooling(writer: _Writer, node: NodeDef) -> None:
    source = writer.data(node)
    sizes = list(attribute(node, "ksize").list.i)
    if len(sizes) != 4 or sizes[::3] != [1, 1]:
        raise ConversionError(f"{node.name} pools over more than rows and columns")
    window = _window(writer, node, source, (sizes[1], sizes[2]))
    options = _options(
        writer, "Pool2DOptions", **window.fields, filterHeight=sizes[1], filterWidth=sizes[2]
    )
    kind = _kind(writer, "MAX_POOL_2D" if node.op == "MaxPool" else "AVERAGE_POOL_2D")
    count, *_, channels = writer.shapes[source]
    shape = (count, *window.sides, channels)
    writer.emit(node, shape, _Operator(kind, [source], options))


def _bias(writer: _Writer, node: NodeDef) -> None:
    """A bias joins the convolution before it, whose own is still zero."""
    before, bias = writer.sole(node), writer.value(node, 1, "float32")
    if (attribute(node, "data_format").s or b"NHWC") != b"NHWC":
        raise ConversionError(f"the channels of {node.name} are not the last axis")
    joins = before and len(before.inputs) == 3 and not before.options.fusedActivationFunction
    if before and joins and not writer.values[before.inputs[2]].any():  # type: ignore[union-attr]
        before.inputs[2] = writer.constant(bias)
        writer.tensors[node.name] = writer.tensors[node_name(node.input[0])]
    else:
        _binary(writer, node)


def _activation(writer: _Writer, node: NodeDef) -> None:
    """A ReLU joins the operator before it, if that can take one."""
    before = writer.sole(node)
    function = getattr(writer.schema.ActivationFunctionType, node.op.upper())
    if before and getattr(before.options, "fusedActivationFunction", None) == 0:
        before.options.fusedActivationFunction = function
        writer.tensors[node.name] = writer.tensors[node_name(node.input[0])]
    else:
        _unary(writer, node)


UNARY = {
    **{"Relu": "RELU", "Relu6": "RELU6", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "Rsqrt": "RSQRT"},
    **{"Sqrt": "SQRT", "Exp": "EXP", "Neg": "NEG", "Abs": "ABS", "Square": "SQUARE"},
}


def _unary(writer: _Writer, node: NodeDef) -> None:
    source = writer.data(node)
    writer.emit(node, writer.shapes[source], _Operator(_kind(writer, UNARY[node.op]), [source]))


BINARY = {
    **{"Add": "ADD", "AddV2": "ADD", "BiasAdd": "ADD", "Sub": "SUB", "Mul": "MUL"},
    **{"RealDiv": "DIV", "Maximum": "MAXIMUM", "Minimum": "MINIMUM"},
    "SquaredDifference": "SQUARED_DIFFERENCE",
}
ENDS = ("begin", "end")  # of a slice
OPTIONS = ("ADD", "SUB", "MUL", "DIV")  # have a table of options, AddOptions for one


def _binary(writer: _Writer, node: NodeDef) -> None:
    inputs = [writer.data(node, 0), writer.data(node, 1)]
    kind = BINARY[node.op]
    try:
        shape = np.broadcast_shapes(*(writer.shapes[number] for number in inputs))
    except ValueError as error:
        raise ConversionError(f"the shapes of {node.name} do not fit each other") from error
    options = _options(writer, f"{kind.capitalize()}Options") if kind in OPTIONS else None
    writer.emit(node, shape, _Operator(_kind(writer, kind), inputs, options))


def _batch_norm(writer: _Writer, node: NodeDef) -> None:
    """A batch norm that does not follow a convolution: a product and a sum."""
    factors = batch_norm_factors(node, lambda name: constant(writer.nodes, name))
    if factors is None:
        raise ConversionError(f"the statistics of {node.name} are no constants")
    source = writer.data(node)
    for kind, factor in zip(("MUL", "ADD"), factors, strict=True):
        inputs = [source, writer.constant(factor.astype(np.float32))]
        options = _options(writer, f"{kind.capitalize()}Options")
        writer.emit(node, writer.shapes[source], _Operator(_kind(writer, kind), inputs, options))
        source = writer.tensors[node.name]


def _concatenation(writer: _Writer, node: NodeDef) -> None:
    last = len(node.input) - 1
    inputs = [writer.data(node, index) for index in range(last)]
    axis = int(writer.value(node, last))
    shape = list(writer.shapes[inputs[0]])
    shape[axis] = sum(writer.shapes[number][axis] for number in inputs)
    options = _options(writer, "ConcatenationOptions", axis=axis)
    writer.emit(node, tuple(shape), _Operator(_kind(writer, "CONCATENATION"), inputs, options))


def _mean(writer: _Writer, node: NodeDef) -> None:
    source = writer.data(node)
    shape, axes = writer.shapes[source], writer.value(node, 1).astype(np.int32).reshape(-1)
    keep = bool(attribute(node, "keep_dims").b)
    gone = {int(axis) % len(shape) for axis in axes}
    kept = [1 if axis in gone else side for axis, side in enumerate(shape)]
    rest = [side for axis, side in enumerate(kept) if keep or axis not in gone]
    options = _options(writer, "ReducerOptions", keepDims=keep)
    operator = _Operator(_kind(writer, "MEAN"), [source, writer.constant(axes)], options)
    writer.emit(node, tuple(rest), operator)


def _reshape(writer: _Writer, node: NodeDef) -> None:
    """Reshape, Squeeze and ExpandDims, for one image."""
    source = writer.data(node)
    old = writer.shapes[source]
    if node.op == "Reshape":
        shape = [int(side) for side in writer.value(node, 1).reshape(-1)]
        if -1 in shape:
            rest = -int(np.prod(shape))
            shape[shape.index(-1)] = int(np.prod(old)) // max(rest, 1)
    elif node.op == "ExpandDims":
        axis = int(writer.value(node, 1))
        shape = list(np.expand_dims(np.empty(old), axis).shape)
    else:
        axes = list(attribute(node, "squeeze_dims").list.i)
        gone = {axis % len(old) for axis in axes} or {a for a in range(1, len(old)) if old[a] == 1}
        shape = [side for axis, side in enumerate(old) if axis not in gone]
    if np.prod(shape) != np.prod(old):
        raise ConversionError(f"{node.name} does not keep the number of values")
    target = np.array(shape, np.int32)
    options = _options(writer, "ReshapeOptions", newShape=target)
    operator = _Operator(_kind(writer, "RESHAPE"), [source, writer.constant(target)], options)
    writer.emit(node, tuple(shape), operator)


def _padding(writer: _Writer, node: NodeDef) -> None:
    source, sides = writer.data(node), writer.value(node, 1).astype(np.int32)
    shape = np.array(writer.shapes[source]) + sides.sum(axis=1)
    operator = _Operator(_kind(writer, "PAD"), [source, writer.constant(sides)])
    writer.emit(node, tuple(shape), operator)


def _reversal(writer: _Writer, node: NodeDef) -> None:
    source, axes = writer.data(node), writer.value(node, 1).astype(np.int32).reshape(-1)
    operator = _Operator(_kind(writer, "REVERSE_V2"), [source, writer.constant(axes)])
    writer.emit(node, writer.shapes[source], operator)


def _join_gelus(graph_def: GraphDef) -> None:
    """Turns each (x / 2) * (erf(x * sqrt(1/2)) + 1) into one node, of the op GELU, in place."""
    nodes = nodes_by_name(graph_def)

    def operand(node: NodeDef | None, op: str, number: float) -> NodeDef | None:
        """Returns the node that `node` adds to, or multiplies with, the number."""
        if node is None or node.op != op or len(node.input) != 2:
            return None
        value = constant(nodes, node.input[1])
        close = value is not None and value.size == 1 and abs(value.item() - number) < 1e-6
        return nodes.get(node.input[0]) if close else None

    for node in list(graph_def.node):
        if node.op == "Mul" and len(node.input) == 2:
            half, more = (nodes.get(name) for name in node.input)
            source, erf = operand(half, "Mul", 0.5), operand(more, "AddV2", 1)
            inner = nodes.get(erf.input[0]) if erf is not None and erf.op == "Erf" else None
            if source is not None and operand(inner, "Mul", math.sqrt(0.5)) is source:
                node.op = "GELU"
                set_inputs(node, [source.name])


def _gelu(writer: _Writer, node: NodeDef) -> None:
    source = writer.data(node)
    options = _options(writer, "GeluOptions", approximate=False)
    writer.emit(node, writer.shapes[source], _Operator(_kind(writer, "GELU"), [source], options))


def _batch_product(writer: _Writer, node: NodeDef) -> None:
    inputs = [writer.data(node, 0), writer.data(node, 1)]
    turned = [bool(attribute(node, key).b) for key in ("adj_x", "adj_y")]
    first, second = (
        (*shape[:-2], shape[-1], shape[-2]) if swap else shape
        for shape, swap in zip((writer.shapes[n] for n in inputs), turned, strict=True)
    )
    if first[-1] != second[-2] or first[:-2] != second[:-2]:
        raise ConversionError(f"the shapes of {node.name} do not fit each other")
    options = _options(writer, "BatchMatMulOptions", adjX=turned[0], adjY=turned[1])
    operator = _Operator(_kind(writer, "BATCH_MATMUL"), inputs, options)
    writer.emit(node, (*first[:-1], second[-1]), operator)


def _transpose(writer: _Writer, node: NodeDef) -> None:
    source, order = writer.data(node), writer.value(node, 1).astype(np.int32)
    shape = tuple(writer.shapes[source][axis] for axis in order)
    options = _options(writer, "TransposeOptions")
    operator = _Operator(_kind(writer, "TRANSPOSE"), [source, writer.constant(order)], options)
    writer.emit(node, shape, operator)


def _slice(writer: _Writer, node: NodeDef) -> None:
    """A StridedSlice x[a:b, :, c:d], which keeps all axes and skips no value."""
    source = writer.data(node)
    shape = writer.shapes[source]
    begin, end, strides = (writer.value(node, index).reshape(-1) for index in (1, 2, 3))
    others = ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    if (strides != 1).any() or any(attribute(node, key).i for key in others):
        raise ConversionError(f"{node.name} slices in a way that is not known here")
    starts, sizes = [0] * len(shape), list(shape)
    for axis, (first, last) in enumerate(zip(begin, end, strict=True)):
        from_start, to_end = (attribute(node, f"{key}_mask").i >> axis & 1 for key in ENDS)
        place = slice(None if from_start else int(first), None if to_end else int(last))
        starts[axis], stop, _ = place.indices(shape[axis])
        sizes[axis] = max(stop - starts[axis], 0)
    places = [writer.constant(np.array(numbers, np.int32)) for numbers in (starts, sizes)]
    options = _options(writer, "SliceOptions")
    operator = _Operator(_kind(writer, "SLICE"), [source, *places], options)
    writer.emit(node, tuple(sizes), operator)


def _matrix_product(writer: _Writer, node: NodeDef) -> None:
    """MatMul with constant weights, [width, units]."""
    source, weights = writer.data(node), writer.value(node, 1, "float32")
    if attribute(node, "transpose_a").b:
        raise ConversionError(f"{node.name} transposes its input")
    weights = weights if attribute(node, "transpose_b").b else weights.T
    bias = writer.constant(np.zeros(len(weights), np.float32))
    options = _options(writer, "FullyConnectedOptions")
    inputs = [source, writer.constant(weights), bias]
    shape = (writer.shapes[source][0], len(weights))
    writer.emit(node, shape, _Operator(_kind(writer, "FULLY_CONNECTED"), inputs, options))


def _softmax(writer: _Writer, node: NodeDef) -> None:
    source = writer.data(node)
    options = _options(writer, "SoftmaxOptions", beta=1.0)
    writer.emit(node, writer.shapes[source], _Operator(_kind(writer, "SOFTMAX"), [source], options))


def _pass_on(writer: _Writer, node: NodeDef) -> None:
    writer.tensors[node.name] = writer.data(node)


CONVERSIONS: Mapping[str, Callable[[_Writer, NodeDef], None]] = {
    **dict.fromkeys(("Conv2D", "DepthwiseConv2dNative"), _convolution),
    **dict.fromkeys(("MaxPool", "AvgPool"), _pooling),
    **dict.fromkeys(("Relu", "Relu6"), _activation),
    **dict.fromkeys(UNARY.keys() - {"Relu", "Relu6"}, _unary),
    **dict.fromkeys(BINARY.keys() - {"BiasAdd"}, _binary),
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims"), _reshape),
    **dict.fromkeys(("Identity", "StopGradient", "CheckNumerics"), _pass_on),
    **{"BiasAdd": _bias, "ConcatV2": _concatenation, "Mean": _mean, "Pad": _padding},
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **{"ReverseV2": _reversal, "MatMul": _matrix_product, "Softmax": _softmax},
    **{"BatchMatMulV2": _batch_product, "Transpose": _transpose, "StridedSlice": _slice},
    "GELU": _gelu,
}
