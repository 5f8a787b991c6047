"""changes.py: a new graph against the one it replaces."""

import numpy as np

from retraining.export.changes import describe_changes, read_description
from retraining.export.verify import HeldOutResult, describe_result

KEYS = ["k0", "k1", "k2", "k3"]


def held_out(keys, targets, answers, classes=3):
    """A HeldOutResult that gives each photo's answer 0.8 or so."""
    probabilities = (np.eye(classes)[answers] * 0.7 + 0.1).astype(np.float32)
    paths, logits = [f"{key}.jpg" for key in keys], np.log(probabilities)
    return HeldOutResult(paths, keys, np.array(targets), probabilities, logits)


def test_a_graph_remembers_its_answers():
    result = held_out(KEYS[:2], [0, 1], [0, 2])
    assert describe_result(result) == {
        "test_photos": 2,
        "test_correct": 1,
        "held_out": [["k0", 0, 0.8], ["k1", 2, 0.8]],
        "held_out_targets": [0, 1],
    }


def test_changed_answers_are_counted_and_named():
    # Labels are compared by name: a new class has moved the others' numbers.
    before = {
        "labels": ["b", "c", "old"],
        "results": describe_result(held_out(KEYS, [0, 1, 0, 1], [0, 1, 1, 2])),
    }
    now = held_out([*KEYS[:3], "new"], [1, 2, 1, 0], [1, 2, 1, 0])
    assert list(describe_changes(before, now, ["a", "b", "c"])) == [
        "classes added since the previous graph: a",
        "classes removed since the previous graph: old",
        "3 of these photos also tested the previous graph: 66.7% correct then, 100.0% now",
        "1 of them got a different answer: k2.jpg (c -> b)",
    ]


def test_a_new_name_of_a_class_changes_no_answer():
    labels = ["ash", "beech", "oak"]
    before = {
        "labels": labels,
        "results": describe_result(held_out(KEYS, [0, 1, 1, 2], [0, 1, 2, 1])),
    }
    now = held_out(KEYS, [0, 1, 1, 2], [0, 1, 2, 2])
    assert list(describe_changes(before, now, ["ash", "fagus", "oak"]))[2:] == [
        "4 of these photos also tested the previous graph: 50.0% correct then, 75.0% now",
        "1 of them got a different answer: k3.jpg (beech -> oak)",
    ]
    merged = held_out(KEYS, [0, 1, 1, 1], [0, 1, 1, 1], 2)
    assert list(describe_changes(before, merged, ["ash", "tree"]))[2:] == [
        "4 of these photos also tested the previous graph: 50.0% correct then, 100.0% now"
    ]


def test_without_the_true_labels_of_then_nothing_is_said_of_the_accuracy_then():
    result = held_out(KEYS, [0, 1, 0, 1], [0, 1, 1, 1])
    before = {"labels": ["a", "b"], "results": describe_result(result)}
    del before["results"]["held_out_targets"]
    assert list(describe_changes(before, result, ["a", "b"])) == [
        "4 of these photos also tested the previous graph: 75.0% correct"
    ]


def test_five_photos_are_named_at_most():
    keys = [f"k{number}" for number in range(7)]
    before = {"labels": ["a", "b"], "results": describe_result(held_out(keys, [0] * 7, [0] * 7, 2))}
    (_, line) = describe_changes(before, held_out(keys, [0] * 7, [1] * 7, 2), ["a", "b"])
    assert line.startswith("7 of them got a different answer: k0.jpg (a -> b), ")
    assert line.endswith("k4.jpg (a -> b), ...")


def test_nothing_is_said_where_there_is_nothing_to_compare():
    result = held_out(KEYS[:1], [0], [0])
    for before in ({}, {"labels": ["a", "b", "c"]}, {"labels": ["a", "b", "c"], "results": {}}):
        assert list(describe_changes(before, result, ["a", "b", "c"])) == []


def test_what_is_no_graph_of_ours_has_no_description(tmp_path, finished, inception_file):
    (tmp_path / "notes.pb").write_text("notes")
    assert read_description(tmp_path / "notes.pb") == {}
    assert read_description(tmp_path / "nothing.pb") == {}
    assert read_description(inception_file) == {}
    about = read_description(finished.graph)
    assert about["labels"] == ["blue", "green", "red"]
    assert len(about["results"]["held_out"]) == about["results"]["test_photos"]
