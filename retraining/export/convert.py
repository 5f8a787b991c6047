"""Converts a retrained graph to other formats and runs each on photos, in a process of its own.

Converters keep Python from hearing Ctrl-C for many seconds, write to stderr what they like, and
need all of TensorFlow. `formats` therefore starts this with
`python -m retraining.export.convert FOLDER`.

FOLDER holds `graph.pb`, a retrained graph, and `request.json`: `format`, a name of FORMATS;
`photos`, paths; `max_image_pixels`. Added are the file of FORMATS, and `answers.json`:
{what it was fed: [photos, share with the same first label, largest difference of a probability]}.
"""

import contextlib
import json
import os
import sys
from dataclasses import dataclass

import numpy as np

from retraining.errors import RetrainingError
from retraining.export import to_onnx, to_saved_model, to_tflite
from retraining.export.pixels_graph import Source
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.graphs.session import open_session
from retraining.metrics import classification
from retraining.photos.reader import ImageError, ImageReader, read_file, run_on_bytes
from retraining.system.text import one_line

FORMATS = {  # name: (file or folder, what writes it, what runs it)
    "saved_model": ("saved_model", to_saved_model.save, to_saved_model.SavedModel),
    "tflite": ("float.tflite", to_tflite.save, to_tflite.TFLiteModel),
    "tflite_int8": ("int8.tflite", to_tflite.save_quantized, to_tflite.TFLiteModel),
    "onnx": ("model.onnx", to_onnx.save, to_onnx.OnnxModel),
}
FROM_FILES = "files' bytes"  # what a SavedModel is fed beside pixels
MOST_FILES = 10  # photos that are run from their bytes, one at a time
AT_ONCE = 8  # photos that go through the graph together


@dataclass(frozen=True)
class Samples:
    """Photos, and what the frozen graph answers to them.

    `feeds` {name of an input: float32 [n, height, width, 3]} and `answers` float32 [n, k];
    `files`, bytes of m of them, and `answers_to_files` float32 [m, k].
    """

    feeds: dict[str, np.ndarray]
    answers: np.ndarray
    files: list[bytes]
    answers_to_files: np.ndarray


def main(folder):
    """Converts and runs; ends the process with one line if the format cannot be made."""
    with open(os.path.join(folder, "request.json"), encoding="ascii") as file:
        request = json.load(file)
    graph_def = read_graph(os.path.join(folder, "graph.pb"), allow_unsafe_ops=True)
    source = Source.of(graph_def)
    samples = read_samples(graph_def, source, request["photos"], request["max_image_pixels"])
    name = request["format"]
    try:
        answers = convert_and_run(name, source, samples, folder)
    except Exception as error:  # converters raise anything; formats passes the line on
        sys.exit(f"{name}: {one_line(error)}")
    with open(os.path.join(folder, "answers.json"), "w", encoding="ascii") as file:
        json.dump(answers, file)


def read_samples(graph_def, source, paths, max_pixels):
    """The Samples that can be read of the photos at `paths`."""
    readers = [ImageReader(each.size, each.mean, each.std, max_pixels) for each in source.inputs]
    pixels, files, answers_to_files = [], [], []
    from_bytes = BytesRunner(graph_def, source.output)
    for path in paths:
        with contextlib.suppress(ImageError):  # it has vanished meanwhile
            pixels.append([reader.read(path)[0] for reader in readers])
        with contextlib.suppress(ImageError):  # or it is none that the graph's own decoder reads
            if len(files) < MOST_FILES:
                content = read_file(path, max_pixels)
                answers_to_files.append(run_on_bytes(from_bytes, content)[0])
                files.append(content)
    if not pixels:
        raise RetrainingError("no photo can be read any more to try it on")
    each_input = map(np.stack, zip(*pixels, strict=True))
    feeds = {i.feed: each for i, each in zip(source.inputs, each_input, strict=True)}
    answers = run_frozen(graph_def, source, feeds)
    return Samples(feeds, answers, files, np.array(answers_to_files))


def run_frozen(graph_def, source, feeds):
    """float32 [n, k]: the untouched graph's answers to `feeds`, in float32."""
    nodes = {each.feed: f"{each.node}:0" for each in source.inputs}
    rows = range(0, len(next(iter(feeds.values()))), AT_ONCE)
    with open_session(graph_def, source.output) as session:
        return np.concatenate(
            [
                session.run(
                    f"{source.output}:0",
                    {nodes[feed]: all_[row : row + AT_ONCE] for feed, all_ in feeds.items()},
                )
                for row in rows
            ]
        )


def convert_and_run(name, source, samples, folder):
    """Writes one format into the folder, reads it back and runs it; the answers of answers.json."""
    file, save, read = FORMATS[name]
    path = os.path.join(folder, file)
    save(source, path)
    model = read(path)
    found = {"pixels": compare(model.run(samples.feeds), samples.answers)}
    if name == "saved_model" and samples.files:
        answers = model.run_files(samples.files)
        found[FROM_FILES] = compare(answers, samples.answers_to_files)
    return found


def compare(answers, expected):
    """[photos, share with the same first label, largest difference of a probability]."""
    return [len(expected), *classification.agreement(answers, expected)]


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except RetrainingError as error:
        sys.exit(str(error))
