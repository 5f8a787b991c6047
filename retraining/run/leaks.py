"""The leaks of a run: training photos that show the same as photos that the user holds out."""

import logging
import os
from collections.abc import Container
from dataclasses import replace

import numpy as np

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.label_audit import MOST_PHOTOS, near_earlier, normalised
from retraining.photos.dataset import Example
from retraining.photos.split import SPLITS, TRAINING
from retraining.run.audit import undistorted
from retraining.run.notes import RunContext
from retraining.system.text import counted, some

log = logging.getLogger(__name__)


def leave_out_leaks(bottlenecks: Bottlenecks, run: RunContext) -> Bottlenecks:
    """Leaves out training photos that are near-duplicates of photos in another given split.

    Warns of them. A class keeps its training photos if none would be left.
    """
    training, leaks = bottlenecks.examples[TRAINING], find_leaks(bottlenecks)
    left = {example.label for row, example in enumerate(training) if row not in leaks}
    if emptied := sorted({training[row].label for row in leaks} - left):
        classes = counted(len(emptied), "class has", "classes have")
        run.notes.add_caveat(
            f"{classes} only training photos that are near-duplicates of held-out photos; they are "
            f"kept, and the accuracy looks better than it is: {some(emptied)}"
        )
    gone = {row: other for row, other in leaks.items() if training[row].label in left}
    if not gone:
        return bottlenecks
    run.notes.add_warning(describe_leaks([(training[row], gone[row]) for row in sorted(gone)]))
    return without_training(bottlenecks, gone)


def find_leaks(bottlenecks: Bottlenecks) -> dict[int, Example]:
    """Returns {row of a training photo: its first near-duplicate in another given split}.

    More than MOST_PHOTOS photos are not compared.
    """
    held_out = bottlenecks.given - {TRAINING}
    examples = [example for part in SPLITS for example in bottlenecks.examples[part]]
    if held_out and len(examples) > MOST_PHOTOS:
        log.info(
            f"no search for near-duplicates in two splits: {len(examples)} photos are more than "
            f"the {MOST_PHOTOS} it is made for"
        )
    if not held_out or len(examples) > MOST_PHOTOS:
        return {}
    photos, training = undistorted(bottlenecks), len(bottlenecks.examples[TRAINING])
    unit = normalised(photos.vectors)
    leaks: dict[int, Example] = {}
    for row, _, near in near_earlier(unit, photos.targets, first=training):
        if examples[row].split in held_out:
            for leak in np.flatnonzero(near[:training]):
                leaks.setdefault(int(leak), examples[row])
    return leaks


def describe_leaks(pairs: list[tuple[Example, Example]]) -> str:
    """Returns a warning of training photos, each with the held-out photo that it is like."""
    names = [f"{_name(leak)} (of {_name(held_out)})" for leak, held_out in pairs]
    for name in names:
        log.debug(f"near-duplicate left out of training: {name}")
    forms = "training photo is a near-duplicate", "training photos are near-duplicates"
    photos = counted(len(pairs), *forms)
    return f"{photos} of held-out photos and left out of training: {some(names)}"


def _name(example: Example) -> str:
    return f"{example.label}/{os.path.basename(example.path)}"


def without_training(bottlenecks: Bottlenecks, gone: Container[int]) -> Bottlenecks:
    """Returns the Bottlenecks without these rows of training photos and their distorted views."""
    examples, labelled = bottlenecks.examples[TRAINING], bottlenecks.labelled[TRAINING]
    kept = np.array([row not in gone for row in range(len(examples))])
    rows = np.tile(kept, len(labelled.targets) // len(kept))
    left = [example for example, keep in zip(examples, kept, strict=True) if keep]
    vectors = Labelled(labelled.vectors[rows], labelled.targets[rows])
    return replace(
        bottlenecks,
        examples={**bottlenecks.examples, TRAINING: left},
        labelled={**bottlenecks.labelled, TRAINING: vectors},
    )
