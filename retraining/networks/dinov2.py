"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193): a frozen GraphDef of a `model.safetensors`.

The vision transformers ViT-S/14 and ViT-B/14, with the names and shapes of transformers'
`Dinov2Model`. The vector is the class token and the mean of the patch tokens side by side, as in
the paper's linear evaluation. Files of the variant with registers (Darcet et al. 2023,
arXiv:2309.16588) are told by their tensors. Needs neither torch nor the `safetensors` package.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_constant, add_node
from retraining.graphs.preprocessing import ANTIALIASED_CUBIC
from retraining.networks.keras import BOTTLENECK
from retraining.networks.recipes import Choice, ChoiceError, ModelFiles, short_hash
from retraining.networks.safetensors import Entry, SafetensorsError, read_entries, read_tensors
from retraining.system.download import DownloadError, Remote, fetch

FILE = "model.safetensors"
SIDE = 224  # height and width in pixels
HEAD_WIDTH = 64  # of each attention head
MOST_REGISTERS = 16  # published networks have 4; a million would fill the memory
EPSILON = 1e-6  # of the layer norms (layer_norm_eps of Dinov2Config)
OFFSET = 0.1  # in the scale of positions (interpolate_offset, dinov2/models/vision_transformer.py)
CUBIC, CUBIC_ANTIALIASED = -0.75, -0.5  # torch's coefficients of the bicubic kernel
PREFIXES = ("dinov2.", "dinov2_with_registers.")  # of the names in files with a classifier
# ImageNet's, for pixels 0..255 (IMAGENET_DEFAULT_MEAN and _STD of dinov2/data/transforms.py)
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Names of tensors, or parts of them.
CLASS, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection"
REGISTERS = "embeddings.register_tokens"
ATTENTION = [f"attention.attention.{part}" for part in ("query", "key", "value")]
OUTPUT = "attention.output.dense"
PARTS = ("weight", "bias")
SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")

Weights: TypeAlias = Mapping[str, NDArray[np.float32]]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a vision transformer; `grid` is the side of its position embeddings."""

    width: int
    blocks: int
    grid: int = 37
    patch: int = 14
    registers: int = 0

    def shapes(self) -> dict[str, Shape]:
        """Returns the shapes of all tensors that the vector depends on, by their names."""
        width = self.width
        shapes: dict[str, Shape] = {
            CLASS: (1, 1, width),
            POSITIONS: (1, 1 + self.grid**2, width),
            f"{PATCHES}.weight": (width, 3, self.patch, self.patch),
            f"{PATCHES}.bias": (width,),
            **_layer("layernorm", (width,)),
        }
        if self.registers:
            shapes[REGISTERS] = (1, self.registers, width)
        for number in range(self.blocks):
            block = f"encoder.layer.{number}"
            for part in ("norm1", "norm2"):
                shapes |= _layer(f"{block}.{part}", (width,))
            for part in (*ATTENTION, OUTPUT):
                shapes |= _layer(f"{block}.{part}", (width, width))
            shapes |= _layer(f"{block}.mlp.fc1", (4 * width, width))
            shapes |= _layer(f"{block}.mlp.fc2", (width, 4 * width))
            for part in SCALES:
                shapes[f"{block}.{part}"] = (width,)
        return shapes


def _plain(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _layer(name: str, shape: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def find_sizes(shapes: Mapping[str, Shape]) -> Sizes:
    """Returns the Sizes of a network with tensors of these shapes; ignores tensors of other names.

    Raises:
        ChoiceError: a tensor is missing, or the shapes do not fit each other.
    """
    try:
        (_, _, width), (_, positions, _) = (shapes[name] for name in (CLASS, POSITIONS))
        patch, registers = shapes[f"{PATCHES}.weight"][-1], shapes.get(REGISTERS, (1, 0))[1]
    except (KeyError, ValueError, IndexError) as error:
        raise ChoiceError("it holds no DINOv2: a tensor of its embeddings is missing") from error
    blocks = sum(name.startswith("encoder.") and name.endswith("norm1.bias") for name in shapes)
    sizes = Sizes(width, blocks, math.isqrt(max(positions - 1, 0)), patch, registers)
    for name, shape in sizes.shapes().items():
        if name not in shapes:
            raise ChoiceError(f"it lacks the tensor {name}")
        if shapes[name] != shape or 0 in shape:
            raise ChoiceError(f"its {name} has the shape {shapes[name]}, not {shape}")
    return sizes


# --- The graph -----------------------------------------------------------------------------------


def build_graph(weights: Weights, side: int = SIDE) -> GraphDef:
    """Returns the frozen GraphDef from `input` to `bottleneck`.

    `input` is float32 [n, side, side, 3] of `(pixel - MEAN) / STD`; `bottleneck` float32
    [n, 2 * width]. `weights` are named as Sizes.shapes names them.

    Scales and shifts of the layer norms, the layer scales and the scale of attention are part of
    the matrix products beside them. Each token is a row of a matrix, so that a product and its
    bias are one operation.

    Raises:
        ChoiceError: a tensor is missing, has the wrong shape, or holds a number that is not finite.
    """
    sizes = find_sizes({name: value.shape for name, value in weights.items()})
    if broken := [n for n, value in weights.items() if not np.isfinite(value).all()]:
        raise ChoiceError(f"its {broken[0]} holds numbers that are not finite")
    builder = _Builder(GraphDef(), weights, sizes, side // sizes.patch)
    builder.graph_def.versions.producer = 30
    x = builder.embed(side)
    for number in range(sizes.blocks):
        x = builder.attend(x, number)
        x = builder.transform(x, number)
    builder.add_vector(x)
    return builder.graph_def


@dataclass(frozen=True)
class _Builder:
    """Appends the parts of a network to a GraphDef. `grid` is the number of patches on a side."""

    graph_def: GraphDef
    weights: Weights
    sizes: Sizes
    grid: int

    @property
    def tokens(self) -> int:
        """The class token, the registers and the patches."""
        return 1 + self.sizes.registers + self.grid**2

    @property
    def heads(self) -> int:
        return self.sizes.width // HEAD_WIDTH or 1

    def node(self, name: str, op: str, inputs: list[str], **attributes: Any) -> str:
        return add_node(self.graph_def, name, op, inputs, T="float32", **attributes)

    def constant(self, name: str, value: Any, kind: type = np.float32) -> str:
        return add_constant(self.graph_def, name, np.asarray(value, kind))

    def reshape(self, name: str, x: str, *shape: int) -> str:
        target = self.constant(f"{name}/shape", shape, np.int32)
        return self.node(name, "Reshape", [x, target], Tshape="int32")

    def transpose(self, name: str, x: str) -> str:
        """Swaps the second and the third of four axes."""
        order = self.constant(f"{name}/perm", (0, 2, 1, 3), np.int32)
        return self.node(name, "Transpose", [x, order], Tperm="int32")

    def embed(self, side: int) -> str:
        """Adds the patches' embeddings and all that is added to them: [n * tokens, width].

        A row of zeros before the patches makes room for the class token and the registers.
        """
        shape = (-1, side, side, 3)
        x = add_node(self.graph_def, "input", "Placeholder", dtype="float32", shape=shape)
        kernel = self.weights[f"{PATCHES}.weight"].transpose(2, 3, 1, 0)
        kernel_name, patch = self.constant("patches/weights", kernel), self.sizes.patch
        steps = [1, patch, patch, 1]
        x = self.node("patches", "Conv2D", [x, kernel_name], strides=steps, padding=b"VALID")
        x = self.reshape("patches/rows", x, -1, self.grid**2, self.sizes.width)
        before = self.constant(
            "tokens/before", [[0, 0], [1 + self.sizes.registers, 0], [0, 0]], np.int32
        )
        x = self.node("tokens/padded", "Pad", [x, before], Tpaddings="int32")
        added = self.constant("tokens/positions", self.added_tokens())
        x = self.node("tokens", "AddV2", [x, added])
        return self.reshape("tokens/rows", x, -1, self.sizes.width)

    def added_tokens(self) -> NDArray[np.float64]:
        """Returns what is added to the patches' products, float64 [1, tokens, width]."""
        width = self.sizes.width
        first, *rest = self.weights[POSITIONS].reshape(-1, width).astype(np.float64)
        positions = resized_positions(np.array(rest), self.grid, bool(self.sizes.registers))
        registers = self.weights.get(REGISTERS, np.zeros((1, 0, width)))
        parts = [self.weights[CLASS][0] + first, registers[0]]
        parts.append(positions + self.weights[f"{PATCHES}.bias"])
        return np.concatenate(parts)[None]

    def normalise(self, name: str, x: str) -> str:
        """Adds `(x - mean) / sqrt(variance + epsilon)` of each row; scale and shift follow."""
        last = self.constant(f"{name}/axis", [-1], np.int32)
        options: dict[str, Any] = {"keep_dims": True, "Tidx": "int32"}
        mean = self.node(f"{name}/mean", "Mean", [x, last], **options)
        centred = self.node(f"{name}/centred", "Sub", [x, mean])
        squares = self.node(f"{name}/squares", "Square", [centred])
        variance = self.node(f"{name}/variance", "Mean", [squares, last], **options)
        epsilon = self.constant(f"{name}/epsilon", EPSILON)
        variance = self.node(f"{name}/more", "AddV2", [variance, epsilon])
        factor = self.node(f"{name}/factor", "Rsqrt", [variance])
        return self.node(name, "Mul", [centred, factor])

    def product(self, name: str, x: str, weights: Any, bias: Any) -> str:
        """Adds `x @ weights + bias`."""
        weights_name = self.constant(f"{name}/weights", weights)
        x = self.node(f"{name}/product", "MatMul", [x, weights_name])
        bias_name = self.constant(f"{name}/biases", bias)
        return self.node(name, "BiasAdd", [x, bias_name])

    def linear(
        self, name: str, norm: str | None = None, scale: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns (weights [in, out], bias [out]) of a layer, float64.

        `norm` is the layer norm before it, `scale` the factors after it, which they contain.
        """
        weights, bias = (self.weights[f"{name}.{p}"].astype(np.float64) for p in PARTS)
        weights = weights.T
        if norm:
            bias = bias + self.weights[f"{norm}.bias"] @ weights
            weights = weights * self.weights[f"{norm}.weight"][:, None]
        if scale:
            weights, bias = weights * self.weights[scale], bias * self.weights[scale]
        return weights, bias

    def attend(self, x: str, number: int) -> str:
        """Adds the attention of a block: x + scale * attention(norm(x))."""
        source, name = f"encoder.layer.{number}", f"block_{number}/attention"
        normal = self.normalise(f"{name}/norm", x)
        parts = [self.linear(f"{source}.{part}", f"{source}.norm1") for part in ATTENTION]
        factor = (self.sizes.width / self.heads) ** -0.5
        parts[0] = parts[0][0] * factor, parts[0][1] * factor
        joined = (np.concatenate(values, axis=-1) for values in zip(*parts, strict=True))
        values = self.mix(name, self.product(f"{name}/qkv", normal, *joined))
        last = self.linear(f"{source}.{OUTPUT}", scale=f"{source}.{SCALES[0]}")
        values = self.product(f"{name}/output", values, *last)
        return self.node(name, "AddV2", [x, values])

    def mix(self, name: str, qkv: str) -> str:
        """Adds softmax(q @ k) @ v of each head, from rows of q, k and v to rows of values."""
        heads, width, tokens = self.heads, self.sizes.width, self.tokens
        x = self.reshape(f"{name}/split", qkv, -1, tokens, 3 * heads, width // heads)
        x = self.transpose(f"{name}/heads", x)
        query, key, value = (
            self.slice(f"{name}/{part}", x, number * heads, (number + 1) * heads)
            for number, part in enumerate(("query", "key", "value"))
        )
        scores = self.node(f"{name}/scores", "BatchMatMulV2", [query, key], adj_y=True)
        shares = self.node(f"{name}/shares", "Softmax", [scores])
        x = self.node(f"{name}/mixed", "BatchMatMulV2", [shares, value])
        x = self.transpose(f"{name}/joined", x)
        return self.reshape(f"{name}/values", x, -1, width)

    def slice(self, name: str, x: str, start: int, end: int) -> str:
        """Adds x[:, start:end]."""
        places = {"begin": (0, start), "end": (0, end), "strides": (1, 1)}
        inputs = [self.constant(f"{name}/{k}", at, np.int32) for k, at in places.items()]
        masks = {"begin_mask": 1, "end_mask": 1}
        return self.node(name, "StridedSlice", [x, *inputs], Index="int32", **masks)

    def transform(self, x: str, number: int) -> str:
        """Adds the two layers of a block: x + scale * fc2(gelu(fc1(norm(x))))."""
        source, name = f"encoder.layer.{number}", f"block_{number}/mlp"
        normal = self.normalise(f"{name}/norm", x)
        first = self.linear(f"{source}.mlp.fc1", f"{source}.norm2")
        hidden = self.gelu(f"{name}/gelu", self.product(f"{name}/fc1", normal, *first))
        second = self.linear(f"{source}.mlp.fc2", scale=f"{source}.{SCALES[1]}")
        return self.node(name, "AddV2", [x, self.product(f"{name}/fc2", hidden, *second)])

    def gelu(self, name: str, x: str) -> str:
        """Adds (x / 2) * (erf(x * sqrt(1/2)) + 1), the form that LiteRT's converters fuse."""
        root, one, half = (
            self.constant(f"{name}/{k}", v)
            for k, v in (("root", math.sqrt(0.5)), ("one", 1), ("half", 0.5))
        )
        y = self.node(f"{name}/scaled", "Mul", [x, root])
        y = self.node(f"{name}/erf", "Erf", [y])
        y = self.node(f"{name}/more", "AddV2", [y, one])
        x = self.node(f"{name}/halved", "Mul", [x, half])
        return self.node(name, "Mul", [x, y])

    def add_vector(self, x: str) -> None:
        """Adds the last layer norm, the class token and the mean of the patches, side by side."""
        x = self.normalise("norm", x)
        scale, shift = (self.constant(f"norm/{p}", self.weights[f"layernorm.{p}"]) for p in PARTS)
        x = self.node("norm/scaled", "Mul", [x, scale])
        x = self.node("norm/shifted", "AddV2", [x, shift])
        x = self.reshape("norm/tokens", x, -1, self.tokens, self.sizes.width)
        first = self.slice("class/token", x, 0, 1)
        first = self.reshape("class", first, -1, self.sizes.width)
        patches = self.slice("mean/patches", x, 1 + self.sizes.registers, self.tokens)
        middle = self.constant("mean/axis", [1], np.int32)
        mean = self.node("mean", "Mean", [patches, middle], Tidx="int32")
        axis = self.constant("vector/axis", 1, np.int32)
        x = self.node("vector", "ConcatV2", [first, mean, axis], N=2, Tidx="int32")
        self.node(BOTTLENECK, "Identity", [x])


def resized_positions(
    positions: NDArray[np.float64], grid: int, has_registers: bool
) -> NDArray[np.float64]:
    """Returns position embeddings [grid * grid, width] of those of another grid, [n, width].

    As interpolate_pos_encoding of the original repository: bicubic, with the scale
    (grid + 0.1) / old and no antialiasing, but with registers grid / old and antialiasing.
    """
    old = math.isqrt(len(positions))
    if grid == old:
        return positions
    matrix = _cubic_matrix(old, grid, 0 if has_registers else OFFSET, has_registers)
    square = positions.reshape(old, old, -1)
    resized: NDArray[np.float64] = np.einsum(
        "ai,bj,ijc->abc", matrix, matrix, square, optimize=True
    )
    return resized.reshape(grid * grid, -1)


def _cubic_matrix(old: int, new: int, offset: float, antialias: bool) -> NDArray[np.float64]:
    """Returns float64 [new, old]: the weights of torch's bicubic interpolation along an axis."""
    step = old / (new + offset)
    centres = (np.arange(new) + 0.5) * step - 0.5
    matrix = np.zeros((new, old))
    if antialias:  # the kernel is as wide as the step; what lies outside is left out
        distances = (np.arange(old) - centres[:, None]) / max(step, 1)
        matrix = _cubic(distances, CUBIC_ANTIALIASED)
        matrix /= matrix.sum(axis=1, keepdims=True)
        return matrix
    for place in range(-1, 3):  # neighbours outside are those at the border
        indexes = np.floor(centres).astype(int) + place
        rows = (np.arange(new), indexes.clip(0, old - 1))
        np.add.at(matrix, rows, _cubic(indexes - centres, CUBIC))
    return matrix


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Returns Keys' cubic kernel (1981, doi:10.1109/TASSP.1981.1163711) with coefficient `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    values: NDArray[np.float64] = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return values


# --- The recipes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dinov2Recipe:
    """DINOv2 with the weights of a model.safetensors."""

    HELP: ClassVar[str] = (
        "dinov2_small and dinov2_base for a model.safetensors of Hugging Face, or for that in "
        "`NetworkSettings.model_file`"
    )
    NAME: ClassVar[str]
    SIZES: ClassVar[Sizes]

    choice: Choice = field(default_factory=Choice)
    size: tuple[int, int] = (SIDE, SIDE)
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    kernel: str = ANTIALIASED_CUBIC

    def __post_init__(self) -> None:
        self.choice.refuse(self.name, "weights", "layer", "height", "width", "mean", "std")

    @property
    def name(self) -> str:
        return self.NAME

    @property
    def folder(self) -> str:
        return self.NAME

    @property
    def remote(self) -> Remote:
        """Where the weights are published."""
        source = f"https://huggingface.co/facebook/{self.name.replace('_', '-')}"
        return Remote((f"{source}/resolve/main/{FILE}",))

    def weights_file(self, files: ModelFiles) -> Path:
        """Returns the file that the user names, or that in `files`, downloaded if it is missing.

        Raises:
            ChoiceError: it is missing and cannot be downloaded.
        """
        if self.choice.model_file:
            return Path(self.choice.model_file)
        path = files.model_dir / self.folder / FILE
        if path.is_file():
            return path
        reason = "`NetworkSettings.offline` forbids downloading it"
        if not files.offline:
            try:
                return fetch(self.remote, path, files.observer, self.check)
            except DownloadError as error:
                reason = f"it cannot be downloaded ({error})"
        raise ChoiceError(
            f"{self.name} needs {FILE} in {path.parent}, and {reason}; put the file of "
            f"{self.remote.urls[0]} there, or name it with `NetworkSettings.model_file`"
        )

    def check(self, path: Path) -> dict[str, Entry]:
        """Returns {name: Entry} of the tensors in a file; the names have no prefix.

        Raises:
            SafetensorsError, ChoiceError: the file is damaged, or holds another network.
        """
        entries = {_plain(name): entry for name, entry in read_entries(path).items()}
        shapes = {name: entry.shape for name, entry in entries.items()}
        sizes = find_sizes(shapes)
        if sizes != replace(self.SIZES, registers=sizes.registers):
            raise ChoiceError(f"it holds another network, of {sizes.blocks} x {sizes.width}")
        if sizes.registers > MOST_REGISTERS:
            raise ChoiceError(f"it has {sizes.registers} registers, more than {MOST_REGISTERS}")
        return {name: entries[name] for name in sizes.shapes()}

    def file_name_in(self, files: ModelFiles) -> str:
        """Returns a name that differs by weights. Raises ChoiceError."""
        path = self.weights_file(files)
        try:
            return f"{self.name}-{short_hash(path)}.pb"
        except OSError as error:
            raise ChoiceError(f"cannot read the weights {path}: {error.strerror}") from error

    def build(self, files: ModelFiles) -> GraphDef:
        """Returns the GraphDef from `input` to `bottleneck`.

        Raises:
            ChoiceError: the file does not hold this network.
        """
        path = self.weights_file(files)
        try:
            entries = self.check(path)
            return build_graph(read_tensors(path, entries))
        except (ChoiceError, SafetensorsError) as error:
            raise ChoiceError(f"{path} is not a usable {FILE} of {self.name}: {error}") from error


class Dinov2Small(Dinov2Recipe):
    """ViT-S/14; its vector is 768 wide."""

    NAME = "dinov2_small"
    SIZES = Sizes(width=384, blocks=12)


class Dinov2Base(Dinov2Recipe):
    """ViT-B/14; its vector is 1,536 wide."""

    NAME = "dinov2_base"
    SIZES = Sizes(width=768, blocks=12)
