"""Converts a retrained graph to another format and runs it on photos, in a process of its own.

Converters keep Python from handling Ctrl-C for many seconds, write freely to stderr, and need all
of TensorFlow. Therefore `formats` starts this with `python -m retraining.export.convert FOLDER`.

FOLDER holds `graph.pb`, a retrained graph, and `request.json`: `format`, a kind of Converter;
`takes`, one of TAKES; `photos`, paths; `targets`, indexes of their labels; `calibration`, paths of
training photos; `max_image_pixels`. This program adds a file or folder named after the format, and
`answers.json`: {kind of input: the numbers of an Agreement, or null if TensorFlow decodes none of
the photos}.
"""

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.evaluation.temperature import apply_temperature
from retraining.export.converter import Calibration, ConvertedModel, DecodingModel
from retraining.export.pixels_graph import Pixels, Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.description import IMAGE
from retraining.graphs.messages import GraphDef
from retraining.graphs.preprocessing import DEVELOP
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.graphs.session import return_free_memory
from retraining.metrics import classification
from retraining.photos.bounds import ImageFileError
from retraining.photos.decode import decoded, has_transparency
from retraining.photos.reader import ImageError, ImageReader, read_file, run_on_bytes
from retraining.system.atomic import naming
from retraining.system.children import end_with_parent
from retraining.system.text import one_line

FROM_FILES = "files' bytes"  # the kind of input that a DecodingModel takes besides pixels
MOST_FILES = 10  # photos that run from their bytes, one at a time
AT_ONCE = 8  # photos in one batch


class Agreement(NamedTuple):
    """Compares the answers of another format with those of the graph.

    `same` is the share of photos with the same first label, `difference` the largest of a
    probability; `correct` and `correct_by_graph` are numbers of photos with the right label first.
    """

    photos: int
    same: float
    difference: float
    correct: int
    correct_by_graph: int


@dataclass(frozen=True)
class Samples:
    """Photos, and the answers of the frozen graph.

    `feeds` {name of an input: float32 [n, height, width, 3]} and `answers` float32 [n, k];
    `files`, the bytes of m of them, and `answers_to_files` float32 [m, k]. `images` yields the n
    photos as decoded, each uint8 [1, height, width, 3]. Answers are at the temperature if it is
    inside the model. `targets` int [n] and `targets_of_files` int [m] are the indexes of the true
    labels.
    """

    images: Iterator[NDArray[np.uint8]]
    feeds: Pixels
    answers: NDArray[np.float32]
    targets: NDArray[np.int_]
    files: list[bytes]
    answers_to_files: NDArray[np.float32]
    targets_of_files: NDArray[np.int_]


def main(folder: str) -> None:
    """Converts and runs; ends the process with one line if it cannot make the format."""
    with open(os.path.join(folder, "request.json"), encoding="ascii") as file:
        request = json.load(file)
    graph_def = read_graph(os.path.join(folder, "graph.pb"), allow_unsafe_ops=True)
    most, kind = request["max_image_pixels"], request["format"]
    source = Source.of(graph_def, CONVERTERS[kind].taking(request["takes"]))
    photos = dict(zip(request["photos"], request["targets"], strict=True))
    samples = read_samples(graph_def, source, photos, most)
    del graph_def  # `source` has a copy
    return_free_memory()
    calibration = partial(read_calibration, source, request["calibration"], most)
    try:
        answers = convert_and_run(kind, source, samples, calibration, folder)
    except Exception as error:  # converters raise any kind; formats shows the line
        sys.exit(f"{kind}: {one_line(error)}")
    written = os.path.join(folder, "answers.json")
    with naming(written), open(written, "w", encoding="ascii") as file:
        json.dump(answers, file)


def read_samples(
    graph_def: GraphDef, source: Source, photos: Mapping[str, int], max_pixels: int
) -> Samples:
    """Reads photos {path: index of the label} into Samples, but for those that cannot be read.

    Raises:
        RetrainingError: none can be read.
    """
    frozen = BytesRunner(graph_def, source.output)
    read, feeds = read_pixels(source, photos, max_pixels)
    answers = run_frozen(frozen, source, feeds)
    files = run_on_files(frozen, photos, max_pixels)
    from_files = np.array([answer for _, answer in files.values()], np.float32)
    from_files = from_files.reshape(len(files), len(source.labels))
    if source.temperature_inside:
        answers, from_files = (
            apply_temperature(rows, source.temperature) for rows in (answers, from_files)
        )
    return Samples(
        decode(read, source.inputs[0].preprocessing.raw, max_pixels),
        feeds,
        answers,
        np.array([photos[path] for path in read]),
        [content for content, _ in files.values()],
        from_files,
        np.array([photos[path] for path in files]),
    )


def read_pixels(
    source: Source, paths: Iterable[str], max_pixels: int
) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """Returns the paths that can be read, and {name of an input: float32 [n, height, width, 3]}.

    Raises:
        RetrainingError: none can be read.
    """
    readers = [ImageReader(i.preprocessing, max_pixels) for i in source.inputs]
    pixels: dict[str, list[NDArray[np.float32]]] = {}
    for path in paths:
        with contextlib.suppress(ImageError):  # the photo has vanished since
            pixels[path] = [reader.read(path)[0] for reader in readers]
    if not pixels:
        raise RetrainingError("none of the photos to try it on can be read any more")
    batches = map(np.stack, zip(*pixels.values(), strict=True))
    return list(pixels), {i.feed: b for i, b in zip(source.inputs, batches, strict=True)}


def run_on_files(
    frozen: BytesRunner, paths: Iterable[str], max_pixels: int
) -> dict[str, tuple[bytes, NDArray[np.float32]]]:
    """Returns {path: (content, float32 [k])} of up to MOST_FILES photos that the graph decodes.

    Leaves out photos with transparency, which the graph's own decoder ignores.
    """
    answered: dict[str, tuple[bytes, NDArray[np.float32]]] = {}
    for path in paths:
        if len(answered) == MOST_FILES:
            break
        # It has vanished, or the graph or Pillow does not decode it.
        with contextlib.suppress(ImageError, ImageFileError):
            content = read_file(path, max_pixels)
            answer = run_on_bytes(frozen, content, max_pixels)[0]
            if not has_transparency(content):
                answered[path] = content, answer
    return answered


def decode(paths: Sequence[str], raw: str, max_pixels: int) -> Iterator[NDArray[np.uint8]]:
    """Yields each photo as decoded, upright: uint8 [1, height, width, 3]."""
    for path in paths:
        content = read_file(path, max_pixels)
        with decoded(content, max_pixels, develop=raw == DEVELOP) as pixels:
            yield pixels[None]


def run_frozen(frozen: BytesRunner, source: Source, feeds: Pixels) -> NDArray[np.float32]:
    """Returns float32 [n, k]: the answers of the unchanged graph to `feeds`, in float32."""
    rows = (
        {image.node: feeds[image.feed][row : row + 1] for image in source.inputs}
        for row in range(len(next(iter(feeds.values()))))
    )
    return np.concatenate([frozen.run_pixels(row) for row in rows])


def read_calibration(source: Source, paths: Sequence[str], max_pixels: int) -> Iterator[Pixels]:
    """Yields training photos, one at a time; leaves out those that cannot be read any more."""
    readers = {i.feed: ImageReader(i.preprocessing, max_pixels) for i in source.inputs}
    for path in paths:
        with contextlib.suppress(ImageError):
            yield {feed: reader.read(path) for feed, reader in readers.items()}


def convert_and_run(
    kind: str, source: Source, samples: Samples, calibration: Calibration, folder: str
) -> dict[str, Agreement | None]:
    """Writes one format, reads it back and runs it; returns the content of answers.json."""
    path, converter = os.path.join(folder, kind), CONVERTERS[kind]
    with naming(path):
        converter.write(source, path, calibration)
    gc.collect()  # functions of TensorFlow hold each other
    return_free_memory()
    model = converter.load(path)
    if source.takes == IMAGE:
        answers = np.concatenate([model.run({IMAGE: image}) for image in samples.images])
    else:
        answers = run_in_batches(model, samples.feeds)
    agreements: dict[str, Agreement | None] = {
        source.takes: compare(answers, samples.answers, samples.targets)
    }
    if isinstance(model, DecodingModel):
        agreements[FROM_FILES] = (
            compare(
                model.run_files(samples.files), samples.answers_to_files, samples.targets_of_files
            )
            if samples.files
            else None
        )
    return agreements


def run_in_batches(model: ConvertedModel, feeds: Pixels) -> NDArray[np.float32]:
    """Returns float32 [n, k], computed for AT_ONCE photos at a time."""
    starts = range(0, len(next(iter(feeds.values()))), AT_ONCE)
    batches = ({name: p[n : n + AT_ONCE] for name, p in feeds.items()} for n in starts)
    return np.concatenate([model.run(batch) for batch in batches])


def compare(
    answers: NDArray[np.float32], expected: NDArray[np.float32], targets: NDArray[np.int_]
) -> Agreement:
    """Returns the Agreement of `answers` with those `expected`, float32 [n, k]."""
    same, difference = classification.agreement(answers, expected)
    correct, by_graph = (int((a.argmax(axis=1) == targets).sum()) for a in (answers, expected))
    return Agreement(len(expected), same, difference, correct, by_graph)


if __name__ == "__main__":
    end_with_parent()
    try:
        main(sys.argv[1])
    except RetrainingError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(one_line(error))
