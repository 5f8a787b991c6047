"""Assigns each photo to a split, by a hash of its content or of its path."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")

# The classic's MAX_NUM_IMAGES_PER_CLASS: split hashes are taken modulo 2^27.
HASH_RANGE = 2**27


@dataclass(frozen=True)
class SplitOptions:
    """Percentages of validation and testing, and what decides: `content` or `path`.

    `stratified` cuts each class by them exactly; then photos may move when others are added.
    """

    validation: int = 10
    testing: int = 10
    by: str = "content"
    stratified: bool = False


def percentage(text):
    """A stable number in 0..100 for bytes `text`: SHA-1 modulo 2^27, as the classic retrain.py."""
    return (int(hashlib.sha1(text).hexdigest(), 16) % HASH_RANGE) * (100.0 / (HASH_RANGE - 1))


def split_of(percent, options):
    """Validation first, then testing, the rest training: the classic's order."""
    if percent < options.validation:
        return VALIDATION
    if percent < options.validation + options.testing:
        return TESTING
    return TRAINING


def splits_by_path(image_dir, paths, options):
    """The classic's own assignment, from `image_dir/label/file` as the user typed it."""
    splits = {}
    for path in paths:
        without_variant = re.sub(r"_nohash_.*$", "", path)
        splits[path] = split_of(percentage(os.fsencode(without_variant)), options)
    return splits


def splits_by_content(photos, keys, options):
    groups = _subjects(keys)
    place = {group: percentage(group.encode()) for group in set(groups.values())}
    if options.stratified:
        chosen = _stratified(photos, groups, place, options)
    else:
        chosen = {group: split_of(percent, options) for group, percent in place.items()}
    classes = [{groups[path] for path in paths} for paths in photos.values()]
    shared = {group for group, count in Counter(g for c in classes for g in c).items() if count > 1}
    for in_class in classes:
        _fill_empty_splits(sorted(in_class, key=place.get), shared, chosen, options)
    return {path: chosen[groups[path]] for path in keys}


def _stratified(photos, groups, place, options):
    """{subject: split}: each class sorted by its subjects' hashes `place` and cut by its quotas.

    A subject of several photos goes where it still fits; one of an earlier class, too, stays there.
    """
    chosen = {}
    for paths in photos.values():
        sizes = Counter(groups[path] for path in paths)
        left = _quotas(len(paths), options)
        for group in sizes:
            if group in chosen:
                left[chosen[group]] -= sizes[group]
        for group in sorted(sizes.keys() - chosen.keys(), key=place.get):
            fitting = (part for part in (VALIDATION, TESTING) if 0 < sizes[group] <= left[part])
            chosen[group] = next(fitting, TRAINING)
            left[chosen[group]] -= sizes[group]
    return chosen


def _quotas(count, options):
    """{split: number of `count` photos}, by the largest remainder of the exact shares."""
    parts = {TESTING: options.testing, VALIDATION: options.validation}
    parts = {TRAINING: 100 - sum(parts.values()), **parts}
    shares = {part: divmod(count * percent, 100) for part, percent in parts.items()}
    quotas = {part: int(whole) for part, (whole, _) in shares.items()}
    order = sorted(shares, key=lambda part: -shares[part][1])  # stable: training, then testing
    for part in order[: count - sum(quotas.values())]:
        quotas[part] += 1
    return quotas


def _subjects(keys):
    """{path: name of its subject}. Photos of one subject must share a split.

    A subject is one content (key), or all variants `NAME_nohash_*` of one NAME; a copy of a
    variant belongs to the variant's subject, so chains are followed to their end.
    """
    parent = {}

    def find(name):
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for path, key in keys.items():
        stem, mark, _ = os.path.basename(path).partition("_nohash_")
        subject = os.fsencode(stem).hex() + "_nohash_" if mark else key
        # The smallest name stands for all, so the order of the files does not matter.
        low, high = sorted((find(subject), find(key)), key=lambda n: ("_nohash_" not in n, n))
        parent[high] = low
    return {path: find(key) for path, key in keys.items()}


def _fill_empty_splits(in_class, shared, chosen, options):
    """Gives a class at least one subject in each wanted split, if it has enough of them.

    `in_class` is sorted by hash, and the ones nearest the end a split takes from are moved, so
    that the choice depends on nothing but the photos. Training comes first for tiny classes. A
    subject that is `shared` with another class is moved into training only.
    """
    shares = {TRAINING: 100, TESTING: options.testing, VALIDATION: options.validation}
    wanted = [split for split, share in shares.items() if share > 0][: len(in_class)]
    for split in wanted:
        counts = Counter(chosen[group] for group in in_class)
        movable = [group for group in in_class if group not in shared or split == TRAINING]
        if counts[split] or not movable:
            continue
        # From the largest split, or else from one that this class need not have.
        worth = {group: (counts[chosen[group]], chosen[group] not in wanted) for group in movable}
        donors = [group for group in movable if worth[group] == max(worth.values())]
        if counts[chosen[donors[0]]] > 1 or chosen[donors[0]] not in wanted or split == TRAINING:
            chosen[donors[-1 if split == TRAINING else 0]] = split
