"""TensorFlow Lite's metadata: a FlatBuffer in the model that describes it, and a zip of its files.

The tables are those of metadata_schema.fbs, version 1.1.0, of TensorFlow Lite Support
(github.com/tensorflow/tflite-support, tensorflow_lite_support/metadata); the numbers below are the
places of the fields in it. Its own writer is not used: its last release (0.4.4 of 2023) cannot be
installed on Python 3.12, nor beside a protobuf that this TensorFlow takes. How the parts are put
together: tensorflow/lite/g3doc/convert/metadata.md in TensorFlow's repository.
"""

import io
import zipfile

import numpy as np

from retraining.export.build import labels_bytes
from retraining.graphs.tensorflow import import_whole_tensorflow

LABELS_FILE = "labels.txt"
BUFFER = "TFLITE_METADATA"  # its name in the model's list of metadata
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"  # of the schema that all of these fields were in already

# Values of the schema's enumerations and unions.
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
NORMALIZATION_OPTIONS = 1
TENSOR_AXIS_LABELS = 2
RGB = 1
MOST_FIELDS = 8  # of a table that is written here; fields that are left out take no room


def add_metadata(model, source):
    """The bytes of a TensorFlow Lite model with metadata on a source.Source, and its labels.

    The file of labels is appended as a zip archive, uncompressed, as readers map it to memory.
    """
    import_whole_tensorflow()
    from tensorflow.lite.python.schema_py_generated import BufferT, MetadataT
    from tensorflow.lite.tools import flatbuffer_utils

    tree = flatbuffer_utils.convert_bytearray_to_object(model)
    feeds = {each.tensorIndex: each.name.decode() for each in tree.signatureDefs[0].inputs}
    buffer, entry = BufferT(), MetadataT()
    about = describe(source, [feeds[number] for number in tree.subgraphs[0].inputs])
    buffer.data = np.frombuffer(about, np.uint8)
    entry.name, entry.buffer = BUFFER, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [*(tree.metadata or []), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(tree))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        # With a fixed date: the same graph gives the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), labels_bytes(source.labels))
    return file.getvalue()


def describe(source, feeds):
    """The bytes of a ModelMetadata on a source.Source; its inputs come in the order of `feeds`."""
    import flatbuffers

    write = _Writer(flatbuffers.Builder())
    inputs = {each.feed: each for each in source.inputs}
    images = write.list([_image(write, inputs[feed]) for feed in feeds])
    graph = write.table({2: images, 3: write.list([_probabilities(write)])})
    model = write.table(
        {
            0: write.text("image classifier"),
            1: write.text(f"{source.network} with a retrained last layer"),
            3: write.list([graph]),
            7: write.text(PARSER_VERSION),
        }
    )
    write.builder.Finish(model, IDENTIFIER)
    return bytes(write.builder.Output())


def _image(write, image):
    """The TensorMetadata of a source.Input: an RGB image and how its pixels are normalised."""
    properties = write.union(IMAGE_PROPERTIES, write.table({}, {0: RGB}))
    normalisation = write.table({0: write.floats([image.mean]), 1: write.floats([image.std])})
    return write.table(
        {
            0: write.text(image.feed),
            1: write.text(
                f"{image.size[0]} x {image.size[1]} pixels (height x width), RGB, "
                f"(pixel - {image.mean:g}) / {image.std:g}"
            ),
            3: properties,
            4: write.list([write.union(NORMALIZATION_OPTIONS, normalisation)]),
        }
    )


def _probabilities(write):
    """The TensorMetadata of the output, which names the file of its labels."""
    labels = write.table(
        {0: write.text(LABELS_FILE), 1: write.text("the labels, in the order of the output")},
        {2: TENSOR_AXIS_LABELS},
    )
    return write.table(
        {
            0: write.text("probabilities"),
            1: write.text("the plain softmax, without a temperature"),
            3: write.union(FEATURE_PROPERTIES, write.table({})),
            6: write.list([labels]),
        }
    )


class _Writer:
    """Writes the parts of a FlatBuffer, each giving its place, which others then refer to."""

    def __init__(self, builder):
        self.builder = builder

    def text(self, value):
        return self.builder.CreateString(value)

    def floats(self, values):
        return self.builder.CreateNumpyVector(np.array(values, np.float32))

    def list(self, places):
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return self.builder.EndVector()

    def table(self, references, numbers=None):
        """`references` {field: place}, `numbers` {field: a number of one byte}."""
        self.builder.StartObject(MOST_FIELDS)
        for field, place in references.items():
            self.builder.PrependUOffsetTRelativeSlot(field, place, 0)
        for field, value in (numbers or {}).items():
            self.builder.PrependUint8Slot(field, value, 0)
        return self.builder.EndObject()

    def union(self, kind, place):
        """A table whose first fields are a union: Content and ProcessUnit."""
        return self.table({1: place}, {0: kind})
