"""Reads a frozen graph's file and checks it before TensorFlow sees it: a graph is a program.

TensorFlow has ops that read and write files, open connections and run Python. A frozen image
classifier needs none of them, so only ops pass that are known to do nothing but compute. The checks
also keep a few bytes from requesting terabytes, and damaged graphs from causing tracebacks.

The checks cover sizes of tensors that constants and static shapes determine, here and (for those
that TensorFlow infers) in `read.import_graph`. They do not cover sizes that are computed from the
image, time (a large graph is slow), or the memory of parsing, which a hostile file can drive to ten
times its size.
"""

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from retraining.graphs.messages import TYPE_NAMES, GraphDef, MetaGraphDef, NodeDef, SavedModel
from retraining.graphs.nodes import (
    GraphError,
    attribute,
    constant,
    node_name,
    nodes_by_name,
    type_of,
)
from retraining.graphs.tensors import FIELDS, array_type

MAX_BYTES = (2 << 30) - 1  # of a protobuf message (protobuf.dev, "Proto Limits")
MAX_NODES = 50_000  # Keras's Inception-ResNet-v2, frozen, has 5,314; time grows with them
MAX_ELEMENTS = 1 << 28  # in one tensor: 1 GiB of float32
MAX_DIMENSIONS = 254  # of a tensor in TensorFlow (TensorShape::MaxDimensions)
SAVED_MODEL = "saved_model.pb"  # the graph in the folder of a SavedModel
SPARE_BYTES = 64 << 20  # by which constants may exceed the file's size, by repeated values

# Ops that map values to values. Left out are: ops that touch files, connections, Python, variables,
# queues, tables or devices; ops that call functions; loops (Enter, NextIteration), which may never
# end, and TensorArrays, which only loops need; ops that lengthen strings, which no shape reveals;
# Print and PrintV2, since PrintV2 can write files. Assert is allowed: it can only end the run.
# Random ops are for dropout.
#
# The number after an op is that of its inputs; an op without a number has one. N stands for the
# value of its attribute `N`, T for the number of types in its attribute `T`.
SAFE_OPS_TEXT = """
Const:0 Placeholder:0 PlaceholderV2:0 PlaceholderWithDefault Identity IdentityN:T NoOp:0
StopGradient PreventGradient Snapshot CheckNumerics Assert:T+1 Switch:2 Merge:N

Abs Add:2 AddN:N AddV2:2 Ceil Cos Div:2 DivNoNan:2 Elu Erf Erfc Exp Expm1 Floor FloorDiv:2
FloorMod:2 Inv LeakyRelu Log Log1p LogSoftmax Max:2 Maximum:2 Mean:2 Min:2 Minimum:2 Mod:2 Mul:2
MulNoNan:2 Neg Pow:2 Prod:2 RealDiv:2 Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin
Softmax Softplus Softsign Sqrt Square SquaredDifference:2 Sub:2 Sum:2 Tan Tanh TruncateDiv:2
TruncateMod:2 Xdivy:2 Xlogy:2 Cumsum:2 L2Loss ClipByValue:3

All:2 Any:2 Equal:2 Greater:2 GreaterEqual:2 IsFinite IsInf IsNan Less:2 LessEqual:2 LogicalAnd:2
LogicalNot LogicalOr:2 NotEqual:2 Select:3 SelectV2:3 Where ArgMax:2 ArgMin:2 InTopK:2 InTopKV2:3
TopK TopKV2:2

BatchMatMul:2 BatchMatMulV2:2 BatchMatMulV3:2 BiasAdd:2 BiasAddV1:2 Einsum:N MatMul:2 Conv2D:2
Conv2DBackpropInput:3 DepthwiseConv2dNative:2 Dilation2D:2 FusedPadConv2D:3
FusedResizeAndPadConv2D:4 AvgPool FractionalAvgPool FractionalMaxPool MaxPool MaxPoolV2:3
MaxPoolWithArgmax LRN BatchNormWithGlobalNormalization:5 FusedBatchNorm:5 FusedBatchNormV2:5
FusedBatchNormV3:5

BatchToSpace:2 BatchToSpaceND:3 BroadcastArgs:2 BroadcastTo:2 Cast Bitcast Concat:N+1
ConcatOffset:N+1 ConcatV2:N+1 DepthToSpace EnsureShape ExpandDims:2 Fill:2 Gather:2 GatherNd:2
GatherV2:3 InvertPermutation LinSpace:3 MirrorPad:2 OneHot:4 OnesLike Pack:N Pad:2 PadV2:3 Range:3
Rank Reshape:2 Reverse:2 ReverseV2:2 ScatterNd:3 Shape ShapeN:N Size Slice:3 SpaceToBatch:2
SpaceToBatchND:3 SpaceToDepth Split:2 SplitV:3 Squeeze StridedSlice:4 Tile:2 Transpose:2 Unpack
ZerosLike BroadcastGradientArgs:2 MatrixBandPart:3

AdjustContrast:4 AdjustContrastv2:2 AdjustHue:2 AdjustSaturation:2 CropAndResize:4
DecodeAndCropJpeg:2 DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodePng DrawBoundingBoxes:2
EncodeJpeg EncodePng ExtractGlimpse:3 ExtractImagePatches ExtractJpegShape HSVToRGB RGBToHSV
ResizeArea:2 ResizeBicubic:2 ResizeBilinear:2 ResizeNearestNeighbor:2 ScaleAndTranslate:4
DecodeBase64 DecodeRaw StringLength Substr:3

Multinomial:2 RandomStandardNormal RandomUniform RandomUniformInt:3 StatelessRandomNormal:2
StatelessRandomUniform:2 StatelessTruncatedNormal:2 TruncatedNormal

Dequantize:3 FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars:3 FakeQuantWithMinMaxVarsPerChannel:3
QuantizeAndDequantize QuantizeAndDequantizeV2:3 QuantizeAndDequantizeV3:4 QuantizeAndDequantizeV4:3
QuantizeDownAndShrinkRange:3 QuantizeV2:3 QuantizedAdd:6 QuantizedAvgPool:3
QuantizedBatchNormWithGlobalNormalization:15 QuantizedBiasAdd:6 QuantizedConcat:3N+1
QuantizedConv2D:6 QuantizedInstanceNorm:3 QuantizedMatMul:6 QuantizedMaxPool:3 QuantizedMul:6
QuantizedRelu:3 QuantizedRelu6:3 QuantizedReluX:4 QuantizedReshape:4 QuantizedResizeBilinear:4
RequantizationRange:3 Requantize:5
"""
SAFE_OP = re.compile(r"(\w+)(?::(?:(\d*)([NT])\+?)?(\d*))?(?!\S)")
# {op: (times, key, more)}: its inputs are `times` the number in its attribute `key`, and `more`.
INPUTS = {
    op: (int(times or 1) if key else 0, key, int(more or (0 if key else 1)))
    for op, times, key, more in SAFE_OP.findall(SAFE_OPS_TEXT)
}
ALLOWED_OPS = frozenset(INPUTS)


def load_graph(path: str | Path, allow_unsafe_ops: bool = False) -> tuple[GraphDef, bytes]:
    """Reads and checks a graph; returns (GraphDef, the file's bytes).

    Both commands load every graph through this function.

    `allow_unsafe_ops` accepts ops and functions that are not known to be harmless; see
    `describe_unsafe`. All other checks remain.

    Raises:
        GraphError: the file is no frozen graph, is damaged, or has such ops.
    """
    content = read_bytes(path)
    graph_def = parse(path, content)
    unsafe = describe_unsafe(graph_def)
    if unsafe and not allow_unsafe_ops:
        check_frozen(path, graph_def.node)
        raise GraphError(
            f"{path} was not run, since it could do more than compute: it holds {unsafe}; if you "
            f"trust whoever made it, add `Choice.allow_unsafe_ops`"
        )
    try:
        check(graph_def, len(content))
    except GraphError as error:
        raise GraphError(f"{path} is damaged or not safe to load: {error}") from error
    return graph_def, content


VARIABLES = ("Variable", "VariableV2", "VarHandleOp")


def check_frozen(graph: str | Path, nodes: Iterable[NodeDef]) -> None:
    """Refuses variables among the nodes of a graph, which is named as `graph` in the error.

    Raises:
        GraphError: there is a variable, whose values the graph does not hold.
    """
    variables = (
        node
        for node in nodes
        if node.op in VARIABLES or (node.op == "Placeholder" and type_of(node) == "resource")
    )
    name = next((_shown(node.name) for node in variables), None)
    if name is not None:
        raise GraphError(
            f"{graph} is not frozen: it lacks the values of its variables, such as {name}; freeze "
            f"it with its checkpoint (TensorFlow's freeze_graph) and give the .pb file that "
            f"this writes"
        )


def read_bytes(path: str | Path) -> bytes:
    """Returns the content of a file that may be a graph.

    Raises:
        GraphError: the file is missing, unreadable, or of another kind.
    """
    try:
        _check_kind(path, os.stat(path))  # before opening it: a pipe would wait for its writer
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise GraphError(f"cannot read the graph {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise GraphError(f"cannot read the graph {path!r}: {error}") from error
    if kind := _other_kind(content):
        raise GraphError(f"{path} is not a frozen graph but {kind}")
    return content


def _check_kind(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        if os.path.exists(os.path.join(path, SAVED_MODEL)):
            raise GraphError(f"{path} is a SavedModel folder, not a frozen graph; {FREEZE}")
        if versions := sorted(Path(path).glob(f"[0-9]*/{SAVED_MODEL}")):
            raise GraphError(
                f"{path} holds versions of a SavedModel; name one, such as {versions[-1].parent}"
            )
        raise GraphError(f"{path} is a folder, not a frozen graph; name the .pb file in it")
    if not stat.S_ISREG(status.st_mode):
        raise GraphError(f"{path} is a pipe or device, not a frozen graph; copy it into a file")
    if status.st_size == 0:
        raise GraphError(f"{path} is not a frozen graph: it is empty; fetch it again")
    if status.st_size > MAX_BYTES:
        raise GraphError(
            f"{path} is not a frozen graph: it has {status.st_size / (1 << 30):.1f} GB, and a "
            f"frozen graph has less than 2; give the .pb file"
        )


FREEZE = (
    "freeze it first (convert_variables_to_constants_v2 of TensorFlow) and give the .pb file that "
    "this writes, or use it as a base network with `NetworkSettings.architecture` saved_model"
)
UNPACK = "unpack it and name the .pb file in it"
FETCH = "this is not the graph; download it again"

SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"PK\x03\x04", f"a zip archive (as .keras and .pt files are); {UNPACK}"),
    (b"\x1f\x8b", f"a gzip archive; {UNPACK}"),
    (b"BZh", f"a bzip2 archive; {UNPACK}"),
    (b"\xfd7zXZ\x00", f"an xz archive; {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {UNPACK}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file of Keras (.h5); {FREEZE}"),
    (b"\x80\x02", "a Python pickle (as from PyTorch), which this tool does not read"),
    (b"\xff\xd8\xff", "a JPEG image; give the file of the graph"),
    (b"\x89PNG", "a PNG image; give the file of the graph"),
)
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of a LevelDB table: a checkpoint or its index
PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")  # no control characters
TEXT_GRAPH = re.compile(rb"(\s|#.*\n)*(node|versions|library)\s*\{")


def _other_kind(content: bytes) -> str | None:
    """Returns what other kind of file this is, as the end of a sentence; None if unknown."""
    head = content[:4096]
    for start, kind in SIGNATURES:
        if content.startswith(start):
            return kind
    if content[4:8] == b"TFL3":
        return (
            "a TensorFlow Lite model, which this tool cannot use here; use the frozen graph "
            "that it was made from"
        )
    if content[257:262] == b"ustar":
        return f"a tar archive; {UNPACK}"
    if content.endswith(TABLE_END):
        return f"a TensorFlow checkpoint, which holds no graph; {FREEZE}"
    if PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        return f"a web page (HTML); {FETCH}"
    if TEXT_GRAPH.match(head):
        return "a graph in text form (.pbtxt); write it as binary (text_format.Parse) first"
    return f"a text file; {FETCH}" if TEXT.fullmatch(head) else None


def parse(path: str | Path, content: bytes) -> GraphDef:
    """Parses the bytes of a GraphDef.

    Raises:
        GraphError: they are not a GraphDef with nodes.
    """
    graph_def = _parsed(GraphDef, content)
    whole = graph_def is not None and graph_def.node and all(n.op for n in graph_def.node)
    if not whole and (kind := _other_message(path, content)):
        raise GraphError(f"{path} is not a frozen graph but {kind}")
    if graph_def is None:
        raise GraphError(f"{path} is not a frozen graph (.pb), or cut short; fetch it again")
    if not graph_def.node:
        raise GraphError(f"{path} is not a frozen graph: it has no nodes; name another file")
    return graph_def


Parsed = TypeVar("Parsed", bound=Message)


def _parsed(kind: type[Parsed], content: bytes) -> Parsed | None:
    try:
        return kind.FromString(content)
    except DecodeError:
        return None


def _other_message(path: str | Path, content: bytes) -> str | None:
    """Returns what other protobuf message this is, as the end of a sentence; None if unknown."""
    saved = _parsed(SavedModel, content)
    if saved and any(graph.graph_def.node for graph in saved.meta_graphs):
        return f"the saved_model.pb of a SavedModel, without its weights; {FREEZE}"
    meta = _parsed(MetaGraphDef, content)
    if meta and meta.graph_def.node:
        return f"the .meta file of a checkpoint, without its weights; {FREEZE}"
    if str(path).lower().endswith(".onnx"):
        return (
            "an ONNX model, which this tool cannot use here; use the frozen graph that it was "
            "made from"
        )
    return None


NAMED = 5  # how many refused ops a message names


def describe_unsafe(graph_def: GraphDef) -> str:
    """Names the ops, with one node each, and functions that are not known to be harmless.

    Returns an empty text if there are none. Nodes count even if the output does not depend on them
    and we never run them: other programs run whole files, and leftovers of training can be
    stripped. Functions count, too, although they could be checked like graphs: they can call each
    other endlessly, and tools that freeze graphs inline them.
    """
    unsafe: dict[str, str] = {}
    for node in graph_def.node:
        if node.op not in ALLOWED_OPS or _holds_function(node):
            unsafe.setdefault(node.op, f"{_shown(node.op)} (node {_shown(node.name)})")
    ops = list(unsafe.values())
    ops += [f"the function {_shown(f.signature.name)}" for f in graph_def.library.function]
    return first_named(ops)


def first_named(names: Sequence[str]) -> str:
    """Returns the first NAMED names, and how many more there are; empty if there are none."""
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def _holds_function(node: NodeDef) -> bool:
    return any(value.HasField("func") or value.list.func for value in node.attr.values())


def _shown(name: str) -> str:
    """Returns any name from the file in quotes, escaped to one line, and shortened."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def check(graph_def: GraphDef, file_size: int) -> None:
    """Checks that the nodes form a graph whose tensors are no larger than its file explains.

    A graph that passes is sound: every input names a node, no node depends on itself, each has the
    inputs that its op takes, and the constants can be read.

    Raises:
        GraphError: a check fails.
    """
    if len(graph_def.node) > MAX_NODES:
        raise GraphError(f"it has {len(graph_def.node)} nodes, more than {MAX_NODES}")
    nodes = nodes_by_name(graph_def)
    if len(nodes) < len(graph_def.node):
        name = Counter(node.name for node in graph_def.node).most_common(1)[0][0]
        raise GraphError(f"two of its nodes are called {_shown(name)}")
    for node in graph_def.node:
        _check_names(node, nodes)
        _check_inputs(node)
    _check_order(graph_def)
    check_constants(graph_def.node, file_size)
    for node in graph_def.node:
        _check_asked_size(node, nodes)


def check_constants(nodes: Iterable[NodeDef], file_size: int) -> None:
    """Checks that the constants of nodes are no larger than their file of `file_size` explains.

    Raises:
        GraphError: they are, or an attribute cannot be read.
    """
    spare = file_size + SPARE_BYTES
    for node in nodes:
        spare -= _check_attributes(node)
        if spare < 0:
            raise GraphError(f"its constants are far larger than the file, as {_shown(node.name)}")


NAME = r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*"  # graph.cc and node_def_util.cc of TensorFlow
NODE_NAME = re.compile(NAME)
REFERENCE = re.compile(rf"\^{NAME}|{NAME}(:\d{{1,9}})?")


def _check_names(node: NodeDef, nodes: Mapping[str, NodeDef]) -> None:
    if not NODE_NAME.fullmatch(node.name):
        raise GraphError(f"{_shown(node.name)} is not a node name")
    for reference in node.input:
        if not REFERENCE.fullmatch(reference):
            raise GraphError(f"{_shown(reference)} is not an input name ({_shown(node.name)})")
        if node_name(reference) not in nodes:
            raise GraphError(f"the node {_shown(reference)}, which others need, is missing")


def _check_inputs(node: NodeDef) -> None:
    """Checks that a node has as many inputs as its op takes, with control inputs last."""
    kinds = [name.startswith("^") for name in node.input]
    if kinds != sorted(kinds):
        raise GraphError(f"the inputs of {_shown(node.name)} are out of order")
    if node.op not in INPUTS:  # TensorFlow checks it on loading
        return
    times, key, more = INPUTS[node.op]
    value = attribute(node, key)
    expected = times * (value.i if key == "N" else len(value.list.type)) + more
    if kinds.count(False) != expected:
        raise GraphError(
            f"the node {_shown(node.name)} has {kinds.count(False)} inputs, and {node.op} takes "
            f"{expected}"
        )


def _check_order(graph_def: GraphDef) -> None:
    """Checks that the graph can be ordered with nodes after their inputs (Kahn's algorithm)."""
    waiting: dict[str, int] = {}
    users: dict[str, list[str]] = {}
    for node in graph_def.node:
        # The back edge of a loop is no input that must come first.
        sources = [] if node.op == "NextIteration" else map(node_name, node.input)
        waiting[node.name] = 0
        for source in sources:
            waiting[node.name] += 1
            users.setdefault(source, []).append(node.name)
    ready = [name for name, count in waiting.items() if count == 0]
    for name in ready:  # grows during the loop
        for user in users.get(name, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(ready) < len(waiting):
        name = next(name for name, count in waiting.items() if count)
        raise GraphError(f"the node {_shown(name)} depends on itself")


STRING_BYTES = 24  # of an element, plus its characters


def _check_attributes(node: NodeDef) -> int:
    """Checks a node's attributes; returns the bytes that their tensors take in memory."""
    total = 0
    try:
        if node.op == "Const":
            _check_constant(node)
        for value in node.attr.values():
            for shape in (value.shape, *value.list.shape):
                _elements(shape)
            tensors = (value.tensor,) if value.HasField("tensor") else value.list.tensor
            total += sum(map(_tensor_bytes, tensors))
    except GraphError as error:
        raise GraphError(f"the node {_shown(node.name)} has {error}") from error
    return total


def _check_constant(node: NodeDef) -> None:
    """Checks that a Const has a type and a value that agree; otherwise TensorFlow aborts."""
    if not {"value", "dtype"} <= set(node.attr) or not node.attr["value"].HasField("tensor"):
        raise GraphError("no value")
    if node.attr["dtype"].type != node.attr["value"].tensor.dtype:
        raise GraphError("a value of another type than its own")


def _elements(shape: Any) -> int:
    """Returns the number of elements of a TensorShapeProto; unknown dimensions count as 1."""
    sizes: list[int] = [dimension.size for dimension in shape.dim]
    if len(sizes) > MAX_DIMENSIONS or any(size < -1 for size in sizes):
        raise GraphError("an impossible shape")
    elements = math.prod(size for size in sizes if size != -1)
    if elements > MAX_ELEMENTS:
        raise GraphError(f"a shape of {elements} elements, more than {MAX_ELEMENTS}")
    return elements


def _tensor_bytes(tensor: Any) -> int:
    """Checks that a TensorProto's values fit its shape; returns its bytes in memory."""
    name = TYPE_NAMES.get(tensor.dtype, "")
    if name not in FIELDS:
        raise GraphError("a tensor of a type that no classifier has")
    size, field = STRING_BYTES if name == "string" else array_type(name).itemsize, FIELDS[name]
    shape = tensor.tensor_shape
    if shape.unknown_rank or any(dimension.size < 0 for dimension in shape.dim):
        raise GraphError("a tensor without a definite shape")
    elements, values = _elements(shape), getattr(tensor, field)
    given = len(tensor.tensor_content)
    if given and (name == "string" or values):
        raise GraphError("a tensor in a form that is not read here")
    if given and given != elements * size:
        raise GraphError(f"{given} bytes for {elements} elements of {name}")
    if len(values) > elements:
        raise GraphError(f"{len(values)} values for {elements} elements")
    if field == "int_val" and size < 4 and values and not _fit(values, name):
        raise GraphError(f"values beyond {name}")
    # The last value is repeated for all that are missing.
    characters = len(values[-1]) if name == "string" and values else 0
    return elements * (size + characters)


def _fit(values: Sequence[int], name: str) -> bool:
    limits = np.iinfo(name.removeprefix("q"))
    return limits.min <= min(values) and max(values) <= limits.max


# The input that sets the size of the output. TensorFlow computes some outputs on loading a graph.
SIZE_INPUT = {
    **dict.fromkeys(("Fill", "RandomUniform", "RandomStandardNormal", "TruncatedNormal"), 0),
    **dict.fromkeys(("RandomUniformInt", "StatelessRandomUniform", "StatelessRandomNormal"), 0),
    **dict.fromkeys(("StatelessTruncatedNormal",), 0),
    **dict.fromkeys(("BroadcastTo", "Tile", "OneHot", "Pad", "PadV2", "MirrorPad"), 1),
    **dict.fromkeys(("ResizeArea", "ResizeBicubic", "ResizeBilinear"), 1),
    **dict.fromkeys(("ResizeNearestNeighbor", "ExtractGlimpse", "ScaleAndTranslate"), 1),
    **dict.fromkeys(("FusedPadConv2D", "FusedResizeAndPadConv2D", "Multinomial"), 1),
    **dict.fromkeys(("LinSpace", "ScatterNd"), 2),
    "CropAndResize": 3,
}
PADDINGS = ("Pad", "PadV2", "MirrorPad", "FusedPadConv2D")


def _check_asked_size(node: NodeDef, nodes: Mapping[str, NodeDef]) -> None:
    """Raises GraphError if constant inputs of an op ask for more than MAX_ELEMENTS."""
    if node.op == "Range":
        start, limit, step = (constant(nodes, name) for name in node.input[:3])
        if start is None or limit is None or step is None:
            return
        if not all(value.size == 1 and value.dtype.kind in "iuf" for value in (start, limit, step)):
            raise GraphError(f"the node {_shown(node.name)} has no range")
        start, limit, step = (value.item() for value in (start, limit, step))
        asked = abs(limit - start) / abs(step) if step else math.inf
    elif node.op in SIZE_INPUT:
        sizes = constant(nodes, node.input[SIZE_INPUT[node.op]])
        if sizes is None or sizes.dtype.kind not in "iu" or sizes.size > 2 * MAX_DIMENSIONS:
            return
        if node.op in PADDINGS:
            sizes = 1 + np.atleast_1d(sizes.astype(float)).sum(axis=-1)
        asked = math.prod(abs(float(size)) for size in sizes.ravel())
    else:
        return
    if not asked <= MAX_ELEMENTS:
        raise GraphError(f"the node {_shown(node.name)} asks for a tensor of {asked:.3g} elements")
