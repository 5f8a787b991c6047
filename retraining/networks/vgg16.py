"""VGG16 from the well-known `vgg16.npy`: reads the weights safely, makes the frozen GraphDef.

The file (of machrisaa/tensorflow-vgg, converted from Simonyan and Zisserman's Caffe model) is a
pickled dict {layer: [kernel, bias]} of 16 layers, for BGR pixels minus the means of ImageNet.
`numpy.load` would run any code that such a pickle names; the reader here makes arrays only. It
needs neither Keras nor all of TensorFlow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node
from retraining.graphs.scaling import Scaling, add_scaling
from retraining.networks.keras import BOTTLENECK
from retraining.networks.recipes import Choice, ChoiceError, ModelFiles, short_hash
from retraining.networks.unpickle import OPCODES, RestrictedUnpickler

FILE = "vgg16.npy"
SIDE = 224  # height and width in pixels
BLOCKS = (2, 2, 3, 3, 3)  # convolutions before each pooling
CONVOLUTIONS = [f"conv{b}_{n}" for b, count in enumerate(BLOCKS, 1) for n in range(1, count + 1)]
DENSE = ("fc6", "fc7")
LAYERS = [*CONVOLUTIONS, *DENSE, "fc8"]
VECTORS = {
    "relu6": "relu6",
    "relu7": "relu7",
    "fc1": "relu6",
    "fc2": "relu7",
}  # fc1 and fc2 are the names of Keras
MEANS = (103.939, 116.779, 123.68)  # of blue, green, red
MAX_BYTES = 1 << 30  # the file has 553 MB

Layer: TypeAlias = Sequence[NDArray[np.float32]]  # kernel and bias


@dataclass(frozen=True)
class Vgg16Recipe:
    """VGG16 with the weights of a vgg16.npy; `relu6` or `relu7` is the vector, 4,096 wide."""

    HELP: ClassVar[str] = "vgg16 for a vgg16.npy"

    choice: Choice = field(default_factory=Choice)
    name: str = "vgg16"
    folder: str = "vgg16"
    size: tuple[int, int] = (SIDE, SIDE)
    mean: float = 0.0  # the means are in the graph
    std: float = 1.0

    def __post_init__(self) -> None:
        self.choice.refuse(self.name, "height", "width", "mean", "std")
        if self.choice.layer and self.choice.layer not in VECTORS:
            raise ChoiceError(f"{self.name} gives relu6 or relu7, no {self.choice.layer!r}")

    @property
    def vector(self) -> str:
        """The node of the vectors."""
        return VECTORS[self.choice.layer or "relu6"]

    def weights_file(self, files: ModelFiles) -> Path:
        """Returns the vgg16.npy that the user names, or that in `files`. Raises ChoiceError."""
        if self.choice.weights:
            return Path(self.choice.weights)
        candidates = [files.model_dir / self.folder / FILE, files.model_dir / FILE]
        weights = next((path for path in candidates if path.is_file()), None)
        if weights is None:
            raise ChoiceError(
                f"there is no {FILE} in {files.model_dir}; put it there or name it with "
                f"`Choice.weights`, or use `NetworkSettings.architecture` keras:VGG16"
            )
        return weights

    def file_name_in(self, files: ModelFiles) -> str:
        """Returns a name that differs by weights and layer. Raises ChoiceError."""
        path = self.weights_file(files)
        try:
            return f"vgg16-{short_hash(path)}-{self.vector}.pb"
        except OSError as error:
            raise ChoiceError(f"cannot read the weights {path}: {error.strerror}") from error

    def build(self, files: ModelFiles) -> GraphDef:
        """Returns the GraphDef from `input` to `bottleneck`.

        Raises:
            ChoiceError: the file does not hold VGG16.
        """
        path = self.weights_file(files)
        try:
            return build_graph(read_npy(path), SIDE, self.vector)
        except ChoiceError as error:
            raise ChoiceError(
                f"{path} is not a usable {FILE}: {error}; put that of machrisaa/tensorflow-vgg "
                f"(553 MB) there, or use `NetworkSettings.architecture` keras:VGG16"
            ) from error


class _Array:
    """Stands for a pickled array; `state` comes from the file, and `value` checks it."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> NDArray[np.float32] | list[Any]:
        """Returns the float32 array, or the list of an array of objects. Raises ChoiceError."""
        try:
            _, shape, dtype, fortran, data = self.state
            if type(data) is list:
                return data
            data = data.encode("latin-1") if type(data) is str else data
            sizes = [int(size) for size in shape]
        except (TypeError, ValueError) as error:
            raise ChoiceError("it holds a malformed array") from error
        if type(dtype) is not _DType or dtype.name != "f4" or type(data) is not bytes:
            raise ChoiceError("it holds an array that is not float32")
        if min(sizes, default=1) < 1 or math.prod(sizes) * 4 != len(data):
            raise ChoiceError("it holds an array whose size and content differ")
        values = np.frombuffer(data, dtype.order + "f4")
        return values.reshape(sizes, order="F" if fortran else "C").astype(np.float32)


class _DType:
    """Stands for a pickled dtype."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if type(state) is tuple and state[1:2] == (">",) else "<"


class _Unpickler(RestrictedUnpickler):
    """Reads what NumPy writes for a dict of lists of arrays: Python 2 and 3, protocols 2 to 5."""

    names: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "dtype"): _DType,
        ("numpy", "ndarray"): None,
        # Bytes that Python 3 wrote for Python 2.
        ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
    }
    opcodes = OPCODES.union(
        ("BINSTRING", "SHORT_BINSTRING", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        ("FRAME", "MEMOIZE", "STACK_GLOBAL"),
    )
    max_bytes = MAX_BYTES
    error = ChoiceError


def read_npy(path: str | Path) -> dict[str, list[NDArray[np.float32]]]:
    """Reads {layer: [kernel, bias]} (float32) from a .npy file that holds such a pickled dict.

    Raises:
        ChoiceError: the file cannot be read, or holds anything else.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise ChoiceError("it is larger than 1 GiB")
        with open(path, "rb") as file:
            _check_header(file)
            root, _ = _Unpickler.read(file.read())
        (layers,) = root.value()
        return {str(name): [part.value() for part in parts] for name, parts in layers.items()}
    except ChoiceError:
        raise
    except OSError as error:
        raise ChoiceError(f"cannot read it: {error.strerror}") from error
    except Exception as error:  # the pickle may describe anything
        raise ChoiceError(f"it is damaged ({type(error).__name__})") from error


def _check_header(file: IO[bytes]) -> None:
    """Reads a .npy header; raises ChoiceError unless one pickled object follows."""
    try:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version[0]](file)
    except (ValueError, KeyError) as error:
        raise ChoiceError("it is not a .npy file") from error
    if shape != () or not dtype.hasobject:
        raise ChoiceError("it holds an array, not a dict of layers")


def build_graph(layers: Mapping[str, Layer], side: int = SIDE, vector: str = "relu6") -> GraphDef:
    """Returns the frozen GraphDef from `input` to `bottleneck`.

    `input` is float32 [n, side, side, 3], RGB of 0..255. `layers` come from read_npy; the vector is
    the output of fc6 or fc7, after ReLU.

    Raises:
        ChoiceError: a layer is missing or does not fit the layer before it.
    """
    if missing := sorted(set(LAYERS) - set(layers)):
        raise ChoiceError(f"it lacks the layer {missing[0]}")
    graph_def = GraphDef()
    graph_def.versions.producer = 30
    x = add_node(graph_def, "input", "Placeholder", dtype="float32", shape=(-1, side, side, 3))
    shape, taken = (side, side, 3), iter(CONVOLUTIONS)
    for block, count in enumerate(BLOCKS, 1):
        for _ in range(count):
            name = next(taken)
            shape = (*shape[:2], _check(name, layers[name], (3, 3, shape[2])))
            x = _add_layer(graph_def, name, x, layers[name])
        x = _add_pool(graph_def, f"pool{block}", x)
        shape = (shape[0] // 2, shape[1] // 2, shape[2])
    flat = add_constant(graph_def, "flat/shape", np.array([-1, math.prod(shape)], np.int32))
    x = add_node(graph_def, "flat", "Reshape", [x, flat], T="float32", Tshape="int32")
    width = math.prod(shape)
    for name in DENSE[: DENSE.index("fc" + vector[-1]) + 1]:
        width = _check(name, layers[name], (width,))
        x = _add_layer(graph_def, name, x, layers[name])
    add_node(graph_def, BOTTLENECK, "Identity", [x], T="float32")
    add_scaling(graph_def, Scaling(MEANS, flip=True))
    return graph_def


def _check(name: str, layer: Layer, inputs: tuple[int, ...]) -> int:
    """Returns the number of outputs of a layer; raises ChoiceError if it does not take `inputs`."""
    fits = len(layer) == 2 and layer[0].shape[:-1] == inputs
    fits = fits and layer[1].shape == layer[0].shape[-1:]
    if not fits or not all(np.isfinite(part).all() for part in layer):
        raise ChoiceError(f"its {name} does not fit the layer before, or is damaged")
    outputs: int = layer[0].shape[-1]
    return outputs


def _add_layer(graph_def: GraphDef, name: str, x: str, layer: Layer) -> str:
    """Adds a convolution, or a product if the kernel has two dimensions, then bias and ReLU."""
    kernel = add_constant(graph_def, f"{name}/weights", layer[0])
    bias = add_constant(graph_def, f"{name}/biases", layer[1])
    if layer[0].ndim == 4:
        options: dict[str, Any] = {"T": "float32", "strides": [1, 1, 1, 1], "padding": b"SAME"}
        x = add_node(graph_def, f"{name}/conv", "Conv2D", [x, kernel], **options)
    else:
        x = add_node(graph_def, f"{name}/product", "MatMul", [x, kernel], T="float32")
    x = add_node(graph_def, name, "BiasAdd", [x, bias], T="float32")
    relu = name.replace("fc", "relu") if name in DENSE else f"{name}/relu"
    return add_node(graph_def, relu, "Relu", [x], T="float32")


def _add_pool(graph_def: GraphDef, name: str, x: str) -> str:
    options: dict[str, Any] = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": b"VALID"}
    return add_node(graph_def, name, "MaxPool", [x], T="float32", **options)
