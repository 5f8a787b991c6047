"""Finds photos whose label looks wrong, and near-duplicates, from the vectors alone.

Labels: softmax regressions predict each photo without having seen it; where there are too many
photos and classes for them, linear discriminants do. Photos rank by how improbable their own label
is. Confident learning decides which labels count as wrong (Northcutt, Jiang, Chuang 2021, JAIR 70,
doi:10.1613/jair.1.12125).
Duplicates: pairs of photos whose vectors have nearly the same direction.

`benchmarks/audit.py` measures the constants below.
"""

import functools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retraining.evaluation.temperature import fit_temperature
from retraining.metrics.classification import choose_rows, far_below, softmax, wilson_interval
from retraining.system.text import table

HEADER = ("path", "given", "suggested", "score", "reason")
LABEL, DOUBT = "label", "doubtful label"
DUPLICATE, ELSEWHERE = "duplicate", "duplicate in another class"

MOST_PHOTOS = 60_000  # comparing all pairs takes time proportional to its square: about a minute
MOST_ANSWERS = 60_000_000  # photos x classes, of four bytes each, several times over
MOST_REGRESSED = 2_000_000  # photos x classes; the regressions take time proportional to it
FOLDS = 5
COMPONENTS = 256  # main directions of the vectors to keep; more rank no better
PENALTY = 3e-4  # L2, for features whose mean square length is 1, with up to FEW_CLASSES classes
FEW_CLASSES = 10  # k times as many get a k-th of the penalty, since each has a k-th of the loss
# Share of the discriminants' covariance that is replaced by its mean variance in all directions.
# With it, they find as many swapped labels among 300 photos a class as the regressions, but dispute
# twice as many right labels among 15 (`audit.py few` and `labels`, with MOST_REGRESSED 0).
SHRINKAGE = 0.3
MOST_CALIBRATED = 4_000  # photos to which the discriminants' temperature is fitted
IMPOSSIBLE = -1e30  # the logit of a class that the discriminants have not seen
MAJORITY = 0.5  # share of the labels that the regressions must agree with to dispute others
# With fewer photos a class than this on average, they must agree with more. `audit.py few` draws
# from the five kinds of flowers (vectors of EfficientNet-Lite0). With 10 photos a class and
# right labels, MAJORITY lets every draw dispute labels, 2.9 of 50 on average; with a tenth of the
# labels swapped, fewer than half of the disputed ones are. From 15 photos on, most of them are.
# FEW_MAJORITY leaves 0.1 of 50 where all labels are right.
FEW_PHOTOS, FEW_MAJORITY = 15, 0.75
SAME_PHOTO = 0.975  # smallest cosine of normalised vectors of duplicates
CLOSE = 0.15  # largest distance of duplicates, as a share of the mean distance in their class
SURELY_SAME = 1 - 1e-5  # a cosine that is 1 but for rounding
BLOCK = 512  # rows of vectors to process at once
ANSWERS_AT_ONCE = 1_000_000  # bounds the memory that a regression's gradient takes
MOST_STEPS = 500  # of L-BFGS
FLAT = 1e-3  # largest gradient entry that ends L-BFGS, as a share of the largest at the start

# The row of a photo, that of an earlier one, and the cosine of their vectors.
RowPair: TypeAlias = tuple[int, int, float]


@dataclass(frozen=True)
class AuditedPhotos:
    """The photos to audit.

    They have n paths and keys (SHA-1 of the content), class indexes `targets` int [n] into
    `labels`, and vectors float32 [n, width].
    """

    paths: list[str]
    keys: list[str]
    labels: list[str]
    targets: NDArray[np.integer]
    vectors: NDArray[np.float32]

    @functools.cached_property
    def unit(self) -> NDArray[np.floating]:
        """The vectors as `normalised` returns them."""
        return normalised(self.vectors)


@dataclass(frozen=True)
class Finding:
    """One photo to look at.

    `reason` is one of:
        LABEL: the photo confidently belongs to the class `suggested`.
        DOUBT: `suggested` is more probable than `given`.
        DUPLICATE: `other` is nearly the same photo and has the same label.
        ELSEWHERE: `other` is nearly the same photo and has the label `suggested`.

    `score` (0..1) is 1 - P(given) for labels and the cosine for duplicates; higher is worse.
    """

    path: str
    given: str
    suggested: str
    score: float
    reason: str
    other: str = ""


def audit(
    photos: AuditedPhotos, seed: int = 0, reference: NDArray[np.bool_] | None = None
) -> list[Finding]:
    """Returns the Findings: duplicates in another class, then labels, then other duplicates.

    Each group has the highest score first. Of a set of duplicates, all but the first are listed.

    There are no findings on labels where what the regressions say of labels is worth nothing: if
    they do not surely agree with most of the labels, as on a few photos a class, or if they are far
    less accurate than the trained head. `reference` bool [m] tells which of the last m photos the
    head, which did not see them, classifies correctly.
    """
    unit = photos.unit
    pairs = near_duplicates(unit, photos.targets)
    groups = np.unique(photos.keys, return_inverse=True)[1]
    probabilities = out_of_fold(unit, photos.targets, groups, seed)
    copies = [_duplicate(photos, *pair) for pair in pairs]
    copies.sort(key=lambda finding: -finding.score)
    elsewhere = [finding for finding in copies if finding.reason == ELSEWHERE]
    within = [finding for finding in copies if finding.reason == DUPLICATE]
    weak = not _agree(probabilities, photos.targets) or _are_weak(probabilities, photos, reference)
    return elsewhere + ([] if weak else label_findings(photos, probabilities)) + within


def _agree(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> bool:
    """Tells whether the probabilities surely agree with enough of the labels to dispute others.

    Where they are wrong more often than right, a label that they dispute is rather right than
    wrong. Confident learning assumes the same of each class: most of its labels are right, and
    recognised. By chance a few photos may agree, so that the low end of the interval counts. With
    few photos a class, the thresholds of confident learning are uncertain, too.
    """
    few = len(targets) < FEW_PHOTOS * probabilities.shape[1]
    told = np.isfinite(probabilities).all(axis=1)
    right = probabilities[told].argmax(axis=1) == targets[told]
    return wilson_interval(int(right.sum()), len(right))[0] > (FEW_MAJORITY if few else MAJORITY)


def _are_weak(
    probabilities: NDArray[np.floating],
    photos: AuditedPhotos,
    reference: NDArray[np.bool_] | None,
) -> bool:
    """Tells whether the probabilities are far less accurate than the `reference` of `audit`."""
    if reference is None or not len(reference):
        return False
    held_out = slice(-len(reference), None)
    right = probabilities[held_out].argmax(axis=1) == photos.targets[held_out]
    return far_below(right, reference)


def limit(photos: int, classes: int) -> str | None:
    """Returns why that many photos cannot be audited, or None if they can."""
    if photos > MOST_PHOTOS:
        return f"it handles at most {MOST_PHOTOS} photos, and there are {photos}"
    if photos * classes > MOST_ANSWERS:
        return (
            f"it handles at most {MOST_ANSWERS} photos x classes, and there are {photos} x "
            f"{classes}"
        )
    return None


def normalised(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Takes signed square roots of vectors [n, width], and scales each vector to length 1.

    The square root keeps a few large entries from outweighing the rest (Perronnin, Sanchez, Mensink
    2010, doi:10.1007/978-3-642-15561-1_11).
    """
    unit = np.empty_like(vectors, subok=False)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        roots = np.copysign(np.sqrt(np.abs(block)), block)
        lengths = np.linalg.norm(roots, axis=1, keepdims=True)
        unit[start : start + BLOCK] = roots / np.maximum(lengths, np.finfo(roots.dtype).tiny)
    return unit


def label_findings(photos: AuditedPhotos, probabilities: NDArray[np.floating]) -> list[Finding]:
    """Returns a Finding for each photo whose label is not its most probable class, worst first.

    Skips photos without a prediction, whose rows of `probabilities` [n, classes] are NaN.
    """
    own = probabilities[np.arange(len(photos.targets)), photos.targets]
    suggested, wrong = (
        probabilities.argmax(axis=1),
        confidently_wrong(probabilities, photos.targets),
    )
    doubted = np.flatnonzero(probabilities.max(axis=1) > own)
    return [
        Finding(
            photos.paths[row],
            photos.labels[photos.targets[row]],
            photos.labels[suggested[row]],
            float(1 - own[row]),
            LABEL if wrong[row] else DOUBT,
        )
        for row in doubted[np.argsort(own[doubted], kind="stable")]
    ]


def confidently_wrong(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Tells which photos are off the diagonal of the confident joint, bool [n].

    See section 3.1 of the paper. A class is a candidate for a photo if it is at least as probable
    for it as it is on average for the photos with that label. The photo belongs to its most
    probable candidate.
    """
    own = probabilities[np.arange(len(targets)), targets]
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(targets[np.isfinite(own)]):
        thresholds[label] = np.nanmean(own[targets == label])
    above = np.where(probabilities >= thresholds, probabilities, -1)
    wrong: NDArray[np.bool_] = (above.max(axis=1) >= 0) & (above.argmax(axis=1) != targets)
    return wrong


def out_of_fold(
    unit: NDArray[np.floating],
    targets: NDArray[np.integer],
    groups: NDArray[np.integer],
    seed: int = 0,
) -> NDArray[np.floating]:
    """Predicts each photo by classifiers that saw no photo of its group.

    Returns probabilities float [n, classes]. Photos are predicted twice: a photo whose label the
    first predictions doubt counts less in the second, so that the classifiers learn less from wrong
    labels. All classes count equally, however many photos they have. Rows are NaN for photos of a
    class that lies in one fold entirely.

    Args:
        unit: float [n, width], as `normalised` returns them.
        targets: class indexes int [n]; every class has a photo.
        groups: int [n]; photos of one group are held out together.
        seed: of the folds and the projection.
    """
    features = reduced(unit, seed)
    folds = assign_folds(targets, groups, seed)
    counts = np.bincount(targets)
    weights = 1 / counts[targets]
    rows = np.arange(len(targets))
    answers = len(targets) * len(counts)
    predict = by_regressions if answers <= MOST_REGRESSED else by_discriminants
    probabilities = predict(features, targets, folds, weights)
    trusted = np.minimum(1, 2 * probabilities[rows, targets])
    probabilities = predict(features, targets, folds, weights * trusted)
    table = np.zeros((FOLDS, len(counts)), int)
    np.add.at(table, (folds, targets), 1)
    probabilities[table[folds, targets] == counts[targets]] = np.nan
    return probabilities


def assign_folds(
    targets: NDArray[np.integer], groups: NDArray[np.integer], seed: int = 0
) -> NDArray[np.integer]:
    """Returns a fold (0..FOLDS - 1) for each photo, int [n].

    Groups stay together; classes spread over the folds.
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(targets[first][order], kind="stable")]
    folds = np.empty(len(first), int)
    folds[order] = np.arange(len(first)) % FOLDS
    return folds[members]


def reduced(unit: NDArray[np.floating], seed: int = 0) -> NDArray[np.floating]:
    """Projects the centred vectors onto their main directions: [n, at most COMPONENTS].

    The directions come from a random sketch with one power step (Halko, Martinsson, Tropp 2011,
    doi:10.1137/090771806). The result has a mean square length of 1.
    """
    width = unit.shape[1]
    sketch = np.random.default_rng(seed).standard_normal((width, min(width, COMPONENTS)))
    sketched = unit @ sketch.astype(unit.dtype)
    sketched -= sketched.mean(axis=0)
    directions = np.linalg.qr(unit.T @ sketched)[0]
    features: NDArray[np.floating] = unit @ directions
    features -= features.mean(axis=0)
    features /= max(np.sqrt((features**2).sum(axis=1).mean()), np.finfo(unit.dtype).tiny)
    return features


def by_regressions(
    features: NDArray[np.floating],
    targets: NDArray[np.integer],
    folds: NDArray[np.integer],
    weights: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Predicts each row by the regression that did not see its fold: [n, classes]."""
    from scipy.optimize import minimize

    features = np.hstack([features, np.ones((len(features), 1), features.dtype)])
    objective = FoldObjective(features, targets, folds, weights)
    start = np.zeros(math.prod(objective.shape))
    flat = FLAT * np.abs(objective(start)[1]).max()
    limits = {"maxiter": MOST_STEPS, "ftol": 0, "gtol": flat}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=limits)
    parameters = found.x.reshape(objective.shape)
    logits = np.empty((len(targets), objective.shape[2]))
    for fold in range(FOLDS):
        rows = folds == fold
        logits[rows] = features[rows] @ parameters[:, fold].astype(features.dtype)
    return softmax(logits)


class FoldObjective:
    """The sum of the penalised cross entropies of all folds' regressions.

    The regressions share no parameters, so minimising the sum minimises each of them. Together they
    need one matrix product instead of one each.
    """

    def __init__(
        self,
        features: NDArray[np.floating],
        targets: NDArray[np.integer],
        folds: NDArray[np.integer],
        weights: NDArray[np.floating],
    ) -> None:
        """Takes features [n, width] and weights [n]; a photo has weight 0 in its own fold."""
        outside = weights[:, None] * (folds[:, None] != np.arange(FOLDS))
        self._features, self._targets = features, targets
        self._weights = outside / np.maximum(outside.sum(axis=0), np.finfo(float).tiny)
        self.shape = features.shape[1], FOLDS, int(targets.max()) + 1
        self._penalty = PENALTY * min(1, FEW_CLASSES / self.shape[2])

    def __call__(self, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Returns (value, gradient) at parameters float64 [width, FOLDS, classes], or flat."""
        flat = parameters.reshape(self.shape[0], -1)
        value, gradient = self._penalty / 2 * (flat**2).sum(), self._penalty * flat
        used = flat.astype(self._features.dtype)
        step = max(1, ANSWERS_AT_ONCE // used.shape[1])
        for start in range(0, len(self._targets), step):
            rows = slice(start, start + step)
            loss, error = self._errors(rows, used)
            value += loss
            gradient += self._features[rows].T @ error
        return value, gradient.reshape(parameters.shape)

    def _errors(
        self, rows: slice, used: NDArray[np.floating]
    ) -> tuple[float, NDArray[np.floating]]:
        """Returns (weighted cross entropy, its gradient by the logits) of some rows."""
        targets, weights = self._targets[rows], self._weights[rows]
        logits = (self._features[rows] @ used).reshape(len(targets), FOLDS, -1)
        logits -= logits.max(axis=2, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=2, keepdims=True)
        own = np.arange(len(targets)), slice(None), targets
        loss = (weights * (np.log(sums[:, :, 0]) - logits[own])).sum()
        powers /= sums
        powers[own] -= 1
        powers *= weights[:, :, None].astype(powers.dtype)
        return loss, powers.reshape(len(targets), -1)


def by_discriminants(
    features: NDArray[np.floating],
    targets: NDArray[np.integer],
    folds: NDArray[np.integer],
    weights: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Predicts each row by the discriminants that did not see its fold: float32 [n, classes].

    One temperature for all of them makes up for the confidence that many directions give.
    """
    classes = int(targets.max()) + 1
    logits = np.empty((len(targets), classes), np.float32)
    for fold in range(FOLDS):
        seen = folds != fold
        slopes, offsets = discriminants(features[seen], targets[seen], weights[seen], classes)
        logits[~seen] = features[~seen] @ slopes + offsets
    known = np.flatnonzero(logits[np.arange(len(targets)), targets] > IMPOSSIBLE / 2)
    rows = known[choose_rows(len(known), MOST_CALIBRATED)]
    logits /= fit_temperature(logits[rows], targets[rows])
    return softmax(logits)


def discriminants(
    features: NDArray[np.floating],
    targets: NDArray[np.integer],
    weights: NDArray[np.floating],
    classes: int,
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Returns (slopes [width, classes], offsets [classes]) of a linear discriminant analysis.

    The classes are Gaussians with one covariance, shrunk as by Ledoit and Wolf 2004
    (doi:10.1016/S0047-259X(03)00096-4), but by SHRINKAGE, and equally frequent; see Hastie,
    Tibshirani, Friedman 2009, The Elements of Statistical Learning, section 4.3. The offset of a
    class without photos is IMPOSSIBLE.
    """
    from scipy.sparse import csr_array

    shape, rows = (classes, len(targets)), np.arange(len(targets))
    membership = csr_array((weights, (targets, rows)), shape=shape)
    sums = np.bincount(targets, weights, classes)
    means = (membership @ features) / np.maximum(sums, np.finfo(float).tiny)[:, None]
    rest = (features - means[targets]) * np.sqrt(weights / weights.sum())[:, None]
    covariance = rest.T @ rest
    variance = max(np.trace(covariance) / len(covariance), np.finfo(np.float32).eps)
    covariance *= 1 - SHRINKAGE
    covariance[np.diag_indices_from(covariance)] += SHRINKAGE * variance
    slopes = np.linalg.solve(covariance, means.T)
    offsets = np.where(sums > 0, -(means.T * slopes).sum(axis=0) / 2, IMPOSSIBLE)
    return slopes, offsets


def near_duplicates(unit: NDArray[np.floating], targets: NDArray[np.integer]) -> list[RowPair]:
    """Returns pairs of photos that are nearly the same.

    For each row, these are the nearest earlier row of the same class and the nearest of another
    class, if they are near enough. `unit` is float [n, width], as `normalised` returns them.
    """
    pairs: list[RowPair] = []
    for row, cosines, near in near_earlier(unit, targets):
        same = targets[:row] == targets[row]
        for candidates in (near & same, near & ~same):
            if candidates.any():
                other = int(np.where(candidates, cosines, -1).argmax())
                pairs.append((row, other, float(cosines[other])))
    return pairs


def near_earlier(
    unit: NDArray[np.floating], targets: NDArray[np.integer], first: int = 0
) -> Iterator[tuple[int, NDArray[np.floating], NDArray[np.bool_]]]:
    """Yields the rows with near-duplicates among earlier rows: (row, cosines, which are near).

    Both arrays are [row]. Takes the arguments of `near_duplicates`; skips the rows before `first`.
    """
    least = least_cosines(unit, targets)[targets]
    for start in range(first, len(unit), BLOCK):
        block = unit[start : start + BLOCK]
        cosines = block @ unit[: start + len(block)].T
        cosines[:, start:][np.triu_indices(len(block))] = -1  # later rows, and each with itself
        for row in np.flatnonzero(cosines.max(axis=1) >= SAME_PHOTO) + start:
            found = cosines[row - start, :row]
            near = found >= np.maximum(least[row], least[:row])
            if near.any():
                yield int(row), found, near


def least_cosines(unit: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.floating]:
    """Returns the smallest cosine of duplicates in each class, float [classes].

    It is SAME_PHOTO, or larger where all photos of a class look alike: there the distance
    (1 - cosine) of duplicates is at most CLOSE times the mean distance in the class.
    """
    means = [unit[targets == label].mean(axis=0) for label in range(targets.max() + 1)]
    distances = np.array([1 - mean @ mean for mean in means])
    return np.clip(1 - CLOSE * distances, SAME_PHOTO, SURELY_SAME)


def _duplicate(photos: AuditedPhotos, row: int, other: int, cosine: float) -> Finding:
    given, suggested = (photos.labels[photos.targets[number]] for number in (row, other))
    reason = DUPLICATE if given == suggested else ELSEWHERE
    score = min(1.0, cosine)
    return Finding(photos.paths[row], given, suggested, score, reason, photos.paths[other])


def table_bytes(findings: Iterable[Finding]) -> bytes:
    """Returns the table as a file's bytes: tab-separated, a header, then a line for each Finding.

    A duplicate's reason ends in `of` and the other photo's path. Names with tabs or line ends are
    `escaped`. A path that begins with `#` is written `./#`, because a line with `#` is a comment.
    """
    return table([HEADER, *map(_fields, findings)])


def _fields(finding: Finding) -> tuple[str, str, str, str, str]:
    path = os.path.join(".", finding.path) if finding.path.startswith("#") else finding.path
    reason = f"{finding.reason} of {finding.other}" if finding.other else finding.reason
    return path, finding.given, finding.suggested, f"{finding.score:.4f}", reason
