"""Records how an image becomes the pixels that a network takes, and builds the nodes that do it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import ANY_BATCH, IMAGE_BYTES, add_constant, add_node

Size: TypeAlias = tuple[int, int]  # (height, width) in pixels
PerChannel: TypeAlias = float | tuple[float, float, float]  # for all channels, or for R, G and B

ANY_SIZE: Size = (0, 0)  # images keep their size, for graphs that resize them

LEGACY_BILINEAR = "legacy_bilinear"  # the kernel of the 2015 graph
ANTIALIASED_CUBIC = "antialiased_cubic"  # Pillow's bicubic kernel, before its rounding
EXIF = "exif"  # turn images upright by their EXIF orientation
# What a raw file of a camera shows: the preview in it, or what its sensor saw.
PREVIEW, DEVELOP = RAW_WAYS = ("preview", "develop")


class PreprocessingError(RetrainingError):
    """A network takes pixels that this version cannot make. The text says which."""


@dataclass(frozen=True)
class PartialPreprocessing:
    """A Preprocessing with None for its unknown parts."""

    size: Size | None
    mean: PerChannel | None
    std: PerChannel | None


@dataclass(frozen=True)
class Preprocessing(PartialPreprocessing):
    """Feed `(pixel - mean) / std`, float32 [n, *size, 3]; `size` is (height, width).

    `kernel` names how images are resized, `orientation` how they are turned, `raw` what is taken of
    raw files, one of RAW_WAYS. Fingerprints and descriptions name these only where they differ from
    the defaults, as older ones do not.
    """

    size: Size
    mean: PerChannel
    std: PerChannel
    kernel: str = LEGACY_BILINEAR
    orientation: str = EXIF
    raw: str = PREVIEW

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Preprocessing":
        """Returns the Preprocessing in the description of a network; see `describe`."""
        height, width = description["size"]
        return cls(
            (height, width),
            per_channel(description["mean"]),
            per_channel(description["std"]),
            kernel=str(description.get("kernel", LEGACY_BILINEAR)),
            orientation=str(description.get("orientation", EXIF)),
            raw=str(description.get("raw", PREVIEW)),
        )

    def describe(self) -> dict[str, Any]:
        """Returns the part of a network's description that tells how to feed it."""
        return {
            "size": list(self.size),
            "mean": self.mean,
            "std": self.std,
            **dict(self._differences()),
        }

    def facts(self) -> tuple[Any, ...]:
        """Returns all that pixels depend on besides the image, for fingerprints."""
        return (self.size, self.mean, self.std, *self._differences())

    def _differences(self) -> list[tuple[str, str]]:
        usual = {"kernel": LEGACY_BILINEAR, "orientation": EXIF, "raw": PREVIEW}
        return [(n, getattr(self, n)) for n, value in usual.items() if getattr(self, n) != value]

    @property
    def offset(self) -> NDArray[np.float32]:
        """What to subtract from pixels: float32, [] or [3]."""
        return np.asarray(self.mean, np.float32)

    @property
    def factor(self) -> NDArray[np.float32]:
        """What to multiply the difference by: float32, [] or [3]."""
        return np.asarray(1 / np.asarray(self.std, np.float64), np.float32)

    def resizing(self) -> "Kernel":
        """Returns how to resize images.

        Raises:
            PreprocessingError: this version does not know the kernel, the orientation, or what to
                take of raw files.
        """
        if self.orientation != EXIF:
            raise PreprocessingError(f"this version turns images by {EXIF}, not {self.orientation}")
        if self.raw not in RAW_WAYS:
            raise PreprocessingError(
                f"this version takes of raw files {' or '.join(RAW_WAYS)}, not {self.raw}"
            )
        if self.kernel not in KERNELS:
            raise PreprocessingError(
                f"this version resizes images by {', '.join(KERNELS)}, not by {self.kernel}"
            )
        return KERNELS[self.kernel]


def per_channel(value: Any) -> PerChannel:
    """Returns a number, or three of a sequence, as read from a description.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if not isinstance(value, list | tuple):
        return float(value)
    red, green, blue = map(float, value)
    return red, green, blue


def channels(value: PerChannel) -> tuple[float, ...]:
    """Returns the number for all channels alone, or those of each."""
    return value if isinstance(value, tuple) else (value,)


def spelled(value: PerChannel) -> str:
    """Returns the number or numbers as short text."""
    numbers = [f"{number:g}" for number in channels(value)]
    return numbers[0] if len(numbers) == 1 else f"({', '.join(numbers)})"


LARGEST = 3.4e38  # of float32


def can_scale(mean: PerChannel, std: PerChannel) -> bool:
    """Returns whether pixels that are scaled by these numbers are finite numbers in float32."""
    if not all(map(math.isfinite, (*channels(mean), *channels(std)))) or 0 in channels(std):
        return False
    farthest = max(255 + abs(value) for value in channels(mean))
    return farthest / min(map(abs, channels(std))) <= LARGEST


@dataclass(frozen=True)
class Kernel:
    """A way to resize images.

    `op` is the one that does it in graphs: its first inputs are images, float32
    [n, height, width, 3], and a size. `resize` gives the same for one image, uint8
    [height, width, 3]: bit for bit by LEGACY_BILINEAR, within 0.01 by ANTIALIASED_CUBIC
    (whose op computes its weights in float32).
    `kernel_type` is set for the op ScaleAndTranslate, which also takes a scale and a shift.
    """

    op: str
    resize: Callable[[NDArray[np.uint8], Size], NDArray[np.float32]]
    kernel_type: bytes = b""

    def add(self, graph_def: GraphDef, images: str, size: Size) -> str:
        """Appends the nodes that resize `images`; returns the last, which is named after its op."""
        target = add_constant(graph_def, f"{self.op}/size", np.array(size, np.int32))
        if not self.kernel_type:
            return add_node(graph_def, self.op, self.op, [images, target], T="float32")
        scale = _add_scale(graph_def, self.op, images, size)
        shift = add_constant(graph_def, f"{self.op}/shift", np.zeros(2, np.float32))
        inputs, options = [images, target, scale, shift], {"antialias": True}
        return add_node(
            graph_def,
            self.op,
            self.op,
            inputs,
            T="float32",
            kernel_type=self.kernel_type,
            **options,
        )


def _add_scale(graph_def: GraphDef, scope: str, images: str, size: Size) -> str:
    """Appends nodes that give `size` / [height, width] of the images, float32 [2]."""
    shape = add_node(graph_def, f"{scope}/shape", "Shape", [images], T="float32", out_type="int32")
    ends = [
        add_constant(graph_def, f"{scope}/{name}", np.array([value], np.int32))
        for name, value in (("begin", 1), ("end", 3), ("strides", 1))
    ]
    options = {"T": "int32", "Index": "int32"}
    sides = add_node(graph_def, f"{scope}/sides", "StridedSlice", [shape, *ends], **options)
    cast = add_node(graph_def, f"{scope}/floats", "Cast", [sides], SrcT="int32", DstT="float32")
    new = add_constant(graph_def, f"{scope}/new", np.array(size, np.float32))
    return add_node(graph_def, f"{scope}/scale", "RealDiv", [new, cast], T="float32")


def resize_bilinear(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.float32]:
    """Resizes uint8 [height, width, 3] to float32 [*size, 3] as TensorFlow's legacy ResizeBilinear.

    Gives the bits of the op: first along the rows, then along the columns
    (tensorflow/core/kernels/image/resize_bilinear_op.cc). Converts only the four neighbours of each
    sample to floats, so that a large image takes no more memory than its bytes.
    """
    (top, bottom, down), (left, right, across) = (
        _samples(old, new) for old, new in zip(pixels.shape, size, strict=False)
    )
    channel = np.arange(3)
    starts, ends = ((columns[:, None] * 3 + channel).ravel() for columns in (left, right))
    across = np.repeat(across, 3)
    lines = pixels.reshape(len(pixels), -1)

    def along(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        sampled = lines[rows]  # NumPy takes single bytes faster than groups of three
        start, end = (sampled.take(places, axis=1, mode="clip") for places in (starts, ends))
        values = np.subtract(end, start, dtype=np.float32)
        values *= across
        values += start
        return values

    resized, below = along(top), along(bottom)
    below -= resized
    below *= down[:, None]
    resized += below
    return resized.reshape(*size, 3)


def _samples(
    old: int, new: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns both neighbours' indices of each sample along an axis, and the second's weight."""
    position = np.arange(new, dtype=np.float32) * np.float32(old / new)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, old - 1), position - first.astype(np.float32)


def resize_cubic(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.float32]:
    """Resizes uint8 [height, width, 3] to float32 [*size, 3] by a cubic kernel with antialiasing.

    The kernel is as wide as the step between samples where an image shrinks, so that each pixel
    counts. Pillow computes it (Keys' kernel with a = -0.5); values can lie beyond 0 and 255.
    """
    from PIL import Image

    height, width = size
    resized = [
        np.asarray(
            Image.fromarray(channel).convert("F").resize((width, height), Image.Resampling.BICUBIC)
        )
        for channel in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(resized, axis=-1)


# The legacy kernel is TensorFlow's op with neither of its two options set.
KERNELS = {
    LEGACY_BILINEAR: Kernel("ResizeBilinear", resize_bilinear),
    ANTIALIASED_CUBIC: Kernel("ScaleAndTranslate", resize_cubic, b"keyscubic"),
}


def add_front_end(graph_def: GraphDef, preprocessing: Preprocessing) -> str:
    """Appends the 2015 graph's nodes from an image's bytes to the network; returns `Mul`.

    `DecodeJpeg/contents:0` takes the bytes of one image. `DecodeJpeg:0` holds its pixels, uint8
    [height, width, 3]. `Mul:0` is `(pixel - mean) / std`, float32 [1, *size, 3]. The node that
    resizes is named after its op. Subtraction and scaling are float32, and the scaling multiplies
    by the reciprocal, as in the 2015 graph, so that the bits agree.

    Raises:
        PreprocessingError: this version does not know the kernel or the orientation.
    """
    kernel = preprocessing.resizing()
    content = add_node(graph_def, IMAGE_BYTES, "Placeholder", dtype="string", shape=())
    add_node(graph_def, "DecodeJpeg", "DecodeJpeg", [content], channels=3)
    add_node(graph_def, "Cast", "Cast", ["DecodeJpeg"], SrcT="uint8", DstT="float32")
    axis = add_constant(graph_def, "ExpandDims/dim", np.int32(0))
    add_node(graph_def, "ExpandDims", "ExpandDims", ["Cast", axis], T="float32")
    add_any_batch(graph_def, "ExpandDims")
    resized = kernel.add(graph_def, ANY_BATCH, preprocessing.size)
    offset = add_constant(graph_def, "Sub/y", preprocessing.offset)
    add_node(graph_def, "Sub", "Sub", [resized, offset], T="float32")
    factor = add_constant(graph_def, "Mul/y", preprocessing.factor)
    return add_node(graph_def, "Mul", "Mul", ["Sub", factor], T="float32")


def add_any_batch(graph_def: GraphDef, source: str) -> str:
    """Appends a node that passes on `source` as a batch of unknown size.

    `ExpandDims` fixes the batch size of everything up to `Mul:0` to 1, and TensorFlow's Python
    refuses to feed `Mul:0` with any other size.
    """
    shape = (-1, -1, -1, 3)
    op = "PlaceholderWithDefault"
    return add_node(graph_def, ANY_BATCH, op, [source], dtype="float32", shape=shape)
