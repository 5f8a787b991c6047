"""One image policy for training and labelling: decode, turn upright, resize, distort, normalise.

JPEGs are decoded and every photo is resized by the TensorFlow ops (and their defaults) of the 2015
graph, so the network sees the very pixels the classic scripts gave it. Everything else is decoded
by Pillow. Photos are turned as their EXIF orientation says, which the classic did not do. A JPEG
whose end is missing is taken if half of its rows are there. TensorFlow is imported when the first
`ImageReader` is made.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from retraining.errors import RetrainingError
from retraining.graphs.nodes import IMAGE_BYTES, add_front_end
from retraining.graphs.run import UndecodableError
from retraining.graphs.tensorflow import import_tensorflow
from retraining.photos import decode as image_files
from retraining.photos import places
from retraining.photos.decode import ImageFileError

JPEG_SIGNATURE = b"\xff\xd8\xff"
POLICY = 2  # part of every vector's key: to be raised when the pixels of some image change
LARGE = 10_000_000  # pixels above which TensorFlow's float copy of the whole image is avoided


class ImageError(RetrainingError):
    """This file is not a readable image; says why, after the file's name."""


@dataclass(frozen=True)
class Distortions:
    """The classic's four distortions, in percent (`flip_left_right`: yes or no), and a seed."""

    flip_left_right: bool = False
    random_crop: int = 0
    random_scale: int = 0
    random_brightness: int = 0
    views: int = 8
    seed: int = 0

    def __bool__(self):
        return any(
            (self.flip_left_right, self.random_crop, self.random_scale, self.random_brightness)
        )

    def view_key(self, key, view):
        """Names one distorted view of the image `key`: everything its pixels depend on."""
        return (
            f"{key} flip={int(self.flip_left_right)} crop={self.random_crop} "
            f"scale={self.random_scale} brightness={self.random_brightness} "
            f"seed={self.seed} view={view}"
        )


def read_file(path, max_pixels=image_files.MAX_PIXELS):
    """The file's bytes, if there are no more than an image of `max_pixels` (None: any) can have.

    Raises:
        ImageError: it cannot be read, is too large or no regular file.
        PlaceError: the place of a URL cannot be read from.
    """
    try:
        if places.is_url(path):
            if max_pixels is not None:
                image_files.check_size(places.size(path), max_pixels)
            return places.read(path)
        image_files.check_regular(path, max_pixels)
        with open(path, "rb") as file:
            return file.read()
    except ImageFileError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"cannot be read: {image_files.reason_of(error)}") from error


def run_on_bytes(runner, content):
    """What a graphs.run.BytesRunner gives for an image file's bytes: float32 [1, width].

    Raises:
        ImageError: the graph's own decoder does not read them.
        GraphError: TensorFlow cannot run the graph.
    """
    try:
        return runner.run(content)
    except UndecodableError as error:
        raise ImageError("is not an image that the graph's own decoder reads") from error


def is_plain_jpeg(content):
    """Whether a graph's own decoder gives the pixels that `ImageReader` gives."""
    header = content.startswith(JPEG_SIGNATURE) and image_files.jpeg_header(content)
    return bool(header) and header[2] == 1


class ImageReader:
    """Turns image files into the float32 pixels a network takes. Safe to call from threads."""

    def __init__(self, size, mean, std, max_pixels=image_files.MAX_PIXELS):
        """`size` = (height, width) in pixels; pixels become `(pixel - mean) / std`.

        Images of more than `max_pixels` are refused before they are decoded.
        """
        tf = import_tensorflow()
        self.size, self._mean, self._scale = size, np.float32(mean), np.float32(1 / std)
        self.max_pixels = max_pixels
        self._decode_error = tf.errors.InvalidArgumentError
        front_end = tf.GraphDef()
        add_front_end(front_end, size, mean, std)
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(front_end, name="")
        # One thread per call: the callers' own threads decode side by side.
        config = tf.ConfigProto(
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=1,
            use_per_session_threads=True,
            device_count={"GPU": 0},
        )
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.Session(graph=graph, config=config)

    def read(self, path, key=None, distortions=None):
        """float32 [1 + views, height, width, 3]: the image and its distorted views, if any.

        The same image `key`, distortions and view number always give the same pixels.

        Raises:
            ImageError: the file cannot be read or decoded, or its bytes have not the SHA-1 `key`.
        """
        return self.decode(self._content(path, key), key, distortions)

    def decode(self, content, key=None, distortions=None):
        """As `read`, of an image file's bytes.

        Raises:
            ImageError: they cannot be decoded.
        """
        try:
            if not distortions:
                return self._normalised(content)
            pixels = self._pixels(content)
        except ImageFileError as error:
            raise ImageError(str(error)) from error
        images = [self._shrunk(pixels)]
        for view in range(distortions.views):
            rng = np.random.default_rng([distortions.seed, view, int(key, 16)])
            images.append(self._distort(pixels, distortions, rng))
        return (np.stack(images) - self._mean) * self._scale

    def _content(self, path, key):
        content = read_file(path, self.max_pixels)
        if key and hashlib.sha1(content).hexdigest() != key:
            raise ImageError("was changed while it was in use; run again")
        return content

    def _normalised(self, content):
        """float32 [1, height, width, 3] of an image file's bytes: an ordinary JPEG in one go."""
        if is_plain_jpeg(content):
            width, height, _ = image_files.jpeg_header(content)
            image_files.check_pixels(width, height, self.max_pixels)
            if width * height <= LARGE:
                try:
                    return self._session.run("Mul:0", {f"{IMAGE_BYTES}:0": content})
                except self._decode_error:
                    pass  # `_pixels` knows what else to try
        return (self._shrunk(self._pixels(content))[None] - self._mean) * self._scale

    def _pixels(self, content):
        """uint8 [height, width, 3], upright, of an image file's bytes."""
        header = content.startswith(JPEG_SIGNATURE) and image_files.jpeg_header(content)
        if header:
            image_files.check_pixels(*header[:2], self.max_pixels)
            try:
                pixels = self._session.run("DecodeJpeg:0", {f"{IMAGE_BYTES}:0": content})
            except self._decode_error:  # a kind of JPEG, or a damage, that Pillow may get over
                pixels = image_files.decode_jpeg(content)
            return image_files.upright(pixels, header[2])
        return image_files.decode(content, self.max_pixels)

    def _shrunk(self, pixels, size=None):
        """float32 [height, width, 3] of the given size, or the reader's."""
        if pixels.shape[0] * pixels.shape[1] > LARGE:
            return resize_bilinear(pixels, size or self.size)
        feed = {"DecodeJpeg:0": pixels, "ResizeBilinear/size:0": size or self.size}
        return self._session.run("ResizeBilinear:0", feed)[0]

    def enlarged(self, path, key, distortions):
        """float32 [height, width, 3], 0..255: an image of the size that views are cropped from.

        For `view_of`, where there is no `random_scale`: all views are then cropped from the same.

        Raises:
            ImageError: as `read` does.
        """
        try:
            pixels = self._pixels(self._content(path, key))
        except ImageFileError as error:
            raise ImageError(str(error)) from error
        return self._shrunk(pixels, self._large(1 + distortions.random_crop / 100))

    def view_of(self, enlarged, distortions, rng):
        """float32 [height, width, 3]: a random view of what `enlarged` gave."""
        return (self._crop(enlarged, distortions, rng) - self._mean) * self._scale

    def _distort(self, pixels, distortions, rng):
        """The classic's `add_input_distortions`: float32 [height, width, 3], pixels not clipped."""
        scale = 1 + distortions.random_crop / 100
        scale *= rng.uniform(1, 1 + distortions.random_scale / 100)
        return self._crop(self._shrunk(pixels, self._large(scale)), distortions, rng)

    def _large(self, scale):
        return tuple(int(side * scale) for side in self.size)

    def _crop(self, resized, distortions, rng):
        (height, width), large = self.size, resized.shape
        top = rng.integers(large[0] - height + 1)
        left = rng.integers(large[1] - width + 1)
        view = resized[top : top + height, left : left + width]
        if distortions.flip_left_right and rng.random() < 0.5:
            view = view[:, ::-1]
        reach = distortions.random_brightness / 100
        return view * np.float32(rng.uniform(1 - reach, 1 + reach))


def resize_bilinear(pixels, size):
    """float32 [*size, 3] of uint8 [height, width, 3], as TensorFlow's legacy ResizeBilinear.

    Only the four neighbours of each sample are made floats, so that a large image takes no more
    memory than its bytes (tensorflow/core/kernels/image/resize_bilinear_op.cc).
    """
    (top, bottom, down), (left, right, across) = (
        _samples(old, new) for old, new in zip(pixels.shape, size, strict=False)
    )
    down, across = down[:, None, None], across[None, :, None]
    rows = []
    for line in (top, bottom):
        chosen = pixels[line]
        start, end = chosen[:, left].astype(np.float32), chosen[:, right].astype(np.float32)
        rows.append(start + (end - start) * across)
    return rows[0] + (rows[1] - rows[0]) * down


def _samples(old, new):
    """Indices of both neighbours of each sample along an axis, and the weight of the second."""
    place = np.arange(new, dtype=np.float32) * np.float32(old / new)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, old - 1), place - first.astype(np.float32)
