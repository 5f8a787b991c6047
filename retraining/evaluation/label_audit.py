"""Finds photos whose label looks wrong, and near-duplicates, from the vectors alone. NumPy only.

Labels: each photo is predicted by softmax regressions that did not see it, and the less its own
label is believed in, the higher it ranks. Which of them count as wrong is decided as in Northcutt,
Jiang, Chuang (2021), Confident Learning, JAIR 70, doi:10.1613/jair.1.12125.
Duplicates: pairs of photos whose vectors have nearly the same direction.
`benchmarks/audit.py` measures the constants below.
"""

import os
from collections import deque
from dataclasses import dataclass

import numpy as np

from retraining.metrics.classification import softmax
from retraining.system.text import table

HEADER = ("path", "given", "suggested", "score", "reason")
LABEL, DOUBT = "label", "doubtful label"
DUPLICATE, ELSEWHERE = "duplicate", "duplicate in another class"

MOST_PHOTOS = 20_000  # comparing all pairs takes the square of it
MOST_ANSWERS = 2_000_000  # photos x classes; the time of the regressions grows with it
FOLDS = 5
COMPONENTS = 256  # directions of the vectors that are kept; more rank no better
PENALTY = 3e-4  # of the squared weights, for features whose mean square length is 1
SAME_PHOTO = 0.975  # cosine of normalised vectors from which two photos count as one
CLOSE = 0.15  # share of the mean distance of a class below which two photos count as one
SURELY_SAME = 1 - 1e-5  # a cosine that only rounding keeps from 1
BLOCK = 512  # rows of vectors worked on at once
ANSWERS_AT_ONCE = 1_000_000  # bounds the memory of a regression's gradient
PAIRS_KEPT = 10  # steps that L-BFGS remembers


@dataclass(frozen=True)
class Photos:
    """What is audited: n paths and keys (SHA-1 of the content), class indexes int [n] into
    `labels`, vectors float32 [n, width]."""

    paths: list[str]
    keys: list[str]
    labels: list[str]
    truth: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Finding:
    """One photo to look at.

    `reason` is LABEL (confidently of the class `suggested`), DOUBT (rather of `suggested` than of
    `given`), DUPLICATE or ELSEWHERE (nearly the same photo as `other`, whose label is `suggested`).
    `score` is 1 - P(given) for labels, the cosine for duplicates: 0..1, the higher the worse.
    """

    path: str
    given: str
    suggested: str
    score: float
    reason: str
    other: str = ""


def audit(photos, seed=0):
    """The Findings: duplicates in another class, labels, duplicates, the highest score first each.

    Of photos that are duplicates, all but the first are listed.
    """
    unit = normalised(photos.vectors)
    pairs = near_duplicates(unit, photos.truth)
    groups = np.unique(photos.keys, return_inverse=True)[1]
    probabilities = out_of_fold(unit, photos.truth, groups, seed)
    copies = [_duplicate(photos, *pair) for pair in pairs]
    copies.sort(key=lambda finding: -finding.score)
    elsewhere = [finding for finding in copies if finding.reason == ELSEWHERE]
    within = [finding for finding in copies if finding.reason == DUPLICATE]
    return elsewhere + label_findings(photos, probabilities) + within


def limit(photos, classes):
    """Why so many photos are not audited, or None."""
    if photos > MOST_PHOTOS:
        return f"{photos} photos are more than the {MOST_PHOTOS} it is made for"
    if photos * classes > MOST_ANSWERS:
        return f"{photos} photos x {classes} classes are more than {MOST_ANSWERS}"
    return None


def normalised(vectors):
    """Vectors of length 1, float [n, width], whose entries are signed square roots.

    So a few large entries do not outweigh the rest (Perronnin, Sanchez, Mensink 2010,
    doi:10.1007/978-3-642-15561-1_11).
    """
    unit = np.empty_like(vectors, subok=False)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        roots = np.copysign(np.sqrt(np.abs(block)), block)
        lengths = np.linalg.norm(roots, axis=1, keepdims=True)
        unit[start : start + BLOCK] = roots / np.maximum(lengths, np.finfo(roots.dtype).tiny)
    return unit


# -- labels ----------------------------------------------------------------------------------


def label_findings(photos, probabilities):
    """A Finding per photo for which another class is likelier than its own, the worst first.

    Photos without a prediction (a row of NaN in float [n, classes]) are passed over.
    """
    own = probabilities[np.arange(len(photos.truth)), photos.truth]
    suggested, wrong = probabilities.argmax(axis=1), confidently_wrong(probabilities, photos.truth)
    doubted = np.flatnonzero(probabilities.max(axis=1) > own)
    return [
        Finding(
            photos.paths[row],
            photos.labels[photos.truth[row]],
            photos.labels[suggested[row]],
            float(1 - own[row]),
            LABEL if wrong[row] else DOUBT,
        )
        for row in doubted[np.argsort(own[doubted], kind="stable")]
    ]


def confidently_wrong(probabilities, truth):
    """bool [n]: what is off the diagonal of the confident joint (section 3.1 of the paper).

    A photo counts for the likeliest of the classes in which it is at least as likely as the photos
    labelled so are on average.
    """
    own = probabilities[np.arange(len(truth)), truth]
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(truth[np.isfinite(own)]):
        thresholds[label] = np.nanmean(own[truth == label])
    above = np.where(probabilities >= thresholds, probabilities, -1)
    return (above.max(axis=1) >= 0) & (above.argmax(axis=1) != truth)


def out_of_fold(unit, truth, groups, seed=0):
    """Probabilities float64 [n, classes] by softmax regressions that saw no photo of the group.

    Each photo is predicted twice: a photo whose label the first predictions doubt counts less in
    the second, so that wrong labels do not teach what is right. Classes weigh the same, however
    many photos they have. NaN where a class has photos in one group only.

    Args:
        unit: float [n, width], as `normalised` gives them.
        truth: int [n], 0..classes - 1, each of them there.
        groups: int [n]; photos of one group are held out together.
    """
    features = reduced(unit, seed)
    folds = assign_folds(truth, groups, seed)
    counts = np.bincount(truth)
    weights = 1 / counts[truth]
    rows = np.arange(len(truth))
    probabilities = predictions(features, truth, folds, weights)
    trusted = np.minimum(1, 2 * probabilities[rows, truth])
    probabilities = predictions(features, truth, folds, weights * trusted)
    table = np.zeros((FOLDS, len(counts)), int)
    np.add.at(table, (folds, truth), 1)
    probabilities[table[folds, truth] == counts[truth]] = np.nan
    return probabilities


def assign_folds(truth, groups, seed=0):
    """A fold (0..FOLDS - 1) per photo, int [n]: groups stay together, classes are spread."""
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(truth[first][order], kind="stable")]
    folds = np.empty(len(first), int)
    folds[order] = np.arange(len(first)) % FOLDS
    return folds[members]


def reduced(unit, seed=0):
    """[n, at most COMPONENTS]: the vectors less their mean, in their main directions.

    The directions come from a random sketch with one power step (Halko, Martinsson, Tropp 2011,
    doi:10.1137/090771806). The mean square length is 1.
    """
    width = unit.shape[1]
    sketch = np.random.default_rng(seed).standard_normal((width, min(width, COMPONENTS)))
    sketched = unit @ sketch.astype(unit.dtype)
    sketched -= sketched.mean(axis=0)
    directions = np.linalg.qr(unit.T @ sketched)[0]
    features = unit @ directions
    features -= features.mean(axis=0)
    return features / max(np.sqrt((features**2).sum(axis=1).mean()), np.finfo(unit.dtype).tiny)


def predictions(features, truth, folds, weights):
    """Probabilities [n, classes], each row by the regression that did not see the row's fold."""
    features = np.hstack([features, np.ones((len(features), 1), features.dtype)])
    objective = Objective(features, truth, folds, weights)
    parameters = minimise(objective, np.zeros(objective.shape))
    logits = np.empty((len(truth), objective.shape[2]))
    for fold in range(FOLDS):
        rows = folds == fold
        logits[rows] = features[rows] @ parameters[:, fold].astype(features.dtype)
    return softmax(logits)


class Objective:
    """The penalised cross entropy of all folds' regressions together, to be minimised at once.

    They share no parameter, so the minimum of the sum has each one's own; together they need one
    product of matrices instead of one each.
    """

    def __init__(self, features, truth, folds, weights):
        """`features` [n, width], `weights` [n]; a photo has no weight in its own fold."""
        outside = weights[:, None] * (folds[:, None] != np.arange(FOLDS))
        self._features, self._truth = features, truth
        self._weights = outside / np.maximum(outside.sum(axis=0), np.finfo(float).tiny)
        self.shape = features.shape[1], FOLDS, int(truth.max()) + 1

    def __call__(self, parameters):
        """(value, gradient) at `parameters` [width, FOLDS, classes], float64."""
        flat = parameters.reshape(self.shape[0], -1)
        value, gradient = PENALTY / 2 * (flat**2).sum(), PENALTY * flat
        used = flat.astype(self._features.dtype)
        step = max(1, ANSWERS_AT_ONCE // used.shape[1])
        for start in range(0, len(self._truth), step):
            rows = slice(start, start + step)
            loss, error = self._errors(rows, used)
            value += loss
            gradient += self._features[rows].T @ error
        return value, gradient.reshape(self.shape)

    def _errors(self, rows, used):
        """(weighted cross entropy, its gradient by the logits) of some rows."""
        truth, weights = self._truth[rows], self._weights[rows]
        logits = (self._features[rows] @ used).reshape(len(truth), FOLDS, -1)
        logits -= logits.max(axis=2, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=2, keepdims=True)
        own = np.arange(len(truth)), slice(None), truth
        loss = (weights * (np.log(sums[:, :, 0]) - logits[own])).sum()
        powers /= sums
        powers[own] -= 1
        powers *= weights[:, :, None].astype(powers.dtype)
        return loss, powers.reshape(len(truth), -1)


def minimise(function, start, tolerance=1e-3, most=500):
    """Where the convex `function(x) -> (value, gradient)` is least, by L-BFGS.

    Nocedal, Wright (2006), Numerical Optimization, algorithm 7.5, with a halving line search.
    Ends when the gradient's length is `tolerance` times that at `start`, or after `most` steps.
    """
    x, pairs = start, deque(maxlen=PAIRS_KEPT)
    value, gradient = function(x)
    enough = tolerance * np.linalg.norm(gradient)
    for _ in range(most):
        if np.linalg.norm(gradient) <= enough:
            break
        direction = -_newton_like(gradient, pairs)
        slope, length = np.vdot(gradient, direction), 1.0
        while True:
            after, after_gradient = function(x + length * direction)
            if after <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:
                return x  # as low as the arithmetic can tell
        step, change = length * direction, after_gradient - gradient
        if np.vdot(step, change) > 0:
            pairs.append((step, change))
        x, value, gradient = x + step, after, after_gradient
    return x


def _newton_like(gradient, pairs):
    """The inverse Hessian, as the (step, change of gradient) pairs show it, times the gradient."""
    if not pairs:
        return gradient / max(1, np.linalg.norm(gradient))
    product, shares = gradient.copy(), []
    for step, change in reversed(pairs):
        shares.append(np.vdot(step, product) / np.vdot(step, change))
        product -= shares[-1] * change
    step, change = pairs[-1]
    product *= np.vdot(step, change) / np.vdot(change, change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        product += (share - np.vdot(change, product) / np.vdot(step, change)) * step
    return product


# -- duplicates ------------------------------------------------------------------------------


def near_duplicates(unit, truth):
    """[(row, earlier row, cosine), ...] of photos that are nearly the same.

    Of the earlier rows near to a row, the nearest of the same class and the nearest of another are
    named. `unit` is float [n, width], as `normalised` gives them.
    """
    pairs, least = [], least_cosines(unit, truth)[truth]
    for start in range(0, len(unit), BLOCK):
        block = unit[start : start + BLOCK]
        cosines = block @ unit[: start + len(block)].T
        cosines[:, start:][np.triu_indices(len(block))] = -1  # later rows, and each with itself
        for row in np.flatnonzero(cosines.max(axis=1) >= SAME_PHOTO) + start:
            found = cosines[row - start, :row]
            near = found >= np.maximum(least[row], least[:row])
            same = truth[:row] == truth[row]
            for chosen in (near & same, near & ~same):
                if chosen.any():
                    other = int(np.where(chosen, found, -1).argmax())
                    pairs.append((int(row), other, float(found[other])))
    return pairs


def least_cosines(unit, truth):
    """Per class the cosine from which two photos count as one, float [classes].

    It is SAME_PHOTO, or more where all photos of a class are much alike: then the distance
    (1 - cosine) must be below CLOSE times the mean distance in the class.
    """
    means = [unit[truth == label].mean(axis=0) for label in range(truth.max() + 1)]
    distances = np.array([1 - mean @ mean for mean in means])
    return np.clip(1 - CLOSE * distances, SAME_PHOTO, SURELY_SAME)


def _duplicate(photos, row, other, cosine):
    given, suggested = (photos.labels[photos.truth[number]] for number in (row, other))
    reason = DUPLICATE if given == suggested else ELSEWHERE
    score = min(1.0, cosine)
    return Finding(photos.paths[row], given, suggested, score, reason, photos.paths[other])


# -- the file --------------------------------------------------------------------------------


def table_bytes(findings):
    """The table as a file's bytes: tab-separated, a header, a line per Finding in their order.

    A duplicate's reason ends in `of` and the other photo's path. Names with tabs or line ends are
    `escaped`; a path that begins with `#` is written `./#`, since a line with `#` is a comment.
    """
    return os.fsencode(table([HEADER, *map(_fields, findings)]))


def _fields(finding):
    path = os.path.join(".", finding.path) if finding.path.startswith("#") else finding.path
    reason = f"{finding.reason} of {finding.other}" if finding.other else finding.reason
    return path, finding.given, finding.suggested, f"{finding.score:.4f}", reason
