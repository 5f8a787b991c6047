"""Labels with models in other formats: what retrain.py exports, and what others made.

A module for each format opens a file as a Program. This module puts together what the file tells of
itself and what the user says, and feeds the Program.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.stream import Answer, stream
from retraining.graphs.description import DESCRIPTION_FILE, IMAGE, PIXELS, RAW_PIXELS
from retraining.graphs.front_end import MAX_SIDE
from retraining.graphs.nodes import GraphError
from retraining.graphs.preprocessing import (
    ANY_SIZE,
    Preprocessing,
    PreprocessingError,
    can_scale,
)
from retraining.labelling.labels import check_width
from retraining.labelling.model import AnyImage, Computed, Request
from retraining.labelling.program import Input, Program, StartedProgram
from retraining.labelling.resolve import Overrides, check_scale
from retraining.photos.reader import Image, ImageReader

TEMPERATURES = (0.01, 100.0)  # beyond the limits of the search in evaluation/temperature.py


@dataclass(frozen=True)
class Feed:
    """How images become what an input takes: float32 pixels, or `raw` uint8 ones."""

    preprocessing: Preprocessing
    raw: bool = False
    channels_first: bool = False

    def of(self, pixels: NDArray[np.float32]) -> NDArray[Any]:
        """Returns what the input takes for float32 [n, height, width, 3]."""
        if self.channels_first:
            pixels = np.ascontiguousarray(np.moveaxis(pixels, 3, 1))
        return np.rint(pixels).clip(0, 255).astype(np.uint8) if self.raw else pixels

    def reader(self, max_pixels: int) -> Callable[[Image], NDArray[Any]]:
        """Returns a function that reads an image as the input takes it, [1, ...]."""
        reader = ImageReader(self.preprocessing, max_pixels)
        if self.preprocessing.size == ANY_SIZE:
            return lambda image: reader.pixels(image)[None]
        return lambda image: self.of(reader.load(image))


@dataclass(frozen=True)
class ExportedModel:
    """A program, and how to feed its inputs."""

    program: Program
    feeds: Mapping[str, Feed]

    def answers(
        self, images: Iterable[AnyImage], request: Request
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """As Model.answers."""
        check_width(self.program.width, request.classes)
        running = self.program.start(request.count)
        readers = {name: feed.reader(request.max_pixels) for name, feed in self.feeds.items()}
        if self.program.batches and len(readers) == 1:
            ((name, read),) = readers.items()
            return stream(images, read, _Batches(running, name))

        def load(image: Image) -> NDArray[np.float32]:
            return running.run_feeds({name: read(image) for name, read in readers.items()})

        return stream(images, load, Computed(running.parallel))


@dataclass(frozen=True)
class _Batches:
    """Runs a program of one input on batches."""

    running: StartedProgram
    input: str

    @property
    def parallel(self) -> int:
        return self.running.parallel

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.running.run_feeds({self.input: batch})


@dataclass(frozen=True)
class Description:
    """What an exported file tells of itself; `raw_temperature` gives the plain softmax."""

    labels: tuple[str, ...]
    feeds: Mapping[str, Feed]
    temperature: float
    raw_temperature: float

    @classmethod
    def parse(cls, text: bytes) -> "Description":
        """Reads the JSON that `Source.describe` of export/pixels_graph.py writes.

        Raises:
            GraphError: it is damaged, or of a kind that this version does not know.
        """
        try:
            stored = json.loads(text)
            labels = tuple(stored["labels"])
            feeds = {name: _feed(how) for name, how in stored["inputs"].items()}
            temperature, inside = float(stored["temperature"]), stored["temperature_inside"]
            sound = all(isinstance(label, str) for label in labels) and feeds
            low, high = TEMPERATURES
            if not sound or not low <= temperature <= high or not isinstance(inside, bool):
                raise ValueError
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise GraphError(f"its own description ({DESCRIPTION_FILE}) is damaged") from error
        if inside:
            return cls(labels, feeds, 1.0, 1 / temperature)
        return cls(labels, feeds, temperature, 1.0)


def _feed(how: Mapping[str, Any]) -> Feed:
    """Returns the Feed of the description of an input.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
        GraphError: this version cannot make what the input takes.
    """
    preprocessing, takes = Preprocessing.of(how), how["takes"]
    sides = preprocessing.size
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError
    if not can_scale(preprocessing.mean, preprocessing.std):
        raise ValueError
    if takes not in (PIXELS, RAW_PIXELS, IMAGE):
        raise GraphError(f"this version cannot make what it takes: {str(takes)[:40]!r}")
    try:
        preprocessing.resizing()
    except PreprocessingError as error:
        raise GraphError(str(error)) from error
    if takes == PIXELS:
        return Feed(preprocessing)
    size = ANY_SIZE if takes == IMAGE else preprocessing.size
    return Feed(replace(preprocessing, size=size, mean=0.0, std=1.0), raw=True)


def model_of(program: Program, own: Description | None, overrides: Overrides) -> ExportedModel:
    """Returns the model of a program; `own` is its description, if it has one.

    Raises:
        GraphError: a fact is missing, or the user contradicts the file.
    """
    if own is None:
        if len(program.inputs) != 1:
            raise GraphError(f"it takes {len(program.inputs)} inputs, not one image")
        ((name, taken),) = program.inputs.items()
        return ExportedModel(program, {name: _foreign_feed(program, taken, overrides)})
    if own.feeds.keys() != program.inputs.keys():
        raise GraphError("its inputs are not those of its own description")
    feeds = {name: _overridden(feed, overrides) for name, feed in own.feeds.items()}
    for name, feed in feeds.items():
        _check_input(program.inputs[name], feed)
    return ExportedModel(program, feeds)


def _overridden(feed: Feed, overrides: Overrides) -> Feed:
    """Returns a Feed with the user's scale.

    Raises:
        GraphError: the input does not leave that to the user.
    """
    mean, std = overrides.input_mean, overrides.input_std
    given = mean is not None or std is not None
    if feed.raw and given:
        raise GraphError(
            "it scales pixels itself; drop `Overrides.input_mean` and `Overrides.input_std`"
        )
    known = feed.preprocessing
    size = overrides.input_height or known.size[0], overrides.input_width or known.size[1]
    if size != known.size:
        takes = "any size" if known.size == ANY_SIZE else "{} x {} pixels".format(*known.size)
        raise GraphError(
            f"it takes images of {takes}; drop `Overrides.input_height` and `Overrides.input_width`"
        )
    mean, std = known.mean if mean is None else mean, known.std if std is None else std
    check_scale(mean, std)
    return replace(feed, preprocessing=replace(known, mean=mean, std=std))


def _check_input(taken: Input, feed: Feed) -> None:
    """Raises GraphError if an input does not take what its description tells."""
    size = feed.preprocessing.size
    fits = size == ANY_SIZE or all(
        own in (None, side) for own, side in zip(taken.size, size, strict=True)
    )
    if not fits or taken.channels_first or (feed.raw and taken.dtype != "uint8"):
        raise GraphError("its input is not that of its own description")


def _foreign_feed(program: Program, taken: Input, overrides: Overrides) -> Feed:
    """Returns the Feed of the only input of a file without a description.

    Raises:
        GraphError: a fact is missing, or the user contradicts the file.
    """
    whole = taken.dtype == "uint8" and not taken.quantised
    if not whole and not taken.quantised and taken.dtype not in ("float32", "float16"):
        raise GraphError(f"it takes {taken.dtype}, not images of float32 or uint8")
    size = _foreign_size(taken, overrides)
    unscaled = (0.0, 1.0) if taken.dtype == "uint8" else (None, None)
    own_mean, own_std = program.scale or unscaled
    mean = own_mean if overrides.input_mean is None else overrides.input_mean
    std = own_std if overrides.input_std is None else overrides.input_std
    if mean is None or std is None:
        raise GraphError(
            "it does not tell how pixels are scaled; give `Overrides.input_mean` and "
            "`Overrides.input_std`"
        )
    check_scale(mean, std)
    if whole and (mean, std) != (0, 1):
        raise GraphError(
            "it takes pixels of 0..255; drop `Overrides.input_mean` and `Overrides.input_std`"
        )
    raw = taken.dtype == "uint8" and (mean, std) == (0, 1)
    return Feed(Preprocessing(size, mean, std), raw, taken.channels_first)


def _foreign_size(taken: Input, overrides: Overrides) -> tuple[int, int]:
    """Returns (height, width) in pixels. Raises GraphError."""
    asked = overrides.input_height, overrides.input_width
    sides = []
    for own, given in zip(taken.size, asked, strict=True):
        if own and given and own != given:
            raise GraphError(
                f"it takes images of {' x '.join(str(side or '?') for side in taken.size)} pixels; "
                f"drop `Overrides.input_height` and `Overrides.input_width`"
            )
        sides.append(own or given)
    height, width = sides
    if not height or not width:
        raise GraphError(
            "it does not tell its image size; give `Overrides.input_height` and "
            "`Overrides.input_width`"
        )
    if max(height, width) > MAX_SIDE:
        raise GraphError(f"it takes images of {height} x {width} pixels, which is too large")
    return height, width
