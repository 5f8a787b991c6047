"""The ways to train that --compare sets side by side, what came of each, and their table."""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from retraining.metrics.classification import accuracy, top_accuracy
from retraining.networks.network import BaseNetwork
from retraining.system.text import table
from retraining.training.fine_tune import merit
from retraining.training.head import Evaluation, Head
from retraining.training.loop import Step

HEAD, TWO_RATES, ALL, SCRATCH = METHODS = ("head", "two_rates", "all", "scratch")
TOP = 5  # labels among which the true one counts as found


@dataclass(frozen=True)
class Attempt:
    """What came of one method: a network, a head, and how they do on held-out photos."""

    method: str
    network: BaseNetwork
    head: Head
    validation: Evaluation
    top_1: float  # share of the test photos; NaN without
    top_5: float
    seconds: float  # of training
    epochs: int = 0  # through the photos, of fine-tuning; the weights are those after `best_epoch`
    best_epoch: int = 0
    course: list[Step] = ()  # those of fine-tuning with evaluations
    checkpoint: Path | None = None


def options_of(method, chosen):
    """The TuningOptions of a method; `chosen` are those of the flags, which are two_rates'."""
    if method == ALL:
        return replace(chosen, head_rate=chosen.base_rate)
    scratch = method == SCRATCH
    return replace(chosen, scratch=True, freeze_until=None) if scratch else chosen


def tops(probabilities, truth):
    """(top-1, top-5) share of right answers."""
    return accuracy(probabilities, truth), top_accuracy(probabilities, truth, TOP)


def best_of(attempts):
    """The Attempt with the best validation: cross entropy, then accuracy; of equals the first."""
    return max(attempts, key=lambda attempt: merit(attempt.validation))


COLUMNS = {  # of the table, and how each figure is written there
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


def describe(attempts, exported):
    """A dict of COLUMNS for each Attempt; `exported` is the name of the method that is."""
    return [_columns_of(attempt, exported) for attempt in attempts]


def _columns_of(attempt, exported):
    values = (
        *(attempt.method, attempt.top_1, attempt.top_5, attempt.seconds),
        *(attempt.validation.accuracy, attempt.validation.cross_entropy),
        *(attempt.epochs, attempt.best_epoch, attempt.method == exported),
    )
    return dict(zip(COLUMNS, values, strict=True))


def table_bytes(described=()):
    """The table as a file's content, a line for each dict of `describe`; without, its header."""
    rows = [{**row, "exported": "yes" if row["exported"] else "no"} for row in described]
    lines = [[format(row[name], how) for name, how in COLUMNS.items()] for row in rows]
    return table([COLUMNS, *lines]).encode()


def is_table(path):
    """Whether a file begins as `table_bytes` does."""
    header = table_bytes()
    with contextlib.suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(len(header)) == header
    return False
