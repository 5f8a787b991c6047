"""The leaks of a run: photos given for training that show the same as photos given as held out."""

import logging
import os
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace

import numpy as np

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation.label_audit import MOST_PHOTOS, near_earlier
from retraining.photos.dataset import Example
from retraining.photos.split import SPLITS, TRAINING
from retraining.run.audit import undistorted
from retraining.run.notes import RunContext
from retraining.run.photos import check_splits
from retraining.system.text import counted, some

log = logging.getLogger(__name__)

MOST_LEFT_OUT = 0.5  # share of a class; beyond it, its photos may just look alike


def leave_out_leaks(bottlenecks: Bottlenecks, run: RunContext) -> Bottlenecks:
    """Leaves out photos given for training that are near-duplicates of given held-out photos.

    Warns of them. A class keeps its training photos if more than MOST_LEFT_OUT of them would go.

    Raises:
        DatasetError: no photo is left of a split that the settings need.
    """
    leaks = find_leaks(bottlenecks)
    counts = Counter(example.label for example in bottlenecks.examples[TRAINING])
    leaking = Counter(example.label for example in leaks if example.split == TRAINING)
    kept = sorted(label for label in leaking if leaking[label] > MOST_LEFT_OUT * counts[label])
    if kept:
        run.notes.add_caveat(
            f"in {counted(len(kept), 'class', 'classes')}, most training photos look the same as "
            f"held-out photos; the run keeps them, so the accuracy may look better than it is: "
            f"{some(kept)}"
        )
    gone = {leak: held_out for leak, held_out in leaks.items() if leak.label not in kept}
    if not gone:
        return bottlenecks
    run.notes.add_warning(describe_leaks(gone))
    bottlenecks = without(bottlenecks, gone)
    check_splits({part for part in SPLITS if bottlenecks.examples[part]}, run.settings)
    return bottlenecks


def find_leaks(bottlenecks: Bottlenecks) -> dict[Example, Example]:
    """Returns {photo given for training: its first near-duplicate in another given split}.

    Photos given for training may be in a split that was cut from them. More than MOST_PHOTOS photos
    are not compared.
    """
    held_out = bottlenecks.given - {TRAINING}
    examples = [example for part in SPLITS for example in bottlenecks.examples[part]]
    if held_out and len(examples) > MOST_PHOTOS:
        log.info(
            f"skipped the search for near-duplicates across splits: it handles at most "
            f"{MOST_PHOTOS} photos, and there are {len(examples)}"
        )
    if not held_out or len(examples) > MOST_PHOTOS:
        return {}
    photos, training = undistorted(bottlenecks), len(bottlenecks.examples[TRAINING])
    is_held_out = [e.split in held_out for e in examples]
    leaks: dict[Example, Example] = {}
    for row, _, near in near_earlier(photos.unit, photos.targets, first=training):
        for other in np.flatnonzero(near):
            if is_held_out[row] != is_held_out[other]:
                leak, held = (other, row) if is_held_out[row] else (row, other)
                leaks.setdefault(examples[leak], examples[held])
    return leaks


def describe_leaks(leaks: Mapping[Example, Example]) -> str:
    """Returns a warning of {photo given for training: the held-out photo that it is like}."""
    names = sorted(f"{_name(leak)} (of {_name(held_out)})" for leak, held_out in leaks.items())
    for name in names:
        log.debug(f"left out as a near-duplicate: {name}")
    forms = (
        "training photo nearly duplicates",
        "training photos nearly duplicate",
    )
    return f"{counted(len(names), *forms)} held-out photos; the run leaves out {some(names)}"


def _name(example: Example) -> str:
    return f"{example.label}/{os.path.basename(example.path)}"


def without(bottlenecks: Bottlenecks, gone: Container[Example]) -> Bottlenecks:
    """Returns the Bottlenecks without some photos and their distorted views."""
    examples: dict[str, list[Example]] = {}
    labelled: dict[str, Labelled] = {}
    for part, before in bottlenecks.labelled.items():
        kept = np.array([example not in gone for example in bottlenecks.examples[part]], bool)
        rows = np.tile(kept, len(before.targets) // max(1, len(kept)))
        examples[part] = [e for e in bottlenecks.examples[part] if e not in gone]
        labelled[part] = Labelled(before.vectors[rows], before.targets[rows])
    return replace(bottlenecks, examples=examples, labelled=labelled)
