"""Groups photos that show one thing, so that none of them is predicted by a head that saw another.

A group holds copies, `_nohash_` variants, near-duplicates and shots of one series.
"""

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retraining.evaluation.label_audit import (
    MOST_PHOTOS,
    SAME_PHOTO,
    AuditedPhotos,
    near_earlier,
)
from retraining.photos.split import subjects

SERIES_SECONDS = 5.0  # between shots of a series
NEXT_SHOTS = 10  # later shots to compare with each; bounds the work where all times are equal
# Largest distance (1 - cosine of normalised vectors) of neighbours in a series, as a share of the
# mean distance of all photos. Made series of the shared flower photos are crops that shift by up
# to 15 %, with light changed by up to 15 %: 98 % of their neighbours are nearer with MobileNet
# 0.25/128, 97 % with Inception-v3. Of unrelated photos of one class, 1 % are nearer with either.
ONE_SERIES = 0.3
# The same for neighbours by number alone, as a share of the mean distance in their class. It
# matters where the photos of a class look more alike than those of different classes.
# `benchmarks/groups.py` makes bursts of 500 flower photos and cuts their classes into clusters of
# look-alikes. There, 0.5 joins 97.0 % of the neighbours in a burst with MobileNet 0.25/128, 97.6 %
# with Inception-v3, and 1.6 % and 0.3 % of pairs of different subjects. 0.4 joins 95.9 % and 96.2 %
# in a burst; 0.6 joins 2.8 % and 0.9 % of different subjects, and ONE_SERIES alone 3.1 % and 1.7 %.
ONE_NUMBERED = 0.5

NUMBERED = re.compile(r"(.*?)(\d{1,18})(\D*)")  # what precedes a name's last number; it; the rest


def group_photos(
    photos: AuditedPhotos, times: NDArray[np.float64] | None = None
) -> NDArray[np.int_]:
    """Returns the group of each photo, int [n], numbered from 0.

    Near-duplicates are those of the audit. They are looked for among at most MOST_PHOTOS photos,
    since that compares all pairs.

    Args:
        photos: the photos; every path occurs once.
        times: when each was taken, in seconds, float64 [n], NaN where unknown; see
            photos/exif_time.py.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unit = photos.unit
    pairs = list(_same_subject(photos))
    if len(photos.paths) <= MOST_PHOTOS:
        for row, _, near in near_earlier(unit, photos.targets):
            pairs += [(row, int(other)) for other in np.flatnonzero(near)]
    most = ONE_SERIES * mean_distance(unit)
    for a, b in () if times is None else timed_pairs(times):
        if 1 - unit[a] @ unit[b] <= most:
            pairs.append((a, b))
    of_class = {t: mean_distance(unit[photos.targets == t]) for t in set(photos.targets)}
    for a, b in numbered_pairs(photos.paths):
        if 1 - unit[a] @ unit[b] <= min(most, ONE_NUMBERED * of_class[photos.targets[a]]):
            pairs.append((a, b))
    rows, others = np.array(pairs, int).reshape(-1, 2).T
    shape = len(photos.paths), len(photos.paths)
    links = coo_array((np.ones(len(rows)), (rows, others)), shape=shape)
    groups: NDArray[np.int_] = connected_components(links, directed=False)[1].astype(int)
    return groups


def find_alike(photos: AuditedPhotos, groups: NDArray[np.integer]) -> list[str]:
    """Returns the classes whose photos look so alike that groups may tell them apart by chance.

    Two photos of such a class are as near as near-duplicates, on average. `groups` is int [n].
    """
    of_class = [photos.targets == target for target in range(len(photos.labels))]
    return [
        label
        for label, rows in zip(photos.labels, of_class, strict=True)
        if len(np.unique(groups[rows])) > 1 and mean_distance(photos.unit[rows]) <= 1 - SAME_PHOTO
    ]


def mean_distance(unit: NDArray[np.floating]) -> float:
    """Returns the mean distance (1 - cosine) of vectors of length 1, [n, width]."""
    mean = unit.mean(axis=0)
    return max(0.0, 1 - float(mean @ mean))


def _same_subject(photos: AuditedPhotos) -> Iterator[tuple[int, int]]:
    """Yields each photo with the first one of its subject, as the split knows subjects."""
    first: dict[str, int] = {}
    of_path = subjects(dict(zip(photos.paths, photos.keys, strict=True)))
    for row, path in enumerate(photos.paths):
        yield row, first.setdefault(of_path[path], row)


def numbered_pairs(paths: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields the rows of paths in one folder whose last numbers follow each other.

    IMG_0123.jpg and IMG_0124.jpg do, also IMG_9.jpg and IMG_10.jpg; the rest of the name is equal.
    """
    rows: dict[tuple[str, str, int], int] = {}
    for row, path in enumerate(paths):
        if found := NUMBERED.fullmatch(os.path.splitext(path)[0]):
            rows[found[1], found[3], int(found[2])] = row
    for (before, after, number), row in rows.items():
        if (following := rows.get((before, after, number + 1))) is not None:
            yield row, following


def timed_pairs(times: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yields the rows of photos taken at most SERIES_SECONDS apart; `times` is [n], in seconds."""
    order = np.argsort(times, kind="stable")
    order = order[np.isfinite(times[order])]
    for step in range(1, min(NEXT_SHOTS + 1, len(order))):
        near = times[order[step:]] - times[order[:-step]] <= SERIES_SECONDS
        yield from zip(order[:-step][near].tolist(), order[step:][near].tolist(), strict=True)
