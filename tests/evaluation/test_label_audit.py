"""label_audit.py: wrong labels, duplicates, the table."""

import os

import numpy as np
import pytest

from benchmarks.audit import read_vectors, swapped
from retraining.evaluation import label_audit
from retraining.evaluation.label_audit import AuditedPhotos, Finding
from retraining.photos.dataset import load_dataset
from retraining.photos.exclude import read_listed
from retraining.photos.source import ScanOptions


def clusters(counts, width=40, seed=0):
    """(vectors float32, truth): a cluster per class, far apart."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    vectors = rng.random((len(targets), width)) + 2 * rng.random((len(counts), width))[targets]
    return vectors.astype(np.float32), targets


def photos_of(vectors, targets, keys=None):
    paths = [f"{number}.jpg" for number in range(len(targets))]
    labels = [f"class {number}" for number in range(targets.max() + 1)]
    return AuditedPhotos(paths, keys or paths, labels, targets, vectors)


def of_reason(findings, reason):
    return [finding for finding in findings if finding.reason == reason]


# -- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most_regressed", [label_audit.MOST_REGRESSED, 0])
def test_swapped_labels_rank_first_with_their_own_class_suggested(monkeypatch, most_regressed):
    monkeypatch.setattr(label_audit, "MOST_REGRESSED", most_regressed)
    vectors, targets = clusters([60, 40, 50])
    given, rows = swapped(targets, seed=1)
    found = of_reason(label_audit.audit(photos_of(vectors, given)), label_audit.LABEL)
    assert {finding.path for finding in found} == {f"{row}.jpg" for row in rows}
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    for finding in found:
        row = int(finding.path[:-4])
        assert finding.given == f"class {given[row]}"
        assert finding.suggested == f"class {targets[row]}"
        assert 0.5 < finding.score <= 1


def test_right_labels_are_not_listed_even_of_tiny_and_unequal_classes():
    vectors, targets = clusters([200, 2, 30])
    assert of_reason(label_audit.audit(photos_of(vectors, targets)), label_audit.LABEL) == []


def test_right_labels_of_many_small_classes_are_not_listed():
    vectors, targets = clusters([6] * 150, width=60)
    findings = label_audit.audit(photos_of(vectors, targets))
    assert of_reason(findings, label_audit.LABEL) == []
    assert len(of_reason(findings, label_audit.DOUBT)) <= 9


def test_an_audit_far_less_accurate_than_the_head_says_nothing_of_labels():
    vectors, targets = clusters([60, 60])
    photos = photos_of(vectors, swapped(targets, seed=3, share=0.25)[0])
    assert of_reason(label_audit.audit(photos), label_audit.DOUBT)
    right, none_right = np.ones(60, bool), np.zeros(60, bool)
    of_label = {label_audit.LABEL, label_audit.DOUBT}
    assert {f.reason for f in label_audit.audit(photos, reference=right)}.isdisjoint(of_label)
    unchanged = label_audit.audit(photos, reference=none_right)
    assert unchanged == label_audit.audit(photos)


@pytest.mark.parametrize("count", [2, 5, 60])
def test_labels_that_cannot_be_learned_are_not_disputed(count):
    """A few photos a class whose vectors tell nothing, and many."""
    rng = np.random.default_rng(0)
    vectors, targets = rng.random((5 * count, 40), np.float32), np.repeat(np.arange(5), count)
    photos = photos_of(vectors, targets)
    disputed = label_audit.out_of_fold(photos.unit, targets, np.arange(5 * count))
    assert label_audit.label_findings(photos, disputed)
    assert label_audit.audit(photos) == []


@pytest.mark.parametrize(
    ("count", "right", "speaks"),
    [(14, 0.8, False), (15, 0.65, True), (15, 0.5, False), (5, 0.96, True), (5, 0.84, False)],
)
def test_with_few_photos_a_class_more_labels_must_be_agreed_with(count, right, speaks):
    targets = np.repeat(np.arange(5), count)
    wrong = np.arange(len(targets)) >= round(right * len(targets))
    answers = np.where(wrong, (targets + 1) % 5, targets)
    assert label_audit._agree(np.eye(5)[answers], targets) == speaks


def test_a_wrong_label_among_25_photos_of_clear_classes_is_found():
    vectors, targets = clusters([5] * 5)
    targets[7] = 3
    (found,) = of_reason(label_audit.audit(photos_of(vectors, targets)), label_audit.LABEL)
    assert (found.path, found.given, found.suggested) == ("7.jpg", "class 3", "class 1")


@pytest.mark.parametrize("most_regressed", [label_audit.MOST_REGRESSED, 0])
def test_a_class_that_is_one_photo_has_no_prediction(monkeypatch, most_regressed):
    monkeypatch.setattr(label_audit, "MOST_REGRESSED", most_regressed)
    vectors, targets = clusters([20, 20, 2, 1])
    groups = np.arange(43)
    groups[41] = groups[40]
    found = label_audit.out_of_fold(label_audit.normalised(vectors), targets, groups)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [40, 41, 42]
    findings = label_audit.label_findings(photos_of(vectors, targets), found)
    assert {"40.jpg", "41.jpg", "42.jpg"}.isdisjoint(f.path for f in findings)


def test_copies_do_not_vouch_for_each_other():
    vectors, targets = clusters([30, 30])
    odd = vectors[40] + np.float32(0.3)
    vectors = np.concatenate([vectors, np.repeat(odd[None], 4, axis=0)])
    targets = np.append(targets, [0] * 4)
    own = label_audit.out_of_fold(label_audit.normalised(vectors), targets, np.arange(64))[60:, 0]
    together = np.minimum(np.arange(64), 60)
    alone = label_audit.out_of_fold(label_audit.normalised(vectors), targets, together)[60:, 0]
    assert alone.max() < 0.1 < own.min()
    keys = [str(row) for row in together]
    found = of_reason(label_audit.audit(photos_of(vectors, targets, keys)), label_audit.LABEL)
    assert {f.path for f in found} == {f"{row}.jpg" for row in range(60, 64)}


def test_folds_keep_groups_together_and_spread_classes():
    targets = np.repeat([0, 1, 2], [50, 5, 2])
    groups = np.arange(57)
    groups[:6] = 0
    folds = label_audit.assign_folds(targets, groups)
    assert len(set(folds[:6])) == 1
    assert sorted(folds[targets == 1]) == [0, 1, 2, 3, 4]
    assert len(set(folds[targets == 2])) == 2
    assert np.bincount(folds[6:50]).min() >= 8


def test_confident_joint_by_hand():
    targets = np.array([0, 0, 0, 1, 1, 1])
    own = np.array([0.9, 0.8, 0.3, 0.6, 0.9, 0.45])  # means 2/3 and 0.65
    probabilities = np.where(np.eye(2, dtype=bool)[targets], own[:, None], 1 - own[:, None])
    # Row 2: P(1) = 0.7 >= 0.65. Row 5: rather 0, but P(0) = 0.55 < 2/3.
    found = label_audit.confidently_wrong(probabilities, targets)
    assert found.tolist() == [False, False, True, False, False, False]
    reasons = [f.reason for f in label_audit.label_findings(photos_of(own, targets), probabilities)]
    assert reasons == [label_audit.LABEL, label_audit.DOUBT]


def test_the_regressions_gradient_is_that_of_the_penalised_cross_entropy(monkeypatch):
    monkeypatch.setattr(label_audit, "ANSWERS_AT_ONCE", 100)  # several blocks
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    folds, weights = np.arange(40) % label_audit.FOLDS, rng.random(40)
    objective = label_audit.FoldObjective(features, targets, folds, weights)
    at = rng.normal(size=objective.shape)
    value, gradient = objective(at)
    expected = label_audit.PENALTY / 2 * (at**2).sum()
    for fold in range(label_audit.FOLDS):
        seen = folds != fold
        logits = features[seen] @ at[:, fold]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        own = logs[np.arange(seen.sum()), targets[seen]]
        expected -= np.average(own, weights=weights[seen])
    assert value == pytest.approx(expected)
    for place in [(0, 0, 0), (3, 2, 1), (5, 4, 2)]:
        step = np.zeros(at.shape)
        step[place] = 1e-5
        slope = (objective(at + step)[0] - objective(at - step)[0]) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-5)


def test_discriminants_are_those_of_gaussians_with_one_shrunk_covariance():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    weights = rng.random(40)
    slopes, offsets = label_audit.discriminants(features, targets, weights, 4)
    rows = [targets == k for k in (0, 1, 2)]
    means = np.stack([np.average(features[own], axis=0, weights=weights[own]) for own in rows])
    rest = features - means[targets]
    covariance = np.cov(rest.T, aweights=weights, ddof=0)
    covariance += np.outer(*2 * [np.average(rest, axis=0, weights=weights)])  # about the means
    share = label_audit.SHRINKAGE
    covariance = (1 - share) * covariance + share * np.trace(covariance) / 6 * np.eye(6)
    distances = [
        np.einsum("ij,jk,ik->i", features - mean, np.linalg.inv(covariance), features - mean)
        for mean in means
    ]
    expected = -np.stack(distances, axis=1) / 2
    found = (features @ slopes + offsets)[:, :3]
    np.testing.assert_allclose(  # but for what all classes have in common
        found - found.mean(axis=1, keepdims=True),
        expected - expected.mean(axis=1, keepdims=True),
        rtol=1e-6,
        atol=1e-9,
    )
    assert offsets[3] == label_audit.IMPOSSIBLE


def test_discriminants_are_as_sure_as_they_are_right(monkeypatch):
    """A thousand photos of two classes that overlap."""
    monkeypatch.setattr(label_audit, "MOST_REGRESSED", 0)
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 500)
    vectors = rng.normal(size=(1000, 300)).astype(np.float32)
    vectors[:, 0] += 12 * targets
    found = label_audit.out_of_fold(label_audit.normalised(vectors), targets, np.arange(1000))
    right = found.argmax(axis=1) == targets
    assert found.dtype == np.float32
    assert found.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.05)


def test_reduced_vectors_keep_distances_of_what_has_few_directions():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 10)) @ rng.normal(size=(10, 600))
    features = label_audit.reduced(vectors)
    assert features.shape == (50, label_audit.COMPONENTS)
    assert (features**2).sum(axis=1).mean() == pytest.approx(1)
    ratio = np.linalg.norm(features[1:] - features[0], axis=1)
    ratio /= np.linalg.norm(vectors[1:] - vectors[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_the_same_seed_gives_the_same_findings():
    vectors, targets = clusters([20, 20])
    photos = photos_of(vectors, swapped(targets, seed=0)[0])
    assert label_audit.audit(photos, seed=3) == label_audit.audit(photos, seed=3)


@pytest.mark.parametrize("most_regressed", [label_audit.MOST_REGRESSED, 0])
def test_swapped_labels_of_real_photos_are_found(shared, monkeypatch, most_regressed):
    monkeypatch.setattr(label_audit, "MOST_REGRESSED", most_regressed)
    vectors, targets = read_vectors(shared / "classic_bottlenecks")
    shares = []
    for seed in range(2):
        given, rows = swapped(targets, seed)
        found = label_audit.label_findings(
            photos_of(vectors, given),
            label_audit.out_of_fold(
                label_audit.normalised(vectors), given, np.arange(len(targets)), seed
            ),
        )
        top = {int(finding.path[:-4]) for finding in found[: len(rows)]}
        shares.append(len(top.intersection(rows)) / len(rows))
    assert min(shares) >= 0.70


# -- duplicates ------------------------------------------------------------------------------


def test_duplicates_name_the_nearest_earlier_photo_within_and_across_classes(monkeypatch):
    monkeypatch.setattr(label_audit, "BLOCK", 7)
    rng = np.random.default_rng(0)
    vectors = rng.random((30, 300)).astype(np.float32)
    targets = np.repeat([0, 1], 15)
    vectors[[9, 12]] = 3 * vectors[2]  # a cosine knows no length
    vectors[20] = vectors[2] + np.float32(0.001)
    vectors[28] = vectors[20]
    pairs = label_audit.near_duplicates(label_audit.normalised(vectors), targets)
    assert {(row, min(other, 2) if row < 15 else other) for row, other, _ in pairs} >= {
        (9, 2),
        (12, 2),
        (28, 20),
    }
    assert sorted(row for row, _, _ in pairs) == [9, 12, 20, 28, 28]
    assert all(cosine > 0.999 for _, _, cosine in pairs)


def test_duplicates_are_findings_that_name_the_other():
    vectors, targets = clusters([20, 20], width=400)
    vectors[5], vectors[25] = vectors[3], vectors[3]
    findings = label_audit.audit(photos_of(vectors, targets))
    assert of_reason(findings, label_audit.DUPLICATE) == [
        Finding("5.jpg", "class 0", "class 0", pytest.approx(1), label_audit.DUPLICATE, "3.jpg")
    ]
    (elsewhere,) = of_reason(findings, label_audit.ELSEWHERE)
    assert (elsewhere.path, elsewhere.given, elsewhere.suggested) == (
        "25.jpg",
        "class 1",
        "class 0",
    )
    assert elsewhere.other in ("3.jpg", "5.jpg")
    assert findings[0] == elsewhere


def test_vectors_of_zeros_do_no_harm():
    vectors, targets = clusters([40, 40])
    vectors[[3, 60]] = 0
    findings = label_audit.audit(photos_of(vectors, targets))
    assert {f.path for f in of_reason(findings, label_audit.LABEL)} <= {"3.jpg", "60.jpg"}
    assert all(np.isfinite(f.score) for f in findings)


# -- the file --------------------------------------------------------------------------------


def test_the_table_can_be_read_back_as_a_list(tmp_path):
    folder = tmp_path / "photos"
    names = ["plain.jpg", "tab\tand\\.jpg", "bytes\udcff.jpg", "猫.jpg", "kept.jpg"]
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for name in names:
            content = b"\xff\xd8\xff" + os.fsencode(label + name)
            (folder / label / name).write_bytes(content)
    findings = [
        Finding(f"{folder}/a/{name}", "a", "b", 0.98765, label_audit.LABEL) for name in names[:4]
    ]
    table = tmp_path / "new" / "label_audit.tsv"
    table.parent.mkdir()
    table.write_bytes(label_audit.table_bytes(findings))
    lines = table.read_bytes().split(b"\n")
    assert lines[0] == b"path\tgiven\tsuggested\tscore\treason"
    assert lines[1] == os.fsencode(f"{folder}/a/plain.jpg\ta\tb\t0.9877\tlabel")
    assert [line.count(b"\t") for line in lines] == [4, 4, 4, 4, 4, 0]
    dataset = load_dataset(str(folder), scan=ScanOptions(excluded=read_listed(table)))
    assert dataset.excluded == 4
    assert [os.path.basename(e.path) for e in dataset.examples if e.label == "a"] == ["kept.jpg"]


def test_a_duplicates_reason_names_the_other_and_a_hash_is_no_comment(tmp_path):
    finding = Finding("#p/a/1.jpg", "a", "a", 1.0, label_audit.DUPLICATE, "#p/a/0.jpg")
    (tmp_path / "t.tsv").write_bytes(label_audit.table_bytes([finding]))
    line = (tmp_path / "t.tsv").read_text().splitlines()[1]
    assert line == "./#p/a/1.jpg\ta\ta\t1.0000\tduplicate of #p/a/0.jpg"
    assert read_listed(tmp_path / "t.tsv") == ["./#p/a/1.jpg"]


def test_limits_are_said():
    assert label_audit.limit(1500, 5) is None
    assert label_audit.limit(50_000, 1000) is None
    assert "and there are 60001" in label_audit.limit(60_001, 2)
    assert "photos x classes, and there are" in label_audit.limit(50_000, 2000)
