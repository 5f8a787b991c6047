"""TensorFlow Lite's metadata: a FlatBuffer in the model that describes it, and a zip of its files.

The tables are those of metadata_schema.fbs, version 1.1.0, of TensorFlow Lite Support
(github.com/tensorflow/tflite-support, tensorflow_lite_support/metadata); the numbers below are the
positions of the fields in that schema. This module does not use the writer of that project: its
last release (0.4.4 of 2023) cannot be installed on Python 3.12, nor with a protobuf that this
TensorFlow accepts. tensorflow/lite/g3doc/convert/metadata.md in TensorFlow's repository says how
the parts belong together.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retraining.export.build import LABELS_FILE, labels_bytes
from retraining.export.pixels_graph import Input, Source
from retraining.graphs.description import DESCRIPTION_FILE, IMAGE, OUTPUT, RAW_PIXELS
from retraining.graphs.preprocessing import channels, spelled
from retraining.graphs.tensorflow import import_whole_tensorflow

BUFFER = "TFLITE_METADATA"  # the name of this buffer in the model's list of metadata
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"  # the oldest schema that has all of these fields

# Values of the schema's enumerations and unions.
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
NORMALIZATION_OPTIONS = 1
TENSOR_AXIS_LABELS = 2
RGB = 1
MOST_FIELDS = 8  # in a table; absent fields take no space


def add_metadata(model: bytes, source: Source) -> bytes:
    """Returns the bytes of a TensorFlow Lite model with the metadata and the labels of a Source.

    The labels file and the Source's description are appended in a zip archive, uncompressed, since
    readers map it into memory.
    """
    import_whole_tensorflow()
    from tensorflow.lite.python.schema_py_generated import BufferT, MetadataT
    from tensorflow.lite.tools import flatbuffer_utils

    tree = flatbuffer_utils.convert_bytearray_to_object(model)
    feeds = {i.tensorIndex: i.name.decode() for i in tree.signatureDefs[0].inputs}
    if source.takes == IMAGE:
        # Programs that cannot resize a tensor, such as MediaPipe, need the network's size.
        (image,) = tree.subgraphs[0].inputs
        tree.subgraphs[0].tensors[image].shape = np.array([1, *source.inputs[0].size, 3], np.int32)
    buffer, entry = BufferT(), MetadataT()
    described = _as_quantized(source, tree) if source.takes == RAW_PIXELS else source
    description = describe(described, [feeds[number] for number in tree.subgraphs[0].inputs])
    buffer.data = np.frombuffer(description, np.uint8)
    entry.name, entry.buffer = BUFFER, len(tree.buffers)
    tree.buffers.append(buffer)
    tree.metadata = [*(tree.metadata or []), entry]
    file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(tree))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        # The date is fixed, so that the same graph gives the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), labels_bytes(source.labels))
        archive.writestr(zipfile.ZipInfo(DESCRIPTION_FILE), source.description())
    return file.getvalue()


def _as_quantized(source: Source, tree: Any) -> Source:
    """Returns a Source with the mean and std by which the tensors of a ModelT stand for pixels.

    Programs that normalise and then quantise get the same pixels; MediaPipe does neither.
    """
    tensors = {i.name.decode(): i.tensorIndex for i in tree.signatureDefs[0].inputs}
    inputs = []
    for image in source.inputs:
        quantization = tree.subgraphs[0].tensors[tensors[image.feed]].quantization
        mean, std = float(quantization.zeroPoint[0]), 1 / float(quantization.scale[0])
        inputs.append(
            replace(image, preprocessing=replace(image.preprocessing, mean=mean, std=std))
        )
    return replace(source, inputs=tuple(inputs))


def describe(source: Source, feeds: Sequence[str]) -> bytes:
    """Returns the bytes of the ModelMetadata of a Source, its inputs in the order of `feeds`."""
    import flatbuffers

    write = _Writer(flatbuffers.Builder())
    if source.takes == IMAGE:
        images = [_image(write, IMAGE, "RGB, of any size; the model preprocesses it")]
    else:
        inputs = {image.feed: image for image in source.inputs}
        images = [_pixels(write, inputs[feed]) for feed in feeds]
    probabilities = write.list([_probabilities(write, source)])
    graph = write.table({2: write.list(images), 3: probabilities})
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


def _pixels(write: "_Writer", image: Input) -> int:
    """Writes the TensorMetadata of an Input: an RGB image, and how to normalise its pixels."""
    mean, std = image.preprocessing.mean, image.preprocessing.std
    text = (
        f"{image.size[0]} x {image.size[1]} pixels (height x width), RGB, "
        f"(pixel - {spelled(mean)}) / {spelled(std)}"
    )
    normalisation = write.table({0: write.floats(channels(mean)), 1: write.floats(channels(std))})
    return _image(write, image.feed, text, [write.union(NORMALIZATION_OPTIONS, normalisation)])


def _image(write: "_Writer", name: str, text: str, units: Sequence[int] = ()) -> int:
    """Writes the TensorMetadata of an RGB image, with the offsets of its process units."""
    references = {
        0: write.text(name),
        1: write.text(text),
        3: write.union(IMAGE_PROPERTIES, write.table({}, {0: RGB})),
    }
    return write.table(references | ({4: write.list(units)} if units else {}))


def _probabilities(write: "_Writer", source: Source) -> int:
    """Writes the TensorMetadata of the output, which names the labels file."""
    labels = write.table(
        {0: write.text(LABELS_FILE), 1: write.text("the labels, in the order of the output")},
        {2: TENSOR_AXIS_LABELS},
    )
    return write.table(
        {
            0: write.text(OUTPUT),
            1: write.text(
                f"the softmax at the temperature {source.temperature:g}"
                if source.temperature_inside
                else "the plain softmax, without a temperature"
            ),
            3: write.union(FEATURE_PROPERTIES, write.table({})),
            6: write.list([labels]),
        }
    )


class _Writer:
    """Writes the parts of a FlatBuffer; each method returns the offset of that part."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder  # a flatbuffers.Builder

    def text(self, value: str) -> int:
        offset: int = self.builder.CreateString(value)
        return offset

    def floats(self, values: Sequence[float]) -> int:
        offset: int = self.builder.CreateNumpyVector(np.array(values, np.float32))
        return offset

    def list(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        vector: int = self.builder.EndVector()
        return vector

    def table(self, references: Mapping[int, int], numbers: Mapping[int, int] | None = None) -> int:
        """Writes a table of `references` {field: offset} and `numbers` {field: byte}."""
        self.builder.StartObject(MOST_FIELDS)
        for field, offset in references.items():
            self.builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        for field, value in (numbers or {}).items():
            self.builder.PrependUint8Slot(field, value, 0)
        table: int = self.builder.EndObject()
        return table

    def union(self, kind: int, offset: int) -> int:
        """Writes a table whose first fields are a union, as those of Content and ProcessUnit."""
        return self.table({1: offset}, {0: kind})
