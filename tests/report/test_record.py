"""record.py and the figures in classification.py it is made of: values worked out by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from retraining.evaluation.cross_validation import CrossValidated, CrossValidation
from retraining.evaluation.label_audit import Finding
from retraining.evaluation.learning_curve import SizePoint
from retraining.export.convert import Agreement
from retraining.export.formats import Made
from retraining.metrics import classification
from retraining.photos.dataset import Example
from retraining.photos.source import BadImage
from retraining.report import record
from retraining.training.head import Evaluation
from retraining.training.loop import Step
from tests import ROOT
from tests.records import COMPARISON

LABELS = ["cat", "dog", "owl"]


def held_out(targets, probabilities):
    """What verify.HeldOutResult offers, without TensorFlow."""
    targets, probabilities = np.array(targets, int), np.array(probabilities, "f4").reshape(-1, 3)
    right = probabilities.argmax(axis=1) == targets
    return SimpleNamespace(
        paths=[f"photos/{LABELS[label]}/{row}.jpg" for row, label in enumerate(targets)],
        targets=targets,
        probabilities=probabilities,
        logits=np.log(np.maximum(probabilities, 1e-30)),
        correct=int(right.sum()),
        total=len(targets),
        accuracy=float(right.mean()) if len(targets) else math.nan,
    )


RESULT = held_out(
    [0, 0, 1, 1],
    [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.95, 0.0], [0.25, 0.65, 0.1]],
)


def made(result=RESULT, **changes):
    """A record of a run with few photos."""
    examples = {
        "training": [Example("a", "cat", "training", "1"), Example("b", "owl", "training", "2")],
        "validation": [],
        "testing": [Example("c", "cat", "testing", "3")],
    }
    course = [
        Step(0, None, Evaluation(0.5, 1.0, 10), Evaluation(math.nan, math.nan, 0)),
        Step(9, None, Evaluation(0.75, 0.5, 10), Evaluation(math.nan, math.nan, 0)),
    ]
    outcome = record.Outcome(LABELS, examples, result, course, **{"sizes": [], **changes})
    setting = record.Setting({"name": "net"}, {"seed": 7}, {"training": 1.5})
    return record.make_record(setting, outcome)


# -- the figures -----------------------------------------------------------------------------


def test_confusion_matrix_has_a_row_per_true_class():
    confusion = classification.confusion_matrix(np.array([0, 0, 2, 2]), np.array([0, 1, 1, 1]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 0]]


def test_precision_recall_and_f1():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    precision, recall, f1 = classification.per_class(confusion)[:3]
    assert precision[:2] == pytest.approx([3 / 5, 4 / 5])
    assert recall[:2] == pytest.approx([3 / 4, 4 / 6])
    assert f1[:2] == pytest.approx([6 / 9, 8 / 11])
    assert np.isnan([precision[2], recall[2], f1[2]]).all()


def test_reliability_groups_by_the_probability_of_the_answer():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.42, 0.58]])
    count, confidence, accuracy = classification.reliability(
        probabilities, np.array([0, 1, 1, 1]), 5
    )
    assert count.tolist() == [0, 0, 2, 1, 1]  # a bin is closed above: 0.8 lies in 0.6..0.8
    assert confidence[2:] == pytest.approx([0.59, 0.8, 0.9])
    assert accuracy[2:] == pytest.approx([1, 0, 1])
    assert np.isnan([confidence[:2], accuracy[:2]]).all()


def test_calibration_error_by_hand():
    # Two photos at 0.95, one right; two at 0.55, both right: (2 * 0.45 + 2 * 0.45) / 4.
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    columns = classification.reliability(probabilities, np.array([0, 1, 0, 0]))
    assert classification.expected_calibration_error(*columns) == pytest.approx(0.45)
    nothing = classification.reliability(np.zeros((0, 2)), np.zeros(0, int))
    assert math.isnan(classification.expected_calibration_error(*nothing))


def test_certain_answers_fall_into_the_last_bin():
    count, *_ = classification.reliability(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    assert count.tolist() == [0] * 9 + [2]


def test_paired_difference_of_agresti_and_min():
    # 60 pairs, 9 gained and 3 lost: with half a photo more in each cell, 9.5 and 3.5 of 62.
    before = np.array([False] * 9 + [True] * 3 + [True] * 48)
    after = np.array([True] * 9 + [False] * 3 + [True] * 48)
    difference, low, high = classification.paired_difference(before, after)
    assert difference == pytest.approx(0.1)
    reach = 1.959964 * math.sqrt(13 - 36 / 62) / 62
    assert (low, high) == pytest.approx((6 / 62 - reach, 6 / 62 + reach))
    same = classification.paired_difference(before, before)
    assert same[1] < 0 < same[2]  # four equal photos do not prove that nothing changed
    assert np.isnan(classification.paired_difference(before[:0], after[:0])).all()


# -- the record ------------------------------------------------------------------------------


def test_the_test_is_set_beside_guessing():
    test = made()["test"]
    assert (test["photos"], test["correct"], test["accuracy"]) == (4, 3, 0.75)
    assert test["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    assert test["guessing"] == {"label": "cat", "accuracy": 0.5}
    assert test["cross_entropy"] == pytest.approx(-np.log([0.7, 0.3, 0.95, 0.65]).mean(), abs=1e-6)


def test_classes_and_cells():
    found = made()
    cat, dog, owl = found["classes"]
    assert (cat["photos"], cat["answered"], cat["correct"]) == (2, 1, 1)
    assert (cat["precision"], cat["recall"]) == (1.0, 0.5)
    assert dog["precision"] == pytest.approx(2 / 3)
    assert (owl["precision"], owl["recall"], owl["f1"]) == (None, None, None)
    assert found["confusion"] == [
        {"truth": 0, "answer": 0, "photos": 1},
        {"truth": 0, "answer": 1, "photos": 1},
        {"truth": 1, "answer": 1, "photos": 2},
    ]
    assert record.confusion_of(found).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_predictions_name_the_likeliest_labels():
    wrong = made()["predictions"][1]
    assert (wrong["path"], wrong["truth"], wrong["answer"]) == ("photos/cat/1.jpg", 0, 1)
    assert wrong["truth_probability"] == pytest.approx(0.3)
    assert [found["label"] for found in wrong["likeliest"]] == ["dog", "cat", "owl"]


def test_photos_are_counted_by_class_and_split():
    assert made()["photos"] == [
        {"label": "cat", "training": 1, "validation": 0, "testing": 1},
        {"label": "dog", "training": 0, "validation": 0, "testing": 0},
        {"label": "owl", "training": 1, "validation": 0, "testing": 0},
    ]


def test_sizes_and_their_gain():
    right = np.array([True] * 6 + [False] * 4)
    more = np.array([True] * 8 + [False] * 2)
    sizes = made(sizes=[SizePoint(10, right), SizePoint(20, more)])["sizes"]
    assert [(p["photos"], p["accuracy"]) for p in sizes["points"]] == [(10, 0.6), (20, 0.8)]
    assert (sizes["gain"]["from"], sizes["gain"]["to"]) == (10, 20)
    assert sizes["gain"]["accuracy"] == pytest.approx(0.2)
    assert sizes["gain"]["interval"][0] < 0 < sizes["gain"]["interval"][1]


def test_the_course_is_thinned_but_keeps_its_ends():
    steps = [Step(n, None, Evaluation(0.5, 1.0, 1), Evaluation(0.5, 1.0, 1)) for n in range(2500)]
    course = record.describe_course(steps)
    assert len(course) == record.MOST_STEPS
    assert (course[0]["step"], course[-1]["step"]) == (0, 2499)


def test_the_metrics_file_has_no_nan():
    def refuse(name):
        raise AssertionError(name)

    for result in (RESULT, held_out([], [])):
        read = json.loads(record.metrics_bytes(made(result)), parse_constant=refuse)
        assert read["format"] == 1
        assert read["course"][0]["validation"] == {
            "accuracy": None,
            "cross_entropy": None,
            "count": 0,
        }
    assert read["test"]["accuracy"] is read["test"]["interval"] is read["test"]["guessing"] is None
    assert read["calibration"]["expected_calibration_error"] is None


def test_undecodable_names_come_back():
    bad = [BadImage("photos/\udcff\n.jpg", "is broken")]
    read = json.loads(record.metrics_bytes(made(bad_images=bad)))
    assert read["bad_images"] == [{"path": "photos/\udcff\n.jpg", "reason": "is broken"}]


def test_no_audit_is_not_an_empty_one():
    finding = Finding("a.jpg", "cat", "dog", 0.9, "label")
    assert made()["audit"] is None
    assert made(audit=[])["audit"] == []
    assert made(audit=[finding])["audit"][0]["suggested"] == "dog"


def test_a_comparison_is_in_the_record_only_where_one_was_made():
    assert made()["comparison"] is None
    head, best = made(comparison=COMPARISON)["comparison"]
    assert (head["method"], head["top_1"], head["epochs"]) == ("head", 0.75, 0)
    assert (best["validation_cross_entropy"], best["best_epoch"]) == (0.5, 6)
    assert [head["exported"], best["exported"]] == [False, True]


def test_the_record_tells_how_other_formats_compare_with_the_graph():
    checks = {"pixels": Agreement(200, 0.985, 0.25, 150, 153), "files' bytes": None}
    exported = Made(
        "tflite", "m.tflite", b"", "", "pixels", kind="tflite_int8", size=9, checks=checks
    )
    assert made()["exports"] == []
    assert made(exports=[exported.describe()])["exports"] == [
        {
            "format": "tflite",
            "kind": "tflite_int8",
            "path": "m.tflite",
            "bytes": 9,
            "takes": "pixels",
            "temperature_inside": False,
            "checks": [
                {
                    "input": "pixels",
                    "photos": 200,
                    "same_label": 0.985,
                    "largest_difference": 0.25,
                    "correct": 150,
                    "correct_by_graph": 153,
                }
            ],
        }
    ]


def test_the_documented_schema_is_that_of_the_record():
    """docs/metrics.md names every field of the record, and the format's number."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    fields = text.split("## The lines on stdout")[0]
    rows = {line.split("`")[1] for line in fields.splitlines() if line.startswith("| `")}
    assert set(made()) == {row for row in rows if "." not in row and "[" not in row}
    assert f'"format": {record.FORMAT}' in text


def validated(**changes):
    facts = {
        "result": CrossValidated(0.75, 0.5, 0.9, 0.1, 3, 4),
        "folds": 5,
        "groups": 4,
        "paths": [*"abcde"],
        "targets": np.array([0, 0, 1, 1, 2]),
        "logits": np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [np.nan] * 3], "f4"),
        "twins": frozenset(),
        "leads": True,
    }
    return CrossValidation(**(facts | changes))


def test_a_cross_validation_is_described_like_a_test():
    found = record.describe_validated(validated(), LABELS)
    assert (found["accuracy"], found["interval"], found["photos"]) == (0.75, [0.5, 0.9], 4)
    assert {"truth": 0, "answer": 1, "photos": 1} in found["confusion"]
    assert [row["photos"] for row in found["classes"]] == [2, 2, 0]
    assert found["guessing"] == {"label": "cat", "accuracy": 0.5}
    assert [p["path"] for p in found["predictions"]] == [*"abcd"]  # e has no prediction
    wrong = found["predictions"][1]
    assert (wrong["truth"], wrong["answer"]) == (0, 1)
    assert wrong["likeliest"][0]["probability"] == pytest.approx(math.e / (math.e + 2))
    assert record.describe_validated(None, LABELS) is None


def test_a_temperature_changes_probabilities_and_no_answer():
    cool = record.describe_validated(validated(temperature=0.5), LABELS)
    found = record.describe_validated(validated(), LABELS)
    assert cool["predictions"][0]["truth_probability"] == pytest.approx(1 / (1 + 2 / math.e**2))
    assert cool["confusion"] == found["confusion"]


def test_logits_that_are_nearly_equal_answer_as_they_are_counted():
    near = np.array([[1, np.nextafter(np.float32(1), np.float32(2)), 0]], "f4")
    one = validated(paths=["a"], targets=np.array([1]), logits=near, temperature=3.0)
    found = record.describe_validated(one, LABELS)
    assert found["predictions"][0]["answer"] == 1
    assert found["confusion"] == [{"truth": 1, "answer": 1, "photos": 1}]


def test_what_can_be_evaluated_and_what_leads():
    both, neither = made(validated=validated()), made(held_out([], []))
    assert [*record.evaluations(both)] == ["test", "cross_validation"]
    assert record.evaluations(both)["test"]["classes"] == both["classes"]
    assert [*record.evaluations(neither)] == []
    assert record.leading(both) == "cross_validation"
    assert record.leading(made(validated=validated(leads=False))) == "test"
    assert record.leading(neither) == "test"


def test_test_photos_with_twins_are_told_apart():
    result = held_out([0, 1, 1], [[0.9, 0.1, 0], [0.1, 0.9, 0], [0.9, 0.1, 0]])
    result.keys = ["k", "l", "m"]
    found = record.describe_without_twins(result, validated(twins=frozenset("k")))
    assert found == {"photos": 2, "correct": 1, "accuracy": 0.5}
    assert record.describe_without_twins(result, validated()) is None
    assert record.describe_without_twins(result, None) is None
