"""What a classifier asks of its model: a frozen graph, or a file of another format."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.stream import Answer
from retraining.photos.reader import Image

AnyImage = TypeVar("AnyImage", bound=Image)


@dataclass(frozen=True)
class Request:
    """How images are answered.

    The model gives a probability for each of `classes` labels. `count` is the number of images, if
    it is known. Images of more than `max_pixels` are refused. The columns of the nodes `also` of a
    frozen graph follow the probabilities.
    """

    classes: int
    count: int | None
    max_pixels: int
    also: tuple[str, ...] = ()


class Model(Protocol):
    """Computes the output for images."""

    def answers(
        self, images: Iterable[AnyImage], request: Request
    ) -> Iterator[tuple[AnyImage, Answer]]:
        """Yields (image, float32 [1, columns] or ImageError), in order; see stream.stream.

        Raises:
            GraphError: the model cannot be run.
            LabelsError: it gives more or fewer probabilities than there are classes.
        """


@dataclass(frozen=True)
class Computed:
    """A runner for batches whose answers were computed during loading, on `parallel` threads."""

    parallel: int = 1

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the batch."""
        return batch
