"""Assigns each photo to a split: as its source says, or by a hash of its content or path."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from retraining.system.ranges import Range, SettingsError, check_choice, check_ranges

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")

AUTO, FOLDERS, CONTENT, PATH = WAYS = ("auto", "folders", "content", "path")

# What people call the splits, in any case.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), TRAINING),
    **dict.fromkeys(("val", "valid", "validation", "val_set", "validation_set"), VALIDATION),
    **dict.fromkeys(("test", "testing", "test_set", "testing_set"), TESTING),
}

# Split hashes are modulo 2^27, by the classic's MAX_NUM_IMAGES_PER_CLASS.
HASH_RANGE = 2**27


@dataclass(frozen=True)
class SplitOptions:
    """Percentages of validation and testing photos, and what decides, of `WAYS`.

    `auto` keeps the splits that the source gives and cuts a missing one from training by content;
    without any it is `content`. `folders` insists on such splits, `content` and `path` pass over
    them; `path` takes split folders for classes, as the classic does.
    `stratified` splits each class exactly by them, but then adding photos may move others.
    """

    validation: int = 10
    testing: int = 10
    by: str = AUTO
    stratified: bool = False

    RANGES: ClassVar[Mapping[str, Range]] = {
        "validation": (0, 100),
        "testing": (0, 100),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)
        check_choice("by", self.by, WAYS)
        if self.validation + self.testing >= 100:
            raise SettingsError(
                "`SplitOptions.testing` and `SplitOptions.validation` leave no training images"
            )

    @property
    def keeps_given(self) -> bool:
        """Whether splits that the source gives are kept."""
        return self.by in (AUTO, FOLDERS)

    def can_hold(self, part: str, given: Set[str]) -> bool:
        """Returns whether a held-out split can have photos, if the source gives splits `given`."""
        percentages = {VALIDATION: self.validation, TESTING: self.testing}
        return percentages[part] > 0 or (self.keeps_given and part in given)


def named_split(text: str) -> str | None:
    """Returns the split that a word such as `Train` or `valid` means, or None."""
    return SPLIT_NAMES.get(text.casefold())


def percentage(text: bytes) -> float:
    """Hashes bytes to a number in 0..100: SHA-1 modulo 2^27, as the classic retrain.py."""
    return (int(hashlib.sha1(text).hexdigest(), 16) % HASH_RANGE) * (100.0 / (HASH_RANGE - 1))


def split_of(percent: float, options: SplitOptions) -> str:
    """Returns the split of a percentage: validation first, then testing, as in the classic."""
    if percent < options.validation:
        return VALIDATION
    if percent < options.validation + options.testing:
        return TESTING
    return TRAINING


def splits_by_path(paths: Iterable[str], options: SplitOptions) -> dict[str, str]:
    """Returns {path: split} as the classic does, by `image_dir/label/file` as the user typed it."""
    splits = {}
    for path in paths:
        without_variant = re.sub(r"_nohash_.*$", "", path)
        splits[path] = split_of(percentage(os.fsencode(without_variant)), options)
    return splits


def splits_by_content(
    photos: Mapping[str, Sequence[str]], keys: Mapping[str, str], options: SplitOptions
) -> dict[str, str]:
    """Returns {path: split} by the hash of each photo's subject."""
    groups = subjects(keys)
    percents = {group: percentage(group.encode()) for group in set(groups.values())}
    if options.stratified:
        assigned = _stratified(photos, groups, percents, options)
    else:
        assigned = {group: split_of(percent, options) for group, percent in percents.items()}
    classes = [{groups[path] for path in paths} for paths in photos.values()]
    shared = {group for group, count in Counter(g for c in classes for g in c).items() if count > 1}
    for in_class in classes:
        _fill_empty_splits(sorted(in_class, key=percents.__getitem__), shared, assigned, options)
    return {path: assigned[groups[path]] for path in keys}


def _stratified(
    photos: Mapping[str, Sequence[str]],
    groups: Mapping[str, str],
    percents: Mapping[str, float],
    options: SplitOptions,
) -> dict[str, str]:
    """Returns {subject: split}: sorts each class by its subjects' hashes and cuts it by its quotas.

    A subject of several photos goes where it still fits. A subject that an earlier class shares
    stays where that class put it.
    """
    assigned: dict[str, str] = {}
    for paths in photos.values():
        sizes = Counter(groups[path] for path in paths)
        left = _quotas(len(paths), options)
        for group in sizes:
            if group in assigned:
                left[assigned[group]] -= sizes[group]
        for group in sorted(sizes.keys() - assigned.keys(), key=percents.__getitem__):
            fitting = (part for part in (VALIDATION, TESTING) if 0 < sizes[group] <= left[part])
            assigned[group] = next(fitting, TRAINING)
            left[assigned[group]] -= sizes[group]
    return assigned


def _quotas(count: int, options: SplitOptions) -> dict[str, int]:
    """Divides `count` photos by the largest remainder method; returns {split: number}."""
    parts = {TESTING: options.testing, VALIDATION: options.validation}
    parts = {TRAINING: 100 - sum(parts.values()), **parts}
    shares = {part: divmod(count * percent, 100) for part, percent in parts.items()}
    quotas = {part: int(whole) for part, (whole, _) in shares.items()}
    order = sorted(shares, key=lambda part: -shares[part][1])  # stable: training, then testing
    for part in order[: count - sum(quotas.values())]:
        quotas[part] += 1
    return quotas


def subjects(keys: Mapping[str, str]) -> dict[str, str]:
    """Returns {path: name of its subject}. Photos of one subject must share a split.

    A subject is one content (key), or all variants `NAME_nohash_*` of one NAME. A copy of a variant
    belongs to the variant's subject, so chains are followed to their end.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for path, key in keys.items():
        stem, mark, _ = os.path.basename(path).partition("_nohash_")
        subject = os.fsencode(stem).hex() + "_nohash_" if mark else key
        # The smallest name represents all, so the order of the files does not matter.
        low, high = sorted((find(subject), find(key)), key=lambda n: ("_nohash_" not in n, n))
        parent[high] = low
    return {path: find(key) for path, key in keys.items()}


def _fill_empty_splits(
    in_class: Sequence[str], shared: Set[str], assigned: dict[str, str], options: SplitOptions
) -> None:
    """Gives a class at least one subject in each wanted split, if it has enough of them.

    `in_class` is sorted by hash, and a split takes subjects from its own end, so that the choice
    depends only on the photos. Tiny classes fill training first. A subject that is `shared` with
    another class moves into training only.
    """
    shares = {TRAINING: 100, TESTING: options.testing, VALIDATION: options.validation}
    wanted = [split for split, share in shares.items() if share > 0][: len(in_class)]
    for split in wanted:
        counts = Counter(assigned[group] for group in in_class)
        movable = [group for group in in_class if group not in shared or split == TRAINING]
        if counts[split] or not movable:
            continue
        # Take from the largest split, or else from one that this class need not have.
        worth = {
            group: (counts[assigned[group]], assigned[group] not in wanted) for group in movable
        }
        most = max(worth.values())
        donors = [group for group in movable if worth[group] == most]
        if (
            counts[assigned[donors[0]]] > 1
            or assigned[donors[0]] not in wanted
            or split == TRAINING
        ):
            assigned[donors[-1 if split == TRAINING else 0]] = split
