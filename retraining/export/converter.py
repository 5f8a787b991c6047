"""Defines the Converter, in which the module of each format states what it offers and needs."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retraining.export.pixels_graph import PIXELS, Feeds, Source
from retraining.export.verify import SAME_PROBABILITY, SAME_TOP


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
    takes: tuple[str, ...] = (PIXELS,)  # what models of this format can take, of TAKES
    is_folder: bool = False  # writes a folder, not a file
    output: Callable[[str], str] = os.fspath  # the path of the output, from the path that is set
    packages: tuple[str, ...] = ()  # that `save` and `load` import, beyond requirements.txt
    requirements: str = ""  # the file that lists these packages
    least_same: float = SAME_TOP  # share of photos with the graph's first label
    most_apart: float = SAME_PROBABILITY  # difference of a probability
    variants: "Mapping[str, Converter]" = field(default_factory=dict)
    variant_option: str = ""
    variant_help: str = ""

    def taking(self, wanted: str) -> str:
        """Returns what models of this format take, of TAKES: `wanted` if they can."""
        return wanted if wanted in self.takes else self.takes[0]
