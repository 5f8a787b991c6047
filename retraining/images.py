"""One image policy for training and labelling: decode, resize, distort, normalise.

JPEGs are decoded and every photo is resized by the TensorFlow ops (and their defaults) of the 2015
graph, so the network sees the very pixels the classic scripts gave it. Everything else is decoded
by Pillow. TensorFlow is imported when the first `ImageReader` is made.
"""

import hashlib
import io
from dataclasses import dataclass

import numpy as np

from retraining import RetrainingError
from retraining.nodes import IMAGE_BYTES, add_front_end
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
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', error)}") from error


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
            return np.asarray(to_eight_bits(image).convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise ImageError("is not an image of a known format") from error
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise ImageError(f"is a broken image ({error})") from error


def to_eight_bits(image):
    """16-bit, 32-bit and float greyscale made 8-bit by its likely range; others as they are."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    likely = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    white = next((top for top in likely if values.max() <= top), values.max())
    return Image.fromarray(np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8))


class ImageReader:
    """Turns image files into the float32 pixels a network takes. Safe to call from threads."""

    def __init__(self, size, mean, std):
        """`size` = (height, width) in pixels; pixels become `(pixel - mean) / std`."""
        tf = import_tensorflow()
        self.size, self._mean, self._scale = size, np.float32(mean), np.float32(1 / std)
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
        content = read_file(path)
        if key and hashlib.sha1(content).hexdigest() != key:
            raise ImageError("was changed while it was in use; run again")
        if not distortions:
            return self._decoded("Mul:0", content)
        pixels = self._decoded("DecodeJpeg:0", content)
        images = [self._session.run("Mul:0", {"DecodeJpeg:0": pixels})[0]]
        for view in range(distortions.views):
            rng = np.random.default_rng([distortions.seed, view, int(key, 16)])
            images.append((self._distort(pixels, distortions, rng) - self._mean) * self._scale)
        return np.stack(images)

    def _decoded(self, fetch, content):
        """What the tensor `fetch` is for the bytes of one image."""
        if content.startswith(JPEG_SIGNATURE):
            try:
                return self._session.run(fetch, {f"{IMAGE_BYTES}:0": content})
            except self._decode_error:
                pass  # a kind of JPEG, or a damage, that Pillow may get over
        return self._session.run(fetch, {"DecodeJpeg:0": decode_with_pillow(content)})

    def _distort(self, pixels, distortions, rng):
        """The classic's `add_input_distortions`: float32 [height, width, 3], pixels not clipped."""
        height, width = self.size
        scale = 1 + distortions.random_crop / 100
        scale *= rng.uniform(1, 1 + distortions.random_scale / 100)
        large = (int(height * scale), int(width * scale))
        feed = {"DecodeJpeg:0": pixels, "ResizeBilinear/size:0": large}
        resized = self._session.run("ResizeBilinear:0", feed)[0]
        top = rng.integers(large[0] - height + 1)
        left = rng.integers(large[1] - width + 1)
        view = resized[top : top + height, left : left + width]
        if distortions.flip_left_right and rng.random() < 0.5:
            view = view[:, ::-1]
        reach = distortions.random_brightness / 100
        return view * np.float32(rng.uniform(1 - reach, 1 + reach))
