"""groups.py: which photos share a group."""

import math

import numpy as np
import pytest

from retraining.evaluation.groups import NEXT_SHOTS, group_photos, numbered_pairs, timed_pairs
from retraining.evaluation.label_audit import AuditedPhotos

WIDTH = 64


def photos_at(paths, near=(), keys=None, targets=None):
    """Photos, then 20 others of each class, with unrelated vectors.

    `near` says which are not unrelated: (row, other row, how far apart, 0..1).
    """
    rng = np.random.default_rng(0)
    targets = [0] * len(paths) if targets is None else targets
    classes = max(targets) + 1
    others = [f"others/{chr(97 + n // 26)}{chr(97 + n % 26)}.jpg" for n in range(20 * classes)]
    paths, keys = [*paths, *others], [*(keys or paths), *others]
    targets = np.append(targets, np.arange(len(others)) % classes)
    vectors = rng.random((len(paths), WIDTH)) ** 4
    for row, other, apart in near:
        vectors[row] = (1 - apart) * vectors[other] + apart * vectors[row]
    labels = [str(number) for number in range(classes)]
    return AuditedPhotos(paths, keys, labels, targets, vectors.astype(np.float32))


def sets_of(groups):
    """The sets of rows that share a group, without those of one row."""
    found = [set(np.flatnonzero(groups == group).tolist()) for group in range(groups.max() + 1)]
    return [rows for rows in found if len(rows) > 1]


def test_unrelated_photos_have_groups_of_their_own():
    groups = group_photos(photos_at(["a/x.jpg", "a/y.jpg", "b/z.jpg"]))
    assert groups.tolist() == list(range(23))


def test_copies_variants_and_near_duplicates_chain_into_one_group():
    paths = ["a/1.jpg", "a/rose_nohash_1.jpg", "b/rose_nohash_2.jpg", "c/x.jpg", "c/y.jpg"]
    near = [(4, 2, 0.01)]
    photos = photos_at(paths, near, keys=["k", "k", "l", "m", "n"], targets=[0, 0, 1, 2, 2])
    assert sets_of(group_photos(photos)) == [{0, 1, 2, 4}]


def test_all_near_duplicates_of_a_photo_join_not_only_the_nearest():
    photos = photos_at([f"a/{name}.jpg" for name in "uvwxyz"], [(3, 1, 0.02), (5, 1, 0.01)])
    assert sets_of(group_photos(photos)) == [{1, 3, 5}]


SERIES = ["a/IMG_0009.jpg", "a/IMG_0010.jpg", "a/other.jpg", "b/IMG_0011.jpg"]


@pytest.mark.parametrize(("apart", "expected"), [(0.25, [{0, 1}]), (1.0, [])])
def test_running_numbers_join_photos_only_together_with_similar_vectors(apart, expected):
    photos = photos_at(SERIES, [(1, 0, apart), (2, 0, apart), (3, 0, apart)])
    assert sets_of(group_photos(photos)) == expected


def test_running_numbers_join_no_photos_of_a_class_where_all_look_alike():
    numbered = [f"a/IMG_{number:04d}.jpg" for number in range(20)]
    alike = [(row, 20, 0.3) for row in range(20)]
    photos = photos_at([*numbered, "a/x.jpg", "b/y.jpg"], alike, targets=[0] * 21 + [1])
    photos.targets[21:] = 1
    assert sets_of(group_photos(photos)) == []


@pytest.mark.parametrize(("apart", "expected"), [(0.25, [{0, 2}]), (1.0, [])])
def test_close_times_join_photos_only_together_with_similar_vectors(apart, expected):
    photos = photos_at(["a/x.jpg", "a/y.jpg", "b/z.jpg"], [(2, 0, apart), (1, 0, apart)])
    times = np.full(len(photos.paths), math.nan)
    times[:3] = 100.0, math.nan, 103.5
    assert sets_of(group_photos(photos, times)) == expected
    times[:3] = 100.0, 200.0, 300.0
    assert sets_of(group_photos(photos, times)) == []


def test_running_numbers_by_hand():
    paths = [
        "a/IMG_9.jpg",
        "a/IMG_11.jpg",
        "a/IMG_10.jpg",
        "b/IMG_12.jpg",  # another folder
        "a/DSC_12.jpg",  # another name
        "a/12.jpg",
        "a/13 (copy).jpg",  # another rest
        "a/none.jpg",
    ]
    assert sorted(numbered_pairs(paths)) == [(0, 2), (2, 1)]


def test_times_within_seconds_by_hand():
    times = np.array([10.0, math.nan, 0.0, 14.0, 16.0, 30.0])
    assert sorted(timed_pairs(times)) == [(0, 3), (3, 4)]
    assert list(timed_pairs(np.full(4, math.nan))) == []


def test_many_equal_times_cost_no_more_than_a_few_pairs_each():
    assert len(list(timed_pairs(np.zeros(1000)))) < 1000 * NEXT_SHOTS
