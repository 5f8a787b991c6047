"""A retrained graph as a SavedModel, whose signatures take files' bytes or pixels."""

import os
import tempfile
from functools import partial

from retraining.export.build import labels_bytes
from retraining.graphs.tensorflow import import_whole_tensorflow

LABELS_FILE = "labels.txt"  # among the assets
FILES, FILE, PIXELS = "serving_default", "one_image", "images"  # names of the signatures


def save(source, folder):
    """Writes a source.Source to a new folder, as TensorFlow Serving wants a version.

    Signatures: `serving_default` takes `image_bytes`, string [n], each the content of a JPEG, PNG
    or GIF file (n > 0: TensorFlow's convolutions fail for none); `one_image` a string scalar;
    `images` takes `images`, float32 [n, height, width, 3] of `(pixel - mean) / std`, and
    `images_2` if there is a second network.
    All give `probabilities` float32 [n, k], `labels` string [n, k] and `label` string [n], the
    likeliest. The labels are in `assets/labels.txt`, too.
    """
    tf = import_whole_tensorflow()
    with tempfile.TemporaryDirectory() as elsewhere:
        labels = os.path.join(elsewhere, LABELS_FILE)
        with open(labels, "wb") as file:
            file.write(labels_bytes(source.labels))
        module = tf.Module()  # without functions of its own, which would store the weights again
        module.labels_file = tf.saved_model.Asset(labels)
        tf.saved_model.save(module, folder, _signatures(tf, source))


def _signatures(tf, source):
    """{name: tf.function for given inputs}."""
    specs = [tf.TensorSpec([None, *i.size, 3], tf.float32, i.feed) for i in source.inputs]
    # All signatures call this one function, so that the weights are stored only once.
    network = tf.function(_network(tf, source), input_signature=specs, autograph=False)

    def answer(*pixels):
        return _with_labels(tf, network(*pixels), source.labels)

    def answer_file(image_bytes):
        return answer(*(pixels[None] for pixels in _decode(tf, image_bytes, source)))

    def answer_files(image_bytes):
        one_each = [tf.TensorSpec(spec.shape[1:], spec.dtype) for spec in specs]
        decode = partial(_decode, tf, source=source)
        return answer(*tf.map_fn(decode, image_bytes, fn_output_signature=one_each))

    def signature(function, *inputs):
        return tf.function(function, autograph=False).get_concrete_function(*inputs)

    return {
        FILES: signature(answer_files, tf.TensorSpec([None], tf.string, "image_bytes")),
        FILE: signature(answer_file, tf.TensorSpec([], tf.string, "image_bytes")),
        PIXELS: signature(answer, *specs),
    }


def _network(tf, source):
    """A function of the inputs' pixels that gives float32 [n, k]: the graph itself."""

    def network(*pixels):
        names = [f"{each.node}:0" for each in source.inputs]
        return tf.graph_util.import_graph_def(
            source.graph_def,
            input_map=dict(zip(names, pixels, strict=True)),
            return_elements=[f"{source.output}:0"],
            name="",
        )[0]

    return network


def _with_labels(tf, probabilities, labels):
    labels = tf.constant([label.encode("utf-8", "surrogateescape") for label in labels])
    return {
        "probabilities": probabilities,
        "labels": tf.tile(labels[None], [tf.shape(probabilities)[0], 1]),
        "label": tf.gather(labels, tf.argmax(probabilities, axis=1)),
    }


def _decode(tf, image_bytes, source):
    """float32 [height, width, 3] for each input: what the frozen graph makes of a file's bytes.

    The ops and options are those of `nodes.add_front_end`: the legacy resize kernel, and a product
    with the reciprocal in place of a division.
    """
    image = tf.cast(tf.io.decode_jpeg(image_bytes, channels=3), tf.float32)[None]
    resized = [tf.raw_ops.ResizeBilinear(images=image, size=i.size)[0] for i in source.inputs]
    return [
        (pixels - each.mean) * (1 / each.std)
        for pixels, each in zip(resized, source.inputs, strict=True)
    ]


class SavedModel:
    """A SavedModel as read from its folder."""

    def __init__(self, folder):
        self._tf = import_whole_tensorflow()
        self._loaded = self._tf.saved_model.load(folder)  # whose functions live as long as it does

    def run(self, feeds):
        """float32 [n, k] for {name of an input: float32 [n, height, width, 3]}."""
        feeds = {name: self._tf.constant(pixels) for name, pixels in feeds.items()}
        return self._loaded.signatures[PIXELS](**feeds)["probabilities"].numpy()

    def run_files(self, contents):
        """float32 [n, k] for n files' bytes."""
        contents = self._tf.constant(contents)
        return self._loaded.signatures[FILES](image_bytes=contents)["probabilities"].numpy()
