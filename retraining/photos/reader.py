"""Turns image files into pixels, in the same way for training and for labelling.

`decode` gives a JPEG the pixels of the 2015 graph, and a kernel of `preprocessing` resizes every
photo as that graph does, so the network sees the very pixels that the classic scripts gave it.
Photos are turned by their EXIF orientation, which the classic did not do.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.preprocessing import ANY_SIZE, DEVELOP, Preprocessing, Size
from retraining.graphs.run import BytesRunner, UndecodableError
from retraining.photos import decode
from retraining.photos.bounds import MAX_PIXELS, ImageFileError
from retraining.photos.formats import reason_of
from retraining.photos.registry import read_bytes
from retraining.system.ranges import Range, check_ranges

# Part of every vector's key. Raise it when the pixels of all formats change; where those of one
# format change, raise its `formats.Format.version`.
POLICY = 2

# A path, the bytes of an image file, or pixels: uint8 [height, width, 3], RGB.
Image = str | os.PathLike[str] | bytes | NDArray[np.uint8]


class ImageError(RetrainingError):
    """A file is not a readable image. The text is the reason and follows the file's name."""


@dataclass(frozen=True)
class Distortions:
    """The classic's four distortions, in percent (`flip_left_right`: yes or no), and a seed."""

    flip_left_right: bool = False
    random_crop: int = 0
    random_scale: int = 0
    random_brightness: int = 0
    views: int = 8
    seed: int = 0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "random_crop": (0, 100),
        "random_scale": (0, 100),
        "random_brightness": (0, 100),
        "views": (1, 1000),
        "seed": (0, math.inf),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)

    def __bool__(self) -> bool:
        return any(
            (self.flip_left_right, self.random_crop, self.random_scale, self.random_brightness)
        )

    def view_key(self, key: str, view: int) -> str:
        """Returns the key of a distorted view of the image `key`: all that its pixels depend on."""
        return (
            f"{key} flip={int(self.flip_left_right)} crop={self.random_crop} "
            f"scale={self.random_scale} brightness={self.random_brightness} "
            f"seed={self.seed} view={view}"
        )


def read_file(name: str, max_pixels: int | None = MAX_PIXELS) -> bytes:
    """Reads a photo's file, unless it is larger than an image of `max_pixels` can be.

    `max_pixels` None means no limit.

    Raises:
        ImageError: the file cannot be read, is too large or is not a regular file.
        SourceError: no file of its source can be read.
    """
    try:
        return read_bytes(name, max_pixels)
    except ImageFileError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"cannot be read: {reason_of(error)}") from error


def run_on_bytes(
    runner: BytesRunner, content: bytes, max_pixels: int = MAX_PIXELS
) -> NDArray[np.float32]:
    """Runs a graph on an image file's bytes; returns float32 [1, width].

    Raises:
        ImageError: the graph's own decoder cannot read them, or the image is too large.
        GraphError: TensorFlow cannot run the graph.
    """
    try:
        decode.check(content, max_pixels)
    except ImageFileError as error:
        raise ImageError(str(error)) from error
    try:
        return runner.run(content)
    except UndecodableError as error:
        raise ImageError("is not an image that the graph's own decoder reads") from error


def is_plain_jpeg(content: bytes) -> bool:
    """Returns whether a graph's own decoder gives the same pixels as `ImageReader`."""
    header = decode.jpeg_header(content)
    return header is not None and header.orientation == 1


def checked_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns uint8 [height, width, 3].

    Raises:
        ImageError: it is another array.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(
            f"is an array of {pixels.dtype} {list(pixels.shape)}, not of uint8 [height, width, 3]"
        )
    return pixels


def file_bytes(image: Image, max_pixels: int | None) -> bytes:
    """Returns the bytes of an image as a file: of pixels a PNG.

    Raises:
        ImageError: it cannot be read, is too large or no array of pixels.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, np.ndarray):
        return read_file(os.fspath(image), max_pixels)
    from PIL import Image as PillowImage

    file = io.BytesIO()
    PillowImage.fromarray(checked_pixels(image)).save(file, "PNG")
    return file.getvalue()


class ImageReader:
    """Turns image files into the float32 pixels that a network takes. Thread-safe."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Refuses images of more than `max_pixels` before they are decoded.

        Raises:
            PreprocessingError: this version does not know a part of the preprocessing.
        """
        self._kernel = preprocessing.resizing()
        self.size, self.max_pixels = preprocessing.size, max_pixels
        self._develop = preprocessing.raw == DEVELOP
        self._offset, self._factor = preprocessing.offset, preprocessing.factor

    def load(self, image: Image) -> NDArray[np.float32]:
        """Returns float32 [1, height, width, 3] of an image, whatever it is given as.

        Where the preprocessing has ANY_SIZE, these are the image's own height and width.

        Raises:
            ImageError: it cannot be read or decoded, or is no array of pixels.
        """
        if isinstance(image, bytes):
            return self.decode(image)
        if isinstance(image, np.ndarray):
            return self._normalised(checked_pixels(image))
        return self.read(os.fspath(image))

    def pixels(self, image: Image) -> NDArray[np.uint8]:
        """Returns uint8 [height, width, 3] of an image, upright and at its own size.

        Raises:
            ImageError: as for `load`.
        """
        if isinstance(image, np.ndarray):
            return checked_pixels(image)
        content = image if isinstance(image, bytes) else self._content(os.fspath(image), None)
        try:
            with decode.decoded(content, self.max_pixels, develop=self._develop) as pixels:
                return pixels
        except ImageFileError as error:
            raise ImageError(str(error)) from error

    def read(
        self, path: str, key: str | None = None, distortions: Distortions | None = None
    ) -> NDArray[np.float32]:
        """Reads an image and its distorted views: float32 [1 + views, height, width, 3].

        The same image `key`, distortions and view number always give the same pixels.

        Raises:
            ImageError: the file cannot be read or decoded, or the SHA-1 of its bytes is not `key`.
        """
        return self.decode(self._content(path, key), key, distortions)

    def decode(
        self, content: bytes, key: str | None = None, distortions: Distortions | None = None
    ) -> NDArray[np.float32]:
        """Decodes an image file's bytes, as `read` does.

        Raises:
            ImageError: they cannot be decoded.
        """
        try:
            with decode.decoded(content, self.max_pixels, develop=self._develop) as pixels:
                if not distortions:
                    return self._normalised(pixels)
                assert key is not None, "the key of an image decides on its views"
                images = [self._shrunk(pixels), *self._views(pixels, key, distortions)]
        except ImageFileError as error:
            raise ImageError(str(error)) from error
        return (np.stack(images) - self._offset) * self._factor

    def _normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns float32 [1, height, width, 3] of `(pixel - mean) / std`."""
        images = self._shrunk(pixels)[None]
        images -= self._offset
        images *= self._factor
        return images

    def _views(
        self, pixels: NDArray[np.uint8], key: str, distortions: Distortions
    ) -> Iterator[NDArray[np.float32]]:
        for view in range(distortions.views):
            rng = np.random.default_rng([distortions.seed, view, int(key, 16)])
            yield self._distort(pixels, distortions, rng)

    def _content(self, path: str, key: str | None) -> bytes:
        content = read_file(path, self.max_pixels)
        if key and hashlib.sha1(content).hexdigest() != key:
            raise ImageError("was changed while it was in use; run again")
        return content

    def _shrunk(self, pixels: NDArray[np.uint8], size: Size | None = None) -> NDArray[np.float32]:
        """Resizes to float32 [height, width, 3] of the given size, by default the reader's."""
        size = size or self.size
        return pixels.astype(np.float32) if size == ANY_SIZE else self._kernel.resize(pixels, size)

    def enlarged(self, path: str, key: str, distortions: Distortions) -> NDArray[np.float32]:
        """Reads an image at the size that `view_of` crops: float32 [height, width, 3], 0..255.

        Without `random_scale`, all views are crops of this one image.

        Raises:
            ImageError: as for `read`.
        """
        size = self._large(1 + distortions.random_crop / 100)
        try:
            content = self._content(path, key)
            with decode.decoded(content, self.max_pixels, develop=self._develop) as pixels:
                return self._shrunk(pixels, size)
        except ImageFileError as error:
            raise ImageError(str(error)) from error

    def view_of(
        self, enlarged: NDArray[np.float32], distortions: Distortions, rng: "np.random.Generator"
    ) -> NDArray[np.float32]:
        """Returns a random view of an `enlarged` image: float32 [height, width, 3]."""
        return (self._crop(enlarged, distortions, rng) - self._offset) * self._factor

    def _distort(
        self, pixels: NDArray[np.uint8], distortions: Distortions, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Distorts as the classic, without clipping: float32 [height, width, 3]."""
        scale = 1 + distortions.random_crop / 100
        scale *= rng.uniform(1, 1 + distortions.random_scale / 100)
        return self._crop(self._shrunk(pixels, self._large(scale)), distortions, rng)

    def _large(self, scale: float) -> Size:
        height, width = self.size
        return int(height * scale), int(width * scale)

    def _crop(
        self, resized: NDArray[np.float32], distortions: Distortions, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        (height, width), large = self.size, resized.shape
        top = rng.integers(large[0] - height + 1)
        left = rng.integers(large[1] - width + 1)
        view = resized[top : top + height, left : left + width]
        if distortions.flip_left_right and rng.random() < 0.5:
            view = view[:, ::-1]
        reach = distortions.random_brightness / 100
        return view * np.float32(rng.uniform(1 - reach, 1 + reach))
