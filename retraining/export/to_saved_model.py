"""A retrained graph as a SavedModel, whose signatures take image files' bytes or pixels."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.export.build import labels_bytes
from retraining.export.converter import Converter
from retraining.export.network_function import network_function
from retraining.export.pixels_graph import DESCRIPTION_FILE, Feeds, Source
from retraining.graphs.messages import GraphDef
from retraining.graphs.nodes import add_node
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import to_tensorflow
from retraining.graphs.tensorflow import Tensor, TensorFlow, import_whole_tensorflow

LABELS_FILE = "labels.txt"  # among the assets
# The names of the signatures.
FILES, FILE, PIXELS, NUMBERS = "serving_default", "one_image", "images", "pixels"


def save(source: Source, folder: str) -> None:
    """Writes a Source to a new folder, as TensorFlow Serving expects a version.

    Signatures: `serving_default` takes `image_bytes`, string [n], each the content of a JPEG, PNG
    or GIF file (n > 0: TensorFlow's convolutions fail for none); `one_image` a string scalar;
    `images` takes `images`, float32 [n, height, width, 3] of `(pixel - mean) / std`, and
    `images_2` if there is a second network. These return `probabilities` float32 [n, k], `labels`
    string [n, k] and `label` string [n], the likeliest. `pixels` takes what `images` takes and
    returns `probabilities` alone, for converters to runtimes without strings. `assets/labels.txt`
    holds the labels, too, and `assets/retraining.json` the description of the Source.
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
        return {"probabilities": network(*pixels)}

    def answer_file(image_bytes: Tensor) -> dict[str, Tensor]:
        return answer(*(pixels[None] for pixels in _decode(tf, image_bytes, source)))

    def answer_files(image_bytes: Tensor) -> dict[str, Tensor]:
        one_each = [tf.TensorSpec(spec.shape[1:], spec.dtype) for spec in specs]
        decode = partial(_decode, tf, source=source)
        return answer(*tf.map_fn(decode, image_bytes, fn_output_signature=one_each))

    def signature(function: Callable[..., dict[str, Tensor]], *inputs: Any) -> Any:
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    return {
        FILES: signature(answer_files, tf.TensorSpec([None], tf.string, "image_bytes")),
        FILE: signature(answer_file, tf.TensorSpec([], tf.string, "image_bytes")),
        PIXELS: signature(answer, *specs),
        NUMBERS: signature(probabilities, *specs),
    }


def _with_labels(tf: TensorFlow, probabilities: Tensor, labels: Sequence[str]) -> dict[str, Tensor]:
    texts = tf.constant([label.encode("utf-8", "surrogateescape") for label in labels])
    return {
        "probabilities": probabilities,
        "labels": tf.tile(texts[None], [tf.shape(probabilities)[0], 1]),
        "label": tf.gather(texts, tf.argmax(probabilities, axis=1)),
    }


def _decode(tf: TensorFlow, image_bytes: Tensor, source: Source) -> list[Tensor]:
    """Returns float32 [height, width, 3] for each input, as the frozen graph decodes a file.

    The ops and options are those of `preprocessing.add_front_end`, but for transparency: the
    network's resize kernel, and a product with the reciprocal instead of a division.
    """
    image = _decode_opaque(tf, image_bytes)[None]
    records = [each.preprocessing for each in source.inputs]
    return [(_resize(tf, image, record) - record.offset) * record.factor for record in records]


def _resize(tf: TensorFlow, image: Tensor, record: Preprocessing) -> Tensor:
    """Returns float32 [*size, 3] by the nodes of the network's kernel."""
    nodes, shape = GraphDef(), (1, -1, -1, 3)
    add_node(nodes, "image", "Placeholder", dtype="float32", shape=shape)
    resized = record.resizing().add(nodes, "image", record.size)
    ends = {"image:0": image}, [f"{resized}:0"]
    return tf.graph_util.import_graph_def(to_tensorflow(nodes), *ends, name="resize")[0][0]


COLOUR_TYPE = 25  # its byte in a PNG file (PNG specification, 11.2.2)
WITH_ALPHA = (b"\x04", b"\x06")


def _decode_opaque(tf: TensorFlow, image_bytes: Tensor) -> Tensor:
    """Returns float32 [height, width, 3] of 0..255; puts the alpha channel of a PNG over white."""

    def over_white() -> Tensor:
        rgba = tf.cast(tf.io.decode_png(image_bytes, channels=4), tf.float32)
        alpha = rgba[..., 3:] / 255
        return tf.round(rgba[..., :3] * alpha + 255 * (1 - alpha))

    def plain() -> Tensor:
        return tf.cast(tf.io.decode_jpeg(image_bytes, channels=3), tf.float32)

    # `==` would compare the tensors as Python objects where TensorFlow 2's behaviour is off.
    padded = tf.strings.join([image_bytes, " " * (COLOUR_TYPE + 1)])
    colour_type = tf.strings.substr(padded, COLOUR_TYPE, 1)
    is_png = tf.equal(tf.strings.substr(padded, 0, 4), b"\x89PNG")
    has_alpha = tf.reduce_any(tf.equal(colour_type, tf.constant(WITH_ALPHA)))
    return tf.cond(tf.logical_and(is_png, has_alpha), over_white, plain)


class SavedModel:
    """A SavedModel that TensorFlow has loaded from its folder."""

    def __init__(self, folder: str) -> None:
        self._tf = import_whole_tensorflow()
        self._loaded = self._tf.saved_model.load(folder)  # its functions live as long as it does

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: float32 [n, height, width, 3]}."""
        tensors = {name: self._tf.constant(pixels) for name, pixels in feeds.items()}
        return self._answer(PIXELS, tensors)

    def run_files(self, contents: Sequence[bytes]) -> NDArray[np.float32]:
        """Returns float32 [n, k] for the bytes of n files."""
        return self._answer(FILES, {"image_bytes": self._tf.constant(contents)})

    def _answer(self, signature: str, tensors: dict[str, Tensor]) -> NDArray[np.float32]:
        answers = self._loaded.signatures[signature](**tensors)
        probabilities: NDArray[np.float32] = answers["probabilities"].numpy()
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
    is_folder=True,
    output=next_version,
)
