"""One image policy for training and labelling: decode, resize, distort, normalise.

JPEGs are decoded and every photo is resized by the TensorFlow ops (and their defaults) of the 2015
graph, so the network sees the very pixels the classic scripts gave it. Everything else is decoded
by Pillow. TensorFlow is imported when the first `ImageReader` is made.
"""

import io
from dataclasses import dataclass

import numpy as np

from retraining import RetrainingError
from retraining.quiet_tensorflow import import_tensorflow

JPEG_SIGNATURE = b"\xff\xd8\xff"


class ImageError(RetrainingError):
    """This file is not a readable image; says why."""


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


def read_file(path):
    """The file's bytes.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


def decode_with_pillow(content):
    """uint8 [height, width, 3] of any image file Pillow knows, transparency over white.

    Raises:
        ImageError: Pillow cannot read it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise ImageError("is not an image of a known format") from error
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise ImageError(f"is a broken image ({error})") from error


class ImageReader:
    """Turns image files into the float32 pixels a network takes. Safe to call from threads."""

    def __init__(self, size, mean, std):
        """`size` = (height, width) in pixels; pixels become `(pixel - mean) / std`."""
        tf = import_tensorflow()
        self.size, self.mean, self.std = size, np.float32(mean), np.float32(std)
        self._decode_error = tf.errors.InvalidArgumentError
        with tf.Graph().as_default() as graph:
            self._content = tf.compat.v1.placeholder(tf.string, [])
            self._pixels = tf.image.decode_jpeg(self._content, channels=3)
            self._size = tf.compat.v1.placeholder_with_default(list(size), [2])
            batch = tf.expand_dims(tf.cast(self._pixels, tf.float32), 0)
            # The legacy kernel, which these two False choose.
            resized = tf.raw_ops.ResizeBilinear(
                images=batch, size=self._size, align_corners=False, half_pixel_centers=False
            )
            self._resized = tf.squeeze(resized, 0)
        # One thread per call: the callers' own threads decode side by side.
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=1,
            inter_op_parallelism_threads=1,
            use_per_session_threads=True,
            device_count={"GPU": 0},
        )
        self._session = tf.compat.v1.Session(graph=graph, config=config)

    def read(self, path, key=None, distortions=None):
        """float32 [1 + views, height, width, 3]: the image and its distorted views, if any.

        The same image `key`, distortions and view number always give the same pixels.

        Raises:
            ImageError: the file cannot be read or decoded.
        """
        content = read_file(path)
        if not distortions:
            return self._normalise(self._run(self._resized, content))[None]
        pixels = self._run(self._pixels, content)
        images = [self._session.run(self._resized, {self._pixels: pixels})]
        for view in range(distortions.views):
            rng = np.random.default_rng([distortions.seed, view, int(key, 16)])
            images.append(self._distort(pixels, distortions, rng))
        return self._normalise(np.stack(images))

    def _run(self, fetch, content):
        """Decodes (and resizes, if `fetch` is that) the bytes of one image."""
        if content.startswith(JPEG_SIGNATURE):
            try:
                return self._session.run(fetch, {self._content: content})
            except self._decode_error:
                pass  # a kind of JPEG, or a damage, that Pillow may get over
        return self._session.run(fetch, {self._pixels: decode_with_pillow(content)})

    def _distort(self, pixels, distortions, rng):
        """The classic's `add_input_distortions`: float32 [height, width, 3], pixels not clipped."""
        height, width = self.size
        scale = 1 + distortions.random_crop / 100
        scale *= rng.uniform(1, 1 + distortions.random_scale / 100)
        large = (int(height * scale), int(width * scale))
        resized = self._session.run(self._resized, {self._pixels: pixels, self._size: large})
        top = rng.integers(large[0] - height + 1)
        left = rng.integers(large[1] - width + 1)
        view = resized[top : top + height, left : left + width]
        if distortions.flip_left_right and rng.random() < 0.5:
            view = view[:, ::-1]
        reach = distortions.random_brightness / 100
        return view * np.float32(rng.uniform(1 - reach, 1 + reach))

    def _normalise(self, pixels):
        # Multiplied by the reciprocal, as the 2015 graph does it, so that the bits agree.
        return (pixels - self.mean) * np.float32(1 / self.std)
