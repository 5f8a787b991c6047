"""Reads what a graph does to its images: folds the arithmetic before and after a node.

The arithmetic of each channel is affine, `factor * x + offset`. Resizing passes it on, because the
weights of a bilinear kernel add up to 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import NodeDef
from retraining.graphs.nodes import GraphError, attribute, constant, node_name, sizes_of, type_of
from retraining.graphs.preprocessing import PartialPreprocessing, PerChannel, Size, can_scale

MAX_SIDE = 4096  # pixels; a larger input would take hundreds of megabytes per image
PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
INTEGERS = ("uint8", "quint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
WIDER = ("uint8", "uint16", "int16", "uint32", "int32", "uint64", "int64")  # these hold any uint8
PIXEL_TYPES = (*INTEGERS, "float32", "float64", "float16", "bfloat16")
DECODERS = ("DecodeJpeg", "DecodePng", "DecodeBmp", "DecodeImage")
PASSED_ON = (
    *("Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics", "EnsureShape"),
    *("PlaceholderWithDefault", "Cast"),
)
BATCHING = ("ExpandDims", "Pack", "Reshape", "StridedSlice")  # from an image to a batch of it
RESIZING = (
    *("ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor", "ResizeArea"),
    "ScaleAndTranslate",
)
ARITHMETIC = ("Sub", "Add", "AddV2", "Mul", "RealDiv", "Div", "BiasAdd")
DIVISIONS = ("RealDiv", "Div")
CLIPPING = ("Minimum", "Maximum", "ClipByValue", "Relu")  # by constants
BESIDE = (  # these leave most pixels as they are, or all in another order
    *("ReverseV2", "Pad", "PadV2", "MirrorPad", "FakeQuantWithMinMaxArgs"),
    *("FakeQuantWithMinMaxVars", *CLIPPING),
)
ASKING = ("Shape", "ShapeN", "Size", "Rank")  # these read no pixel

Nodes: TypeAlias = Mapping[str, NodeDef]
Values: TypeAlias = NDArray[np.float64]  # [] for all channels, or [3]


@dataclass(frozen=True)
class Affine:
    """`factor * x + offset`, for all channels or for each."""

    factor: Values
    offset: Values

    @classmethod
    def of(cls, mean: PerChannel, std: PerChannel) -> "Affine":
        """Returns `(x - mean) / std`."""
        factor = 1 / np.asarray(std, np.float64)
        return cls(factor, -np.asarray(mean, np.float64) * factor)

    def then(self, other: "Affine") -> "Affine":
        """Returns `other` of the result of this."""
        return Affine(self.factor * other.factor, self.offset * other.factor + other.offset)

    def scale(self) -> tuple[PerChannel, PerChannel] | None:
        """Returns (mean, std) with which `(x - mean) / std` is this; None if there are none."""
        with np.errstate(all="ignore"):
            mean, std = _plain(-self.offset / self.factor), _plain(1 / self.factor)
        return (mean, std) if can_scale(mean, std) else None


UNCHANGED = Affine(np.ones(()), np.zeros(()))


def before(scale: tuple[PerChannel, PerChannel], after: Affine) -> tuple[PerChannel, PerChannel]:
    """Returns the (mean, std) before `after`, which turns pixels so scaled into those of `scale`.

    From (x - mean) / std = factor * v + offset follows v = (x - mean - std * offset) /
    (std * factor).
    """
    if (after.factor == 1).all() and (after.offset == 0).all():
        return scale
    mean, std = (np.asarray(value, np.float64) for value in scale)
    offset = np.round(mean + std * after.offset, 4)  # beyond which constants are not exact
    earlier = _plain(offset), _plain(std * after.factor)
    return earlier if can_scale(*earlier) else scale


def _plain(values: Values) -> PerChannel:
    """Returns numbers of float32 precision, that of the constants in graphs; one if all agree."""
    numbers = [float(number) + 0.0 for number in np.float32(values).ravel()]  # no -0.0
    if len(set(numbers)) == 1:
        return numbers[0]
    red, green, blue = numbers
    return red, green, blue


@dataclass(frozen=True)
class Before:
    """What a node is made of: `affine` of the values of the node `source`, resized to `size`."""

    source: NodeDef
    affine: Affine
    size: Size | None

    @property
    def is_pixels(self) -> bool:
        """Whether the source holds the pixels 0..255 of an image, in RGB."""
        node = self.source
        if node.op in PLACEHOLDERS:
            return type_of(node) in INTEGERS and type_of(node) != "uint16"  # which may reach 65535
        whole = attribute(node, "ratio").i in (0, 1) and type_of(node) in (None, "uint8")
        usual = not attribute(node, "dct_method").s and (
            "fancy_upscaling" not in node.attr or attribute(node, "fancy_upscaling").b
        )  # as our decoder
        return node.op in DECODERS and attribute(node, "channels").i == 3 and whole and usual


def look_before(nodes: Nodes, name: str) -> Before:
    """Folds the arithmetic that leads to a node, from the last node that can be folded on.

    What cannot be told exactly ends the chain: another kernel than the legacy one, a second
    resizing, integers that round or wrap.

    Raises:
        GraphError: the size is not that of an image.
    """
    node, affine, size = nodes[name], UNCHANGED, fixed_size(nodes[name])
    resized = False
    while step := _exact_step(nodes, node):
        if node.op in RESIZING:
            if resized:
                break
            resized, size = True, size or _resized_size(nodes, node)
        source, change = step
        affine, node = change.then(affine), nodes[source]
    return Before(node, affine, size or (None if resized else fixed_size(node)))


def _exact_step(nodes: Nodes, node: NodeDef) -> tuple[str, Affine] | None:
    """Returns (the node that this one changes, how), if that is exactly known."""
    if node.op == "Cast":
        source, target = (type_of(node, key) for key in ("SrcT", "DstT"))
        exact = str(target).startswith("float") or (
            (source == "uint8" and target in WIDER) or source == target
        )
    elif node.op == "ResizeBilinear":
        others = attribute(node, "align_corners").b or attribute(node, "half_pixel_centers").b
        exact = not others and _resized_size(nodes, node) is not None
    elif node.op == "PlaceholderWithDefault":  # one with a constant default is fed
        exact = constant(nodes, node.input[0]) is None
    elif node.op in ARITHMETIC:
        kind, constants = type_of(node, "T"), (_value(nodes, name) for name in _data(node))
        exact = all(value is None or value.size <= 3 for value in constants)
        if kind in INTEGERS:  # which wraps or rounds
            exact &= kind in ("int32", "int64") and node.op not in DIVISIONS
    elif node.op == "StridedSlice":
        strides = constant(nodes, node.input[3])
        exact = strides is not None and bool((strides == 1).all())
    else:
        exact = node.op not in (*RESIZING, *BESIDE)
    return _step(nodes, node) if exact else None


def _step(nodes: Nodes, node: NodeDef) -> tuple[str, Affine] | None:
    """Returns (the node that this one changes, how); None if it does something else.

    The order of pixels and channels does not count, nor do borders and limits.
    """
    inputs = _data(node)
    if any(":" in name and not name.endswith(":0") for name in inputs):
        return None
    if node.op in ARITHMETIC:
        return _arithmetic(nodes, node, inputs)
    if node.op == "Neg":
        return node_name(inputs[0]), Affine(-np.ones(()), np.zeros(()))
    if node.op in CLIPPING:
        inputs = [name for name in inputs if _value(nodes, name) is None]
        return (node_name(inputs[0]), UNCHANGED) if len(inputs) == 1 else None
    passes = node.op in (*PASSED_ON, *RESIZING, *BESIDE) or _makes_batch(nodes, node, inputs)
    passes = passes or (node.op == "StridedSlice" and _takes_all(nodes, node, 0))
    return (node_name(inputs[0]), UNCHANGED) if passes and inputs else None


def _makes_batch(nodes: Nodes, node: NodeDef, inputs: list[str]) -> bool:
    """Returns whether a node turns one image into a batch of one."""
    if node.op == "Pack":
        return len(inputs) == 1 and attribute(node, "axis").i == 0
    value = constant(nodes, inputs[1]) if node.op in BATCHING else None
    if value is None:
        return False
    if node.op == "StridedSlice":
        return _takes_all(nodes, node, 1)
    if node.op == "ExpandDims":
        return value.size == 1 and value.item() == 0
    return value.shape == (4,) and bool(value[3] == 3)


def _takes_all(nodes: Nodes, node: NodeDef, new_axes: int) -> bool:
    """Returns whether a StridedSlice drops no pixel at the ends: image[None] and its kin, or all.

    `new_axes` is the bit mask of the axes that it must add.
    """
    value = constant(nodes, node.input[1])
    if value is None:
        return False
    masks = {k: attribute(node, f"{k}_mask").i for k in ("begin", "end", "ellipsis")}
    whole = masks["ellipsis"] | masks["begin"] & masks["end"] | new_axes
    new = attribute(node, "new_axis_mask").i, attribute(node, "shrink_axis_mask").i
    return bool(new == (new_axes, 0) and whole == (1 << value.size) - 1)


def _arithmetic(nodes: Nodes, node: NodeDef, inputs: list[str]) -> tuple[str, Affine] | None:
    constants = [_per_channel(_value(nodes, name)) for name in inputs]
    if sum(value is None for value in constants) != 1:
        return None
    x = int(constants[0] is not None)  # the input that is no constant
    value, zero, one = np.asarray(constants[1 - x]), np.zeros(()), np.ones(())
    if node.op == "Mul":
        change = Affine(value, zero)
    elif node.op in DIVISIONS:
        if x == 1:
            return None
        with np.errstate(all="ignore"):
            change = Affine(1 / value, zero)
    elif node.op == "Sub":
        change = Affine(-one, value) if x == 1 else Affine(one, -value)
    else:
        change = Affine(one, value)
    return node_name(inputs[x]), change


FOLDED: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("Add", "AddV2"), np.add),
    **dict.fromkeys(("Div", "RealDiv"), np.divide),
    **dict.fromkeys(("Inv", "Reciprocal"), np.reciprocal),
    **{"Sub": np.subtract, "Mul": np.multiply, "Neg": np.negative, "Square": np.square},
    **{"Sqrt": np.sqrt, "Rsqrt": lambda x: 1 / np.sqrt(x), "Maximum": np.maximum},
    **{"Minimum": np.minimum, "Reshape": np.reshape, "BroadcastTo": np.broadcast_to},
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
}
FOLDED_DEPTH = 6  # operations; each could double the time
FOLDED_VALUES = 1 << 12  # in one constant, of which two could make a product of as many each


def _value(nodes: Nodes, name: str, depth: int = FOLDED_DEPTH) -> NDArray[Any] | None:
    """Returns the value of a constant, or of a small expression of floats; None for other nodes."""
    value, node = constant(nodes, name), nodes.get(node_name(name))
    if value is not None or node is None or node.op not in FOLDED or depth == 0:
        return value
    found = (_value(nodes, each, depth - 1) for each in _data(node))
    values = [each for each in found if each is not None and each.size <= FOLDED_VALUES]
    whole = len(values) == len(_data(node)) and values[0].dtype.kind == "f"
    if not whole or (node.op == "BroadcastTo" and np.prod(values[1], dtype=float) > FOLDED_VALUES):
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(FOLDED[node.op](*values))
    except (ValueError, TypeError):  # which TensorFlow refuses, too
        return None


def _per_channel(value: NDArray[Any] | None) -> Values | None:
    """Returns float64 [] or [3] of a constant, the average of an image's; None of others."""
    if value is None or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        return None
    if value.size == 1:
        return np.asarray(value, np.float64).reshape(())
    if not value.size or value.shape[-1] != 3:
        return None
    means: Values = np.asarray(value, np.float64).reshape(-1, 3).mean(axis=0)
    return means


@dataclass(frozen=True)
class After:
    """What becomes of a node's values: `affine` of them, by nodes of the ops `passed`.

    `reader` is the op of the one node that reads them then; None if several do. `batched` is
    whether they become a batch, so that they are a single image.
    """

    affine: Affine
    passed: tuple[str, ...]
    reader: str | None
    batched: bool

    @property
    def resized(self) -> bool:
        """Whether the graph resizes them, so that it takes images of any size."""
        return any(op in RESIZING for op in self.passed)

    @property
    def takes_raw(self) -> bool:
        """Whether the arithmetic looks like that for pixels 0..255.

        It divides by tens or hundreds, or subtracts as much. That for 0..1 does not.
        """
        factor, offset = (float(np.abs(v).max()) for v in (self.affine.factor, self.affine.offset))
        return 0 < factor < 0.05 or offset > 20 * factor > 0


def look_after(nodes: Nodes, name: str) -> After:
    """Folds the arithmetic that follows a node, as long as one node alone reads each."""
    affine = UNCHANGED
    passed: list[str] = []
    batched = False
    while True:
        readers = [n for n in nodes.values() if name in map(node_name, _data(n))]
        readers = [reader for reader in readers if reader.op not in ASKING]
        if len(readers) != 1:
            return After(affine, tuple(passed), None, batched)
        (reader,) = readers
        step = _step(nodes, reader)
        if not step or step[0] != name:
            return After(affine, tuple(passed), reader.op, batched)
        passed.append(reader.op)
        batched |= _makes_batch(nodes, reader, _data(reader))
        affine, name = affine.then(step[1]), reader.name


def _data(node: NodeDef) -> list[str]:
    return [name for name in node.input if name[0] != "^"]


def read_preprocessing(nodes: Nodes, name: str) -> PartialPreprocessing:
    """Returns what the nodes before a node tell of its pixels.

    Mean and std are told only if the arithmetic starts at decoded pixels.

    Raises:
        GraphError: the size is not that of an image.
    """
    found = look_before(nodes, name)
    mean, std = (found.is_pixels and found.affine.scale()) or (None, None)
    return PartialPreprocessing(found.size, mean, std)


def fixed_size(node: NodeDef) -> Size | None:
    """Returns the (height, width) that the declared shape of a node fixes.

    Raises:
        GraphError: it is not that of an image.
    """
    sizes = sizes_of(node) or []
    sides = sizes[-3:-1] if len(sizes) in (3, 4) else []
    return _checked_size(sides) if sides and min(sides) > 0 else None


def _resized_size(nodes: Nodes, node: NodeDef) -> Size | None:
    value = constant(nodes, node.input[1])
    return None if value is None or value.dtype.kind != "i" else _checked_size(value.ravel())


def _checked_size(size: Any) -> Size:
    sides = tuple(int(side) for side in size)
    if len(sides) != 2 or not all(0 < side <= MAX_SIDE for side in sides):
        raise GraphError(f"the graph takes images of {sides} pixels, not (height, width)")
    return sides[0], sides[1]
