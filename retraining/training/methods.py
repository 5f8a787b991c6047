"""The training methods that a run can compare, their results, and the table of them."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.metrics.classification import accuracy, top_accuracy
from retraining.networks.network import BaseNetwork
from retraining.system.text import table
from retraining.training.fine_tune import TuningOptions, merit
from retraining.training.head import Evaluation, Head
from retraining.training.loop import Step

HEAD, TWO_RATES, ALL, SCRATCH = METHODS = ("head", "two_rates", "all", "scratch")
TOP = 5  # most likely labels that may contain the true one, for top-5 accuracy

Columns: TypeAlias = dict[str, Any]  # {name of a column of the table: value}


@dataclass(frozen=True)
class Attempt:
    """The result of one method: a network, a head, and their figures on held-out photos."""

    method: str
    network: BaseNetwork
    head: Head
    validation: Evaluation
    top_1: float  # accuracy on the test photos; NaN without any
    top_5: float
    seconds: float  # of training
    epochs: int = 0  # of fine-tuning; the weights are those after `best_epoch`
    best_epoch: int = 0
    course: Sequence[Step] = ()  # the Steps of fine-tuning that have evaluations
    checkpoint: Path | None = None


def options_of(method: str, options: TuningOptions) -> TuningOptions:
    """Returns the TuningOptions of a method; `options` are the user's, which suit two_rates."""
    if method == ALL:
        return replace(options, head_rate=options.base_rate)
    scratch = method == SCRATCH
    return replace(options, scratch=True, freeze_until=None) if scratch else options


def tops(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> tuple[float, float]:
    """Returns (top-1 accuracy, top-5 accuracy)."""
    return accuracy(probabilities, targets), top_accuracy(probabilities, targets, TOP)


def best_of(attempts: Iterable[Attempt]) -> Attempt:
    """Returns the Attempt with the best validation result, as `merit` orders them.

    Of equals, the first wins.
    """
    return max(attempts, key=lambda attempt: merit(attempt.validation))


COLUMNS = {  # of the table, with the format of each
    "method": "",
    "top_1": ".4f",
    "top_5": ".4f",
    "seconds": ".1f",
    "validation_top_1": ".4f",
    "validation_cross_entropy": ".4f",
    "epochs": "d",
    "best_epoch": "d",
    "exported": "",
}


def describe(attempts: Iterable[Attempt], exported: str) -> list[Columns]:
    """Returns a dict of COLUMNS for each Attempt; `exported` names the exported method."""
    return [_columns_of(attempt, exported) for attempt in attempts]


def _columns_of(attempt: Attempt, exported: str) -> Columns:
    values = (
        *(attempt.method, attempt.top_1, attempt.top_5, attempt.seconds),
        *(attempt.validation.accuracy, attempt.validation.cross_entropy),
        *(attempt.epochs, attempt.best_epoch, attempt.method == exported),
    )
    return dict(zip(COLUMNS, values, strict=True))


def table_bytes(described: Iterable[Mapping[str, Any]] = ()) -> bytes:
    """Returns the table as a file's content: a header, then a line for each dict of `describe`."""
    rows = [{**row, "exported": "yes" if row["exported"] else "no"} for row in described]
    lines = [[format(row[name], how) for name, how in COLUMNS.items()] for row in rows]
    return table([COLUMNS, *lines])


def is_table(path: str | Path) -> bool:
    """Tells whether a file begins with the header of `table_bytes`."""
    header = table_bytes()
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(len(header)) == header
    return False
