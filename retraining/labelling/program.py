"""What the module of each format makes of a model's file: a Program, after it has checked it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retraining.graphs.nodes import GraphError
from retraining.graphs.preprocessing import PerChannel
from retraining.system.regular import open_regular


@dataclass(frozen=True)
class Input:
    """An input of a program: its sizes, None if it takes any, and the name of its NumPy type.

    `quantised` integers stand for numbers by a scale that the file has.
    """

    shape: tuple[int | None, ...]
    dtype: str
    quantised: bool = False

    @property
    def channels_first(self) -> bool:
        """Whether it takes [n, 3, height, width], as models of PyTorch do."""
        return len(self.shape) == 4 and self.shape[1] == 3 and self.shape[3] != 3

    @property
    def size(self) -> tuple[int | None, int | None]:
        """(height, width) in pixels.

        Raises:
            GraphError: it takes no images, or several at once.
        """
        shape = self.shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise GraphError(f"it takes {list(shape)}, not images [n, height, width, 3]")
        if shape[0] not in (None, 1):
            raise GraphError(f"it takes {shape[0]} images at once; export it for one or any number")
        return (shape[2], shape[3]) if self.channels_first else (shape[1], shape[2])


class StartedProgram(Protocol):
    """A program that has been started."""

    @property
    def parallel(self) -> int:
        """How many threads may call `run_feeds` at once."""

    def run_feeds(self, feeds: Mapping[str, NDArray[Any]], /) -> NDArray[np.float32]:
        """Returns float32 [n, k] for {name of an input: n images as that input takes them}.

        Raises:
            GraphError: the program cannot run.
        """


@dataclass(frozen=True)
class Program:
    """A model that its own library has opened."""

    inputs: Mapping[str, Input]
    width: int | None  # the number of its probabilities, if known
    start: Callable[[int | None], StartedProgram]  # takes the number of images, if known
    batches: bool = False  # whether images may share a batch
    description: bytes | None = None  # the JSON that retrain.py stores in the file
    labels: tuple[str, ...] | None = None  # in a file that retrain.py did not write
    scale: tuple[PerChannel, PerChannel] | None = None  # (mean, std), likewise
    unsafe: str = ""  # what it holds that may do more than compute


def as_rows(answers: ArrayLike, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Returns the answers of a library to `feeds`, of n images, as float32 [n, k]."""
    count = len(next(iter(feeds.values())))
    return np.asarray(answers).astype(np.float32).reshape(count, -1)


def read_file(path: str | Path, most: int) -> bytes:
    """Returns the content of a file of up to `most` bytes.

    Raises:
        GraphError: it cannot be read.
    """
    try:
        with open_regular(path, most) as file:
            return file.read()
    except OSError as error:
        raise GraphError(f"it cannot be read: {error.strerror}") from error


def refuse_unsafe(unsafe: str, allow_unsafe_ops: bool) -> None:
    """Raises GraphError for ops that may do more than compute, if there are any."""
    if unsafe and not allow_unsafe_ops:
        raise GraphError(
            f"it could do more than compute: it holds {unsafe}; if you trust whoever made it, add "
            f"`Overrides.allow_unsafe_ops`"
        )
