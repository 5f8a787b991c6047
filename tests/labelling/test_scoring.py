"""scoring.py: classes matched by name, what is scored, what is printed."""

import json

import numpy as np
import pytest

from retraining.cli import rows
from retraining.labelling import scoring
from retraining.photos.reader import ImageError
from retraining.photos.source import DatasetError
from tests import tiny


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["red"], ["blue", "red"], {"red": "red"}),
        (["Foo_Bar"], ["foo bar", "x"], {"Foo_Bar": "foo bar"}),
        (["foo bar"], ["Foo Bar", "foo bar"], {"foo bar": "foo bar"}),
        (["FOO BAR"], ["Foo Bar", "foo bar"], {"FOO BAR": None}),
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
        f"1 file in {tmp_path}/red is no image: notes.txt",
        "the graph does not know the class empty; its photos (0) are not scored",
        "the graph does not know the class grey; its photos (3) are not scored",
        "no folder here for 6 classes of the graph: Blue, a, b, c, d, ...",
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
    found = scoring.score(
        scoring.LabelledPhotos([*"123456"], targets, []),
        zip("123456", answers, strict=True),
        labels,
        lambda path, error: bad.append((path, str(error))),
    )
    assert bad == [("6", "is broken")]
    return found


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


def test_photos_that_were_trained_on_are_warned_of(tmp_path):
    described = {
        "options": {"image_dir": str(tmp_path)},
        "results": {"test_photos": 148, "test_correct": 132},
    }
    (tmp_path / "x").mkdir()
    same = scoring.trained_on(described, f"{tmp_path}/x/..")
    assert "this very folder" in same
    assert "on its held-out photos it was 0.8919 (N=148)" in same
    assert f"trained on photos of {tmp_path};" in scoring.trained_on(described, tmp_path / "x")
    assert "does not tell its training photos" in scoring.trained_on({}, tmp_path)
