"""A retrained graph as a SavedModel, whose signatures take image files' bytes or pixels."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.export.build import LABELS_FILE, labels_bytes
from retraining.export.converter import Converter
from retraining.export.image_input import SHAPE, preprocess
from retraining.export.network_function import network_function
from retraining.export.pixels_graph import Feeds, Source
from retraining.graphs.description import DESCRIPTION_FILE, IMAGE, OUTPUT, TAKES
from retraining.graphs.tensorflow import Tensor, TensorFlow, import_whole_tensorflow

# The names of the signatures.
FILES, FILE, IMAGES, PIXELS = "serving_default", "one_image", "images", "pixels"


def save(source: Source, folder: str) -> None:
    """Writes a Source to a new folder, as TensorFlow Serving expects a version.

    Signatures: `serving_default` takes `image_bytes`, string [n], each the content of an image file
    (n > 0: TensorFlow's convolutions fail for none); `one_image` a string scalar; `images` takes
    `images`, float32 [n, height, width, 3] of `(pixel - mean) / std`, and `images_2` if there is a
    second network, or `image`, uint8 [1, height, width, 3], if the Source takes IMAGE. These return
    `probabilities` float32 [n, k], `labels` string [n, k] and `label` string [n], the likeliest.
    `pixels` takes what `images` takes and returns `probabilities` alone, for converters to runtimes
    without strings. `assets/labels.txt` holds the labels, too, and `assets/retraining.json` the
    description of the Source.
    """
    tf = import_whole_tensorflow()
    with tempfile.TemporaryDirectory() as elsewhere:
        module = tf.Module()
        module.files = [
            _asset(tf, os.path.join(elsewhere, LABELS_FILE), labels_bytes(source.labels)),
            _asset(tf, os.path.join(elsewhere, DESCRIPTION_FILE), source.description()),
        ]
        network, module.kernels = network_function(tf, source)
        tf.saved_model.save(module, folder, _signatures(tf, source, network))


def _asset(tf: TensorFlow, path: str, content: bytes) -> Any:
    """Writes a file, and returns the Asset that a SavedModel copies."""
    with open(path, "wb") as file:
        file.write(content)
    return tf.saved_model.Asset(path)


def _signatures(tf: TensorFlow, source: Source, network: Callable[..., Tensor]) -> dict[str, Any]:
    """Returns {name: concrete tf.function}; `network` goes from pixels to probabilities."""
    specs = [tf.TensorSpec([None, *i.size, 3], tf.float32, i.feed) for i in source.inputs]
    # All signatures call this one function, so that the file stores its nodes only once.
    network = tf.function(network, input_signature=specs, autograph=False)

    def answer(*pixels: Tensor) -> dict[str, Tensor]:
        return _with_labels(tf, network(*pixels), source.labels)

    def probabilities(*pixels: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: network(*pixels)}

    def feeds(*images: Tensor) -> Sequence[Tensor]:
        return preprocess(tf, images[0], source.inputs) if source.takes == IMAGE else images

    def pixels_of_file(image_bytes: Tensor) -> list[Tensor]:
        image = decode(tf, image_bytes)[None]
        return [pixels[0] for pixels in preprocess(tf, image, source.inputs)]

    def answer_file(image_bytes: Tensor) -> dict[str, Tensor]:
        return answer(*(pixels[None] for pixels in pixels_of_file(image_bytes)))

    def answer_files(image_bytes: Tensor) -> dict[str, Tensor]:
        one_each = [tf.TensorSpec(spec.shape[1:], spec.dtype) for spec in specs]
        return answer(*tf.map_fn(pixels_of_file, image_bytes, fn_output_signature=one_each))

    def signature(function: Callable[..., dict[str, Tensor]], *inputs: Any) -> Any:
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    taken = [tf.TensorSpec(SHAPE, tf.uint8, IMAGE)] if source.takes == IMAGE else specs
    return {
        FILES: signature(answer_files, tf.TensorSpec([None], tf.string, "image_bytes")),
        FILE: signature(answer_file, tf.TensorSpec([], tf.string, "image_bytes")),
        IMAGES: signature(lambda *images: answer(*feeds(*images)), *taken),
        PIXELS: signature(lambda *images: probabilities(*feeds(*images)), *taken),
    }


def _with_labels(tf: TensorFlow, probabilities: Tensor, labels: Sequence[str]) -> dict[str, Tensor]:
    texts = tf.constant([label.encode("utf-8", "surrogateescape") for label in labels])
    return {
        OUTPUT: probabilities,
        "labels": tf.tile(texts[None], [tf.shape(probabilities)[0], 1]),
        "label": tf.gather(texts, tf.argmax(probabilities, axis=1)),
    }


# A PNG of colour type 4 or 6 or with a chunk tRNS (PNG specification, 11.2.2 and 11.3.2), or a WebP
# with the bit of transparency (WebP Container Specification, Extended File Format; WebP Lossless
# Bitstream Specification, section 3). `\C` is one byte.
HAS_ALPHA = (
    r"(?s)(\CPNG(\C{21}[\x04\x06]|\C*tRNS)"
    r"|RIFF\C{4}WEBPVP8(X\C{4}[\x10-\x1f\x30-\x3f]|L\C{8}[\x10-\x1f]))\C*"
)


def decode(tf: TensorFlow, image_bytes: Tensor) -> Tensor:
    """Returns uint8 [height, width, 3] of a file; the first picture of several, over white.

    The number of channels is never left to the decoder, which writes beyond its memory for an
    animated WebP without transparency (TensorFlow 2.21).
    """

    def picture(channels: int) -> Tensor:
        image = tf.io.decode_image(image_bytes, channels, expand_animations=False)
        return tf.ensure_shape(image, [None, None, channels])

    def over_white() -> Tensor:
        rgba = tf.cast(picture(4), tf.float32)
        alpha = rgba[..., 3:] / 255
        return tf.cast(tf.round(rgba[..., :3] * alpha + 255 * (1 - alpha)), tf.uint8)

    has_alpha = tf.strings.regex_full_match(image_bytes, HAS_ALPHA)
    return tf.cond(has_alpha, over_white, lambda: picture(3))


class SavedModel:
    """A SavedModel that TensorFlow has loaded from its folder."""

    def __init__(self, folder: str) -> None:
        self._tf = import_whole_tensorflow()
        self._loaded = self._tf.saved_model.load(folder)  # its functions live as long as it does

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: images}."""
        tensors = {name: self._tf.constant(pixels) for name, pixels in feeds.items()}
        return self._answer(IMAGES, tensors)

    def run_files(self, contents: Sequence[bytes]) -> NDArray[np.float32]:
        """Returns float32 [n, k] for the bytes of n files."""
        return self._answer(FILES, {"image_bytes": self._tf.constant(contents)})

    def _answer(self, signature: str, tensors: dict[str, Tensor]) -> NDArray[np.float32]:
        answers = self._loaded.signatures[signature](**tensors)
        probabilities: NDArray[np.float32] = answers[OUTPUT].numpy()
        return probabilities


def next_version(folder: str) -> str:
    """Returns the path of the next version in a model folder of TensorFlow Serving."""
    with contextlib.suppress(FileNotFoundError):
        numbers = [int(name) for name in os.listdir(folder) if re.fullmatch("[0-9]+", name)]
        return os.path.join(folder, str(max(numbers, default=0) + 1))
    return os.path.join(folder, "1")


CONVERTER = Converter(
    kind="saved_model",
    name="saved_model",
    option="saved_model_dir",
    help="also write a SavedModel, into a new folder DIR/1, DIR/2 and so on",
    save=save,
    load=SavedModel,
    takes=TAKES,
    is_folder=True,
    output=next_version,
)
