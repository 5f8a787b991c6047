"""scoring.py: classes matched by name, what is scored, what is printed."""

import json
import os

import numpy as np
import pytest

from retraining.cli import rows
from retraining.labelling import scoring
from retraining.photos.key_set import pack_keys
from retraining.photos.reader import ImageError
from retraining.photos.registry import hash_file
from retraining.photos.source import DatasetError, ScanOptions
from tests import tiny


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["red"], ["blue", "red"], {"red": "red"}),
        (["Foo_Bar"], ["foo bar", "x"], {"Foo_Bar": "foo bar"}),
        (["foo bar"], ["Foo Bar", "foo bar"], {"foo bar": "foo bar"}),
        (["FOO BAR"], ["Foo Bar", "foo bar"], {"FOO BAR": None}),
        (["A", "a"], ["a", "A"], {"A": "A", "a": "a"}),
        (["A", "a"], ["a"], {"A": None, "a": "a"}),
        (["A", "a "], ["a"], {"A": None, "a ": None}),
        (["-1", "1"], ["1", "-1"], {"-1": "-1", "1": "1"}),
        (["-1", "1"], ["1", "2"], {"-1": None, "1": "1"}),
        (["- 1"], ["-1", "2"], {"- 1": None}),
        (["-1"], ["1"], {"-1": None}),
        (["+1", "\u22121", "\u20131"], ["1"], {"+1": None, "\u22121": None, "\u20131": None}),
        (["-b", "A-"], ["B", "a"], {"-b": None, "A-": None}),
        (["x -1"], ["x 1"], {"x -1": None}),
        (["x-ray", "a - b"], ["X ray", "a b"], {"x-ray": "X ray", "a - b": "a b"}),
        (["नमसते"], ["नमस्\u200cते", "नमस\u200cते"], {"नमसते": "नमस\u200cते"}),
        (["a\u00a0b"], ["a b"], {"a\u00a0b": "a b"}),
        (["Crane"], ["crane", "crane"], {"Crane": "crane"}),
        (["e\u0301"], ["é"], {"e\u0301": "é"}),
        (["pink"], ["red"], {"pink": None}),
    ],
)
def test_classes_are_matched_by_name(names, labels, expected):
    assert scoring.match_classes(names, labels) == expected


def test_what_cannot_be_scored_is_said(tmp_path):
    tiny.write_photos(tmp_path, {"red": 2, "grey": 3})
    (tmp_path / "empty").mkdir()
    (tmp_path / "red" / "notes.txt").write_text("text")
    found = scoring.find_labelled(tmp_path, ["Blue", "Red", "a", "b", "c", "d", "e"])
    assert found.paths == [f"{tmp_path}/red/photo_00.jpg", f"{tmp_path}/red/photo_01.jpg"]
    assert found.targets == ["Red", "Red"]
    assert found.warnings == [
        "passed over 1 empty folder (empty); 1 file that is not an image (red/notes.txt)",
        "matched classes that the graph spells differently: 'red' as 'Red'",
        "the graph has no class grey; its photos (3) are not scored",
        "no folder for 6 classes of the graph: Blue, a, b, c, d, ...",
    ]


def test_a_misspelled_class_is_asked_about(tmp_path):
    tiny.write_photos(tmp_path, {"grey": 1, "red": 1})
    found = scoring.find_labelled(tmp_path, ["greys", "red"])
    assert found.targets == ["red"]
    assert found.warnings == [
        "the graph has no class grey; its photos (1) are not scored; did you mean greys?",
        "no folder for 1 class of the graph: greys",
    ]


def test_one_class_is_enough_and_none_is_not(tmp_path):
    with pytest.raises(DatasetError, match="must hold a class folder"):
        scoring.find_labelled(tmp_path, ["red"])
    tiny.write_photos(tmp_path, {"red": 1})
    assert scoring.find_labelled(tmp_path, ["red"]).warnings == []


@pytest.fixture
def result():
    """Of six photos one is unreadable, three are right; `c` occurs only as an answer, `d` never."""
    labels = ["b", "a", "c", "c", "d"]
    targets = ["a", "a", "a", "b", "b", "b"]
    answers = [np.eye(5)[number] for number in (1, 1, 3, 0, 1)] + [ImageError("is broken")]
    bad = []
    rows = zip("123456", answers, [None] * 6, strict=True)
    scored = scoring.score(
        targets, rows, labels, None, lambda path, error: bad.append((path, str(error)))
    )
    assert bad == [("6", "is broken")]
    return scoring.Score(scored)


def test_a_score_counts_photos(result):
    assert result.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(result.confusion, [[2, 0, 1], [1, 1, 0], [0, 0, 0]])
    assert (result.photos, result.correct, result.accuracy) == (5, 3, 0.6)
    assert result.interval == pytest.approx((0.2307, 0.8824), abs=5e-5)


TSV = """\
accuracy	0.6000
interval	0.2307	0.8824
photos	5
correct	3
class	a	3	0.6667	0.6667	0.6667
class	b	2	1.0000	0.5000	0.6667
class	c	0	0.0000	nan	0.0000
confusion	a	a	2
confusion	a	c	1
confusion	b	a	1
confusion	b	b	1
"""


def test_the_lines_for_programs(result):
    assert "".join(f"{line}\n" for line in scoring.tsv_lines(result)) == TSV


def test_the_same_as_json(result):
    found = json.loads(rows.to_json(scoring.to_dict(result)))
    assert {key: found[key] for key in ("accuracy", "interval", "photos", "correct")} == {
        "accuracy": 0.6,
        "interval": [0.2307, 0.8824],
        "photos": 5,
        "correct": 3,
    }
    expected = {"label": "c", "photos": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert found["classes"][2] == expected
    assert found["confusion"][1] == {"class": "a", "answer": "c", "photos": 1}


TEXT = """\
accuracy 60.0% (N=5, 95 % interval 23.1% to 88.2%)
class  photos  precision  recall      F1
a           3      66.7%   66.7%   66.7%
b           2     100.0%   50.0%   66.7%
c           0       0.0%       -    0.0%
1 of a taken for c
1 of b taken for a
"""


def test_the_lines_for_readers(result):
    assert "".join(f"{line}\n" for line in scoring.text_lines(result)) == TEXT


def scored(*photos):
    """ScoredPhotos of (target, predicted, seen, unknown)."""
    return [scoring.ScoredPhoto(f"{n}.jpg", *p[:2], 0.75, *p[2:]) for n, p in enumerate(photos)]


SEEN = scoring.Score(scored(("a", "a", True), ("a", "b", False), ("b", "b", False)))


def test_photos_that_were_trained_on_are_known_by_their_content(tmp_path):
    tiny.write_photos(tmp_path, {"red": 2})
    paths = [str(tmp_path / "red" / f"photo_0{n}.jpg") for n in range(2)]
    trained = scoring.trained_photos({"trained_photos": pack_keys([hash_file(paths[0])])})
    moved = tmp_path / "moved.jpg"
    os.rename(paths[0], moved)
    rows = [(str(moved), np.array([1.0]), None), (paths[1], np.array([1.0]), None)]
    result = scoring.Score(scoring.score(["red"] * 2, rows, ["red"], trained, pytest.fail))
    assert [photo.seen for photo in result.scored] == [True, False]
    assert (result.photos, result.unseen.photos) == (2, 1)


@pytest.mark.parametrize("description", [{}, {"trained_photos": None}, {"trained_photos": "x"}])
def test_a_graph_that_does_not_tell_its_training_photos_is_no_error(description):
    assert scoring.trained_photos(description) is None


def test_unseen_photos_are_scored_beside_all():
    assert (SEEN.photos, SEEN.accuracy) == (3, 2 / 3)
    lines = list(scoring.tsv_lines(SEEN))
    assert lines[2:6] == ["photos\t3", "correct\t2", "unseen_photos\t2", "unseen_accuracy\t0.5000"]
    assert scoring.to_dict(SEEN)["unseen_accuracy"] == 0.5
    assert scoring.describe_seen(SEEN) == (
        "accuracy on photos that the graph has not seen = 50.0% (N=2, 95 % interval 9.5% to "
        "90.5%); it has seen the other 1 in training or validation"
    )
    assert "accuracy on photos that the graph has not seen 50.0% (N=2)" in [
        *scoring.text_lines(SEEN)
    ]


def test_what_is_said_where_all_or_none_are_known():
    all_seen = scoring.Score(scored(("a", "a", True)))
    assert "trained on all of these photos" in scoring.describe_seen(all_seen)
    assert "unseen_accuracy\tnan" in [*scoring.tsv_lines(all_seen)]
    unknown = scoring.Score(scored(("a", "a")))
    assert "does not list its training photos" in scoring.describe_seen(unknown)
    assert "unseen" not in "".join(scoring.tsv_lines(unknown))


def test_photos_of_no_known_class_are_not_answered():
    photos = scored(("a", "a", None, False), ("a", "b", None, True), ("b", "a", None, False))
    result = scoring.Score(photos, rejects=True)
    assert [*scoring.tsv_lines(result)][4:7] == [
        "answered\t2",
        "coverage\t0.6667",
        "answered_accuracy\t0.5000",
    ]
    assert "accuracy on the 2 photos that do not count as unknown 50.0%" in [
        *scoring.text_lines(result)
    ]


def test_mistakes_are_a_row_each():
    assert [*scoring.misclassified_lines(SEEN)] == ["misclassified\t1.jpg\ta\tb\t0.75000"]
    (mistake,) = scoring.misclassified_dicts(SEEN)
    assert mistake == {"path": "1.jpg", "class": "a", "answer": "b", "score": 0.75}


def test_folders_within_class_folders_count_on_request(tmp_path):
    tiny.write_photos(tmp_path / "all", {"red": 1})
    tiny.write_photos(tmp_path / "all" / "red", {"blue": 2})
    assert len(scoring.find_labelled(tmp_path / "all", ["red"]).paths) == 1
    found = scoring.find_labelled(tmp_path / "all", ["red"], ScanOptions(recursive=True))
    assert (len(found.paths), found.targets) == (3, ["red"] * 3)


def test_many_unknown_classes_are_one_line(tmp_path):
    for label in ("a", "b", "c", "d", "e", "f"):
        tiny.photo((0, 0, 0), np.random.default_rng(0)).save(path_in(tmp_path / label))
    found = scoring.find_labelled(tmp_path, ["a"])
    assert found.warnings == [
        "the graph has no class b; its photos (1) are not scored",
        *(f"the graph has no class {name}; its photos (1) are not scored" for name in "cdef"),
    ]
    found = scoring.find_labelled(tmp_path, ["z"])
    assert found.warnings[0] == (
        "the graph has no class for 6 folders (a, b, c, ...); their photos (6) are not scored"
    )


def path_in(folder):
    folder.mkdir()
    return folder / "photo.jpg"
