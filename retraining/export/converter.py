"""Defines the Converter, in which the module of each format states what it offers and needs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retraining.export.pixels_graph import Feeds, Pixels, Source
from retraining.export.verify import SAME_PROBABILITY, SAME_TOP
from retraining.graphs.description import PIXELS

# Yields training photos, one at a time: {name of an input: float32 [1, height, width, 3]}.
Calibration: TypeAlias = Callable[[], Iterator[Pixels]]


class ConvertedModel(Protocol):
    """A model of one format that its own library has loaded."""

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: n images as that input takes them}."""


@runtime_checkable
class DecodingModel(ConvertedModel, Protocol):
    """A ConvertedModel that takes the bytes of image files, too."""

    def run_files(self, contents: Sequence[bytes]) -> NDArray[np.float32]:
        """Returns float32 [n, k] for the bytes of n files."""


@dataclass(frozen=True)
class Converter:
    """Writes a retrained graph in another format, and loads what it wrote.

    `variants` {value of the flag `variant_option`: Converter} take its place if the user asks.
    """

    kind: str  # identifies it
    name: str  # in the printed results; variants share it
    option: str  # the flag, without `--`, that asks for it
    help: str  # of that flag
    save: Callable[[Source, str], None]  # to a path; raises any error
    load: Callable[[str], ConvertedModel]  # from that path
    # In place of `save`, for a format that is fitted to training photos:
    calibrate: Callable[[Source, str, Calibration], None] | None = None
    takes: tuple[str, ...] = (PIXELS,)  # what models of this format can take
    is_folder: bool = False  # writes a folder, not a file
    output: Callable[[str], str] = os.fspath  # the path of the output, from the path that is set
    packages: tuple[str, ...] = ()  # that `save` and `load` import, beyond requirements.txt
    requirements: str = ""  # the file that lists these packages
    least_same: float = SAME_TOP  # share of photos with the graph's first label
    most_apart: float = SAME_PROBABILITY  # difference of a probability
    quantized: bool = False  # answers differ from the graph's by nature
    test_photos: int = 50  # at most, that test what is written
    variants: "Mapping[str, Converter]" = field(default_factory=dict)
    variant_option: str = ""
    variant_help: str = ""

    def write(self, source: Source, path: str, calibration: Calibration) -> None:
        """Writes a Source to `path`, fitted to the photos of `calibration` if the format is.

        Raises:
            Exception: of any kind, as the libraries of the formats raise them.
        """
        if self.calibrate:
            self.calibrate(source, path, calibration)
        else:
            self.save(source, path)

    def taking(self, wanted: str) -> str:
        """Returns what models of this format take: `wanted`, of TAKES, if they can."""
        return wanted if wanted in self.takes else self.takes[0]
