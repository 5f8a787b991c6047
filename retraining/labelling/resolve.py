"""Decides which node of a graph to feed, with what, and which node to read.

In this order: what the user says, what the graph says of itself, what its nodes tell, what is usual
for such graphs. The last is an assumption, which the answer puts into words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from retraining.graphs.batches import mixes_images
from retraining.graphs.front_end import (
    DECODERS,
    INTEGERS,
    PIXEL_TYPES,
    PLACEHOLDERS,
    Affine,
    After,
    Before,
    Nodes,
    before,
    fixed_size,
    look_after,
    look_before,
)
from retraining.graphs.messages import GraphDef, NodeDef
from retraining.graphs.nodes import (
    GraphError,
    constant,
    kind_of,
    node_name,
    nodes_by_name,
    sizes_of,
    type_of,
)
from retraining.graphs.preprocessing import (
    ANY_SIZE,
    PartialPreprocessing,
    PerChannel,
    Preprocessing,
    Size,
    can_scale,
    channels,
    spelled,
)
from retraining.graphs.read import accepts_images
from retraining.graphs.safety import check_frozen
from retraining.graphs.surgery import ancestors

if TYPE_CHECKING:
    from retraining.networks.registry import Network

Scale: TypeAlias = tuple[PerChannel, PerChannel]  # (mean, std)

KNOWN_OUTPUTS = ("final_result", "softmax", "MobilenetV1/Predictions/Reshape_1")
FRONT_END = "Mul"  # the last node of the 2015 graph's front end
KNOWN_INPUTS = (FRONT_END, "input", "Placeholder")  # of graphs that read images by other ops
UNIT_SCALE: Scale = (0.0, 255.0)  # pixels 0..1, as the classic label_image.py feeds
RAW_SCALE: Scale = (0.0, 1.0)  # pixels 0..255


@dataclass(frozen=True)
class Overrides:
    """What the user says about a graph; None where the graph itself tells."""

    input_layer: str | None = None
    output_layer: str | None = None
    input_height: int | None = None
    input_width: int | None = None
    input_mean: PerChannel | None = None
    input_std: PerChannel | None = None
    allow_unsafe_ops: bool = False


@dataclass(frozen=True)
class Ends:
    """How to use a graph: feed `input`, read `output`.

    The input takes the bytes of an image file if `preprocessing` is None, else pixels. It takes a
    batch of images [n, height, width, 3], unless `single` is the rank of the one image that it
    takes at a time: 4 with n = 1, or 3. `assumed` says what neither the user nor the graph tells.
    """

    input: str
    output: str
    preprocessing: Preprocessing | None
    assumed: tuple[str, ...] = ()
    single: int | None = None


def resolve(graph_def: GraphDef, overrides: Overrides, described: Mapping[str, Any]) -> Ends:
    """Returns the Ends of a graph; `described` is its own description, empty if it has none.

    Raises:
        GraphError: a fact is missing, or the user contradicts the graph. The text names the
            setting.
    """
    nodes = nodes_by_name(graph_def)
    output = _named(nodes, overrides.output_layer, "output_layer") or _known_output(
        nodes, described
    )
    wanted = ancestors(nodes, output)
    used = {name: node for name, node in nodes.items() if name in wanted}
    check_frozen("the graph", used.values())
    name = _named(nodes, overrides.input_layer, "input_layer") or _find_input(
        used, output, described.get("input")
    )
    if not described.get("second"):  # whose two inputs are the classifier's business
        _check_alone(used, output, name)
    if type_of(nodes[name]) == "string":
        return Ends(name, output, None)
    own, around = name == described.get("input"), used if name in used else nodes
    about = _About.of(around, name, () if own else _known(around))
    known = Preprocessing.of(described) if own else PartialPreprocessing(about.size, None, None)
    preprocessing, assumed = _preprocessing(about, known, overrides)
    _check_range(kind_of(nodes[name]), preprocessing)
    ends = Ends(name, output, preprocessing, assumed)
    if not described.get("second"):  # of which the classifier refuses any other size
        _check_size(graph_def, ends, known.size or about.usual, about.fixed)
    batches = about.rank == 4 and preprocessing.size != ANY_SIZE
    if not own:
        batches &= _takes_batches(used, name)
    return ends if batches else replace(ends, single=about.rank)


def _check_alone(nodes: Nodes, output: str, name: str) -> None:
    """Raises GraphError if an output needs values of other placeholders than the input."""
    rest = ancestors(nodes, output, stop=name) - {name}
    others = sorted(each for each in rest if nodes[each].op in ("Placeholder", "PlaceholderV2"))
    if name in nodes and others:
        raise GraphError(
            f"besides the image at {name!r}, the graph needs a value for {others[0]!r}; "
            f"freeze it with a constant there"
        )


def _takes_batches(nodes: Nodes, name: str) -> bool:
    """Returns whether images can share a batch; a known network takes more than one, too."""
    known = bool(_known(nodes))
    declared = sizes_of(nodes[name]) if name in nodes else None
    count = declared[0] if declared else -1
    return (count == -1 or (known and count == 1)) and not mixes_images(nodes, name, one_row=known)


def _named(nodes: Nodes, given: str | None, setting: str) -> str | None:
    if given is not None and node_name(given) not in nodes:
        raise GraphError(f"the graph has no node {given!r}; see `Overrides.{setting}`")
    if given is not None and given.partition(":")[2] not in ("", "0"):
        raise GraphError(
            f"only the first output of a node can be used, not {given!r}; name another node with "
            f"`Overrides.{setting}`"
        )
    return None if given is None else node_name(given)


def _known_output(nodes: Nodes, described: Mapping[str, Any]) -> str:
    for name in (described["output"],) if described else KNOWN_OUTPUTS:
        if name in nodes:
            return str(name)
    raise GraphError(
        "cannot tell which node of the graph gives the probabilities; name it with "
        "`Overrides.output_layer`"
    )


def _find_input(used: Nodes, output: str, own: str | None) -> str:
    """Returns the node to feed: a placeholder of images, the 2015 front end, or bytes.

    `used` are the nodes that the output needs, `own` is the input that the graph names itself.
    """
    if own in used and own is not None:
        return own
    likely = {name: _likeness(used, node) for name, node in used.items()}
    best = max(likely.values())
    images = [name for name, likeness in likely.items() if likeness == best > 0]
    read = {node_name(n.input[0]) for n in used.values() if n.op in DECODERS and n.input}
    contents = [
        name
        for name, node in used.items()
        if type_of(node) == "string" and (node.op in PLACEHOLDERS or name in read)
    ]
    if images:
        rest = ancestors(used, output, stop=images[0])
        return _only(images + [name for name in contents if name in rest])
    if contents and FRONT_END in used:
        found, rest = look_before(used, FRONT_END), ancestors(used, output, stop=FRONT_END)
        if found.size and found.is_pixels and found.affine.scale() and rest.isdisjoint(contents):
            return FRONT_END
    fallback = [name for name in KNOWN_INPUTS if name in used and used[name].op not in PLACEHOLDERS]
    return _only(contents or fallback[:1])


def _only(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise GraphError(
            "cannot tell which node of the graph takes images; name it with `Overrides.input_layer`"
        )
    raise GraphError(
        f"several nodes of the graph take images: {', '.join(names)}; name one with "
        f"`Overrides.input_layer`"
    )


def _likeness(nodes: Nodes, node: NodeDef) -> int:
    """Returns how likely a node is to be fed with images: 0 (it is not) to 3."""
    computed = node.op == "PlaceholderWithDefault" and constant(nodes, node.input[0]) is None
    vectors = "BottleneckInput" in node.name  # as the classic retrain.py calls it
    if node.op not in PLACEHOLDERS or computed or vectors or type_of(node) not in PIXEL_TYPES:
        return 0
    sizes = sizes_of(node)
    if sizes is None:
        return int("MatMul" not in (look_after(nodes, node.name).reader or ""))
    if len(sizes) == 4:
        return 3 if sizes[3] in (3, -1) else 0
    return 2 if len(sizes) == 3 and sizes[2] == 3 else 0


@dataclass(frozen=True)
class _About:
    """What the nodes around an input tell of it.

    `size` is None if they do not tell it, and `fixed` if the input itself declares it. `usual` is
    the size of a known network. `scale` is (mean, std), `certain` if it follows from the nodes.
    """

    rank: int
    resized: bool
    fixed: bool
    size: Size | None
    usual: Size | None
    scale: Scale
    certain: bool

    @classmethod
    def of(cls, nodes: Nodes, name: str, networks: Sequence["Network"]) -> "_About":
        found, after = look_before(nodes, name), look_after(nodes, name)
        own = found.is_pixels and found.affine.scale()
        sizes = {(network.size, network.size) for network in networks}
        dimensions = sizes_of(nodes[name])
        single = len(dimensions) == 3 if dimensions else after.batched
        return cls(
            3 if single else 4,
            after.resized,
            fixed_size(nodes[name]) is not None,
            found.size,
            sizes.pop() if len(sizes) == 1 and not after.resized else None,
            own or _usual_scale(nodes, found, name, networks),
            bool(own),
        )


def _known(nodes: Nodes) -> list["Network"]:
    """Returns the base networks whose nodes a graph has; of MobileNets all, for each size.

    TensorFlow's importer puts `import/` before the names, unless it is told another prefix.
    """
    from retraining.networks.registry import NETWORKS  # a graph of ours does not need them

    names = {name.removeprefix("import/") for name in nodes}
    names |= {f"{name.split('/')[0]}/Predictions/Reshape" for name in names}  # of MobileNets
    return [network for network in NETWORKS.values() if network.bottleneck in names]


def _usual_scale(nodes: Nodes, found: Before, name: str, networks: Sequence["Network"]) -> Scale:
    """Returns the (mean, std) that is usual where the nodes do not tell.

    It is that of a known network, less the arithmetic between the image and the network; else that
    for which the arithmetic after the image is made; else pixels are 0..1. If the image enters
    earlier than at the node `name`, the arithmetic between the two follows.
    """
    starts = found.source.op in PLACEHOLDERS
    after = look_after(nodes, found.source.name if starts else name)
    if kind_of(found.source if starts else nodes[name]) in INTEGERS:
        mean, std = RAW_SCALE
    else:
        mean, std = RAW_SCALE if after.takes_raw else UNIT_SCALE
        if networks:
            mean, std = _of_network(networks[0], after) or (mean, std)
    there = Affine.of(mean, std)
    return (there.then(found.affine) if starts else there).scale() or UNIT_SCALE


def _of_network(network: "Network", after: After) -> Scale | None:
    """Returns the scale of a network before the arithmetic `after` the image; None if it fits none.

    It fits if it reaches the network, whose first op convolves, and leaves a mean of 0..255. What
    comes within a hundredth of pixels 0..255 is made for these.
    """
    reaches = "Conv2D" in (after.reader or "Conv2D")
    mean, std = before((network.mean, network.std), after.affine)
    if after.takes_raw:
        offset, factor = np.asarray(mean), np.asarray(std)
        near = (np.abs(offset) <= 2.55).all() and (np.abs(factor - 1) <= 0.01).all()
        if near or not reaches:
            return RAW_SCALE
    return (mean, std) if all(0 <= value <= 255 for value in channels(mean)) else None


def _preprocessing(
    about: _About, known: PartialPreprocessing, overrides: Overrides
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Returns the preprocessing, as overridden, told or usual, and what is assumed in it."""
    size, assumed_size = _size(about, known.size, overrides)
    unknown = [] if assumed_size is None else ["its image size"]
    assumed = assumed_size or ""
    mean = known.mean if overrides.input_mean is None else overrides.input_mean
    std = known.std if overrides.input_std is None else overrides.input_std
    if mean is None or std is None:
        mean = about.scale[0] if mean is None else mean
        std = about.scale[1] if std is None else std
        if not about.certain:
            unknown.append("how pixels are scaled")
            assumed += (
                f" `Overrides.input_mean` {spelled(mean)} `Overrides.input_std` {spelled(std)}"
            )
    check_scale(mean, std)
    notes = (f"this graph does not specify {' and '.join(unknown)}; assuming{assumed}",)
    if isinstance(known, Preprocessing):  # which tells the kernel and the orientation, too
        return replace(known, size=size, mean=mean, std=std), ()
    return Preprocessing(size, mean, std), notes if unknown else ()


def check_scale(mean: PerChannel, std: PerChannel) -> None:
    """Raises GraphError if pixels cannot be scaled so."""
    if not can_scale(mean, std):
        raise GraphError(
            f"pixels cannot be scaled by `Overrides.input_mean` {spelled(mean)} and "
            f"`Overrides.input_std` {spelled(std)}"
        )


def _check_range(kind: str | None, preprocessing: Preprocessing) -> None:
    """Raises GraphError if scaled pixels do not fit an input of integers, rounded as they are."""
    if kind not in INTEGERS:
        return
    limits = np.iinfo(kind.removeprefix("q"))
    pixels = np.array([[0.0], [255.0]])
    values = np.rint((pixels - preprocessing.mean) / np.asarray(preprocessing.std))
    if limits.min <= values.min() and values.max() <= limits.max:
        return
    raise GraphError(
        f"the input takes {kind}, {limits.min} to {limits.max}, but pixels would become "
        f"{values.min():g} to {values.max():g} with `Overrides.input_mean` "
        f"{spelled(preprocessing.mean)} and `Overrides.input_std` {spelled(preprocessing.std)}"
    )


def _size(about: _About, own: Size | None, overrides: Overrides) -> tuple[Size, str | None]:
    """Returns the size, and what is assumed of it; None if nothing is."""
    asked = overrides.input_height, overrides.input_width
    if not own and about.resized and asked == (None, None):
        return ANY_SIZE, None
    height, width = (
        value or usual
        for value, usual in zip(asked, own or about.usual or (None, None), strict=True)
    )
    if not height or not width:
        raise GraphError(
            "the graph does not specify its image size; give `Overrides.input_height` and "
            "`Overrides.input_width`"
        )
    if own or None not in asked:
        return (height, width), None
    return (height, width), f" `Overrides.input_height` {height} `Overrides.input_width` {width}"


def _check_size(graph_def: GraphDef, ends: Ends, own: Size | None, fixed: bool) -> None:
    """Raises GraphError if the user chose another size than the graph's own, which it must have."""
    size = ends.preprocessing.size if ends.preprocessing else None
    if not own or not size or size == own:
        return
    if fixed or not accepts_images(graph_def, ends.input, ends.output, size):
        raise GraphError(
            f"the graph takes images of {own[0]} x {own[1]} pixels; drop "
            f"`Overrides.input_height` and `Overrides.input_width`"
        )
