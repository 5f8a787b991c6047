"""card.py: what the model card says, and that names do not change what it says."""

import re

import pytest

from retraining.evaluation.label_audit import DUPLICATE, LABEL, Finding
from retraining.photos.source import BadImage
from retraining.report import card
from tests.records import COMPARISON, cross_validated, made_up

markdown_it = pytest.importorskip("markdown_it")  # a parser of Markdown; comes with Keras

LABELS = ["cat", "dog", "owl"]
PATHS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
HEADER = ("class", "photos", "right", "precision", "recall", "F1")
TRUSTED = {"temperature": 1.2, "unknown": {"score": "vim"}}
HOSTILE = [
    "a|b",
    "*loud* and _soft_ and ~gone~",
    "<img src=x onerror=alert(1)>",
    "[link](http://example.org)",
    "![](http://example.org/a.png)",
    "`code` \\| $x$ &amp; &lt;",
    "# heading",
    "1. item",
    "snake_case_name",
    "אבג",
]


class Card:
    """The card as a reader of Markdown shows it: headings, tables (rows of cells), its text."""

    def __init__(self, record, **files):
        given = {"graph": "m/graph.pb", "labels": "m/labels.txt", "sha256": "ab12", "trust": {}}
        self.source = card.render(record, card.ModelFiles(**{**given, **files})).decode("utf-8")
        self.front, self.body = self.source.split("---\n", 2)[1:]
        parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
        tokens = parser.parse(self.body)
        self.kinds = {one.type for token in tokens for one in [token, *(token.children or [])]}
        self.headings, self.tables, self.code, words = [], [], [], []
        for before, token in zip([None, *tokens], tokens, strict=False):
            if token.type == "table_open":
                self.tables.append([])
            elif token.type == "tr_open":
                self.tables[-1].append([])
            elif token.type in ("code_block", "fence"):
                self.code.append(token.content)
            elif token.type == "inline":
                children = token.children
                text = "".join("\n" * (it.type == "softbreak") + it.content for it in children)
                words.append(text)
                if before.type in ("td_open", "th_open"):
                    self.tables[-1][-1].append(text)
                elif before.type == "heading_open":
                    self.headings.append(text)
        self.text = "\n".join(words)

    def table(self, *first):
        """The rows below the header that begins with `first`: {first cell: the others}."""
        (rows,) = [table for table in self.tables if table[0][: len(first)] == [*first]]
        return {row[0]: row[1:] for row in rows[1:]}


@pytest.fixture
def record():
    """Four test photos of three classes, one answered wrongly; nothing cross-validated."""
    return made_up(LABELS, PATHS, [0, 0, 1, 2], [0, 1, 1, 2])


def test_its_headings_and_front_matter_are_those_of_model_cards(record):
    shown = Card(record)
    assert shown.source.startswith("---\n")
    assert shown.source.endswith(" |\n")
    assert shown.front == (
        "pipeline_tag: image-classification\nlibrary_name: tensorflow\ntags:\n- tensorflow\n"
        "- frozen-graph\n- transfer-learning\n"
    )
    assert shown.headings == [
        "photos: 3 classes, 7 photos, net",
        "Model description",
        "Intended uses & limitations",
        "How to use",
        "Training data",
        "Training procedure",
        "Evaluation results",
        "Limitations",
        "Provenance",
    ]


def test_its_numbers_are_those_of_the_metrics_file(record):
    shown, test = Card(record), record["test"]
    measured = shown.table("measured on")
    assert list(measured) == ["test photos"]
    assert measured["test photos"] == ["4", "3", "75.0%", "30.1% to 95.4%"]
    assert measured["test photos"][2] == f"{test['accuracy']:.1%}"
    low, high = test["interval"]
    assert measured["test photos"][3] == f"{low:.1%} to {high:.1%}"
    assert shown.table(*HEADER) == {
        "cat": ["2", "1", "100.0%", "50.0%", "66.7%"],
        "dog": ["1", "1", "50.0%", "100.0%", "66.7%"],
        "owl": ["1", "1", "100.0%", "100.0%", "100.0%"],
    }
    error = record["calibration"]["expected_calibration_error"]
    assert f"(expected calibration error {error:.3f})" in shown.text
    assert shown.table("class", "training") == {
        "cat": ["1", "0", "2"],
        "dog": ["1", "0", "1"],
        "owl": ["1", "0", "1"],
        "all 3 classes": ["3", "0", "4"],
    }


def test_a_small_test_does_not_lead():
    paths = [f"{n}.jpg" for n in range(100)]
    validated = cross_validated(paths, [0, 1] * 50, [0, 1] * 43 + [1, 0] * 7, 2)
    shown = Card(made_up(["a", "b"], paths[:5], [0] * 5, [0] * 5, validated=validated))
    assert "Of 100 new photos like these, expect 75 to 93 to be right." in shown.text
    assert "Each of 100 photos was labelled by a model that" in shown.text
    measured = shown.table("measured on")
    assert measured["cross-validation in 5 folds"][:3] == ["100", "86", "86.0%"]
    assert measured["test photos"] == ["5", "5", "100.0%", "56.6% to 100.0%"]
    assert {name: row[:2] for name, row in shown.table(*HEADER).items()} == {
        "a": ["50", "43"],
        "b": ["50", "43"],
    }


def test_what_was_not_measured_is_said():
    shown = Card(made_up(LABELS, [], [], []))
    assert "Its accuracy was not measured." in shown.text
    assert "The accuracy of this model is unknown: no photos were held out" in shown.text
    assert "measured on |" not in shown.source
    assert "Calibration: Unknown: no photos were tested." in shown.text
    assert "%" not in shown.source.split("## Evaluation")[1].split("## Limitations")[0]


def test_how_to_use_it_names_the_files_alone(record):
    formats = {"tflite": "elsewhere/m.tflite", "saved_model": "/home/ann/serving"}
    shown = Card(record, graph="/home/ann/models/a b.pb", trust=TRUSTED, formats=formats)
    assert shown.code[0] == "python label_image.py --graph 'a b.pb' photo.jpg\n"
    assert "classifier = load_classifier('a b.pb')\n" in shown.code[1]
    compile(shown.code[1], "card", "exec")
    assert "m.tflite (tflite), serving (saved_model)." in shown.text
    assert "the graph holds a score of how much a photo resembles the classes" in shown.text
    assert "ann" not in shown.source
    assert "the graph holds no score" in Card(record).text
    assert shown.table("")["SHA-256 of the graph"] == ["ab12"]


def test_the_photos_that_took_no_part_are_counted():
    findings = [
        Finding("p/a.jpg", "cat", "dog", 0.9, LABEL),
        Finding("p/b.jpg", "cat", "cat", 0.5, DUPLICATE, "p/a.jpg"),
    ]
    shown = Card(
        made_up(
            *(LABELS, PATHS, [0, 0, 1, 2], [0, 1, 1, 2]),
            options={"image_dir": "/home/ann/photos", "seed": 3, "excluded_photos": 2, "l2": 0.5},
            bad_images=[BadImage("/home/ann/photos/cat/x.jpg", "is empty")],
            audit=findings,
            comparison=COMPARISON,
            warnings=["1 file in /home/ann/photos/cat is not an image: /home/ann/photos/cat/x.txt"],
            caveats=["a drawing", "net is used"],
            remarks=["net is used"],
        )
    )
    assert "2 photos were excluded by the user." in shown.text
    assert "1 file was left out, since it could not be read." in shown.text
    assert "1 photo has a label that may be wrong." in shown.text
    assert "Options: l2 = 0.5, seed = 3." in shown.text
    assert "Note: 1 file in photos/cat is not an image: photos/cat/x.txt." in shown.text
    assert "Note: a drawing." in shown.text
    assert "Note: net is used" not in shown.text
    assert "net is used." in shown.text
    assert shown.table("method")["head"] == ["75.0%", "100.0%", "no"]
    assert shown.table("method")["all"] == ["50.0%", "87.5%", "yes"]
    assert "ann" not in shown.source.replace("cannot", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 file in /a b/c d/cat is none", "1 file in c d/cat is none"),
        ("see /srv/x/y.txt, s3://bucket/a/b and a/b/c", "see y.txt, s3://bucket/a/b and a/b/c"),
        ("and/or / 3", "and/or / 3"),
    ],
)
def test_folders_of_the_users_machine_are_left_out(text, expected):
    options = {"image_dir": "/a b/c d/", "model_dir": "models", "exclude": None, "seed": 3}
    assert card.without_folders(text, options) == expected


def test_no_name_changes_the_markup():
    targets = list(range(len(HOSTILE)))
    paths = [f"{n}.jpg" for n in targets]
    shown = Card(
        made_up(
            *(HOSTILE, paths, targets, [0] * len(targets)),
            options={"image_dir": "photos/[x](y)|<b>", "seed": 3},
            warnings=[f"{label} has only 1 image" for label in HOSTILE],
        ),
        graph="`*g*`.pb",
        labels="*l*.txt",
    )
    plain = Card(made_up(LABELS, PATHS, [0, 0, 1, 2], [0, 1, 1, 2], warnings=["odd"]))
    assert shown.kinds - {"text_special"} <= plain.kinds
    assert shown.headings[1:] == plain.headings[1:]
    assert shown.headings[0].startswith("[x](y)|<b>: 10 classes")
    assert sorted(shown.table(*HEADER)) == sorted(HOSTILE)
    for label in HOSTILE:
        assert f"Note: {label} has only 1 image." in shown.text
    assert "also in *l*.txt." in shown.text
    assert shown.code[0] == "python label_image.py --graph '`*g*`.pb' photo.jpg\n"


def test_what_cannot_be_seen_is_spelled_out():
    labels = ["a\u202eb", "c\u2066d", "e"]
    shown = Card(
        made_up(labels, PATHS, [0, 0, 1, 2], [0, 1, 1, 2], warnings=["x\n# y"]),
        graph="g\n    \udcff.pb",
    )
    assert "a\\u202eb" in shown.table(*HEADER)
    assert "c\\u2066d" in shown.text
    assert "Note: x\\n# y." in shown.text
    assert shown.code[0] == "python label_image.py --graph 'g\\n    \\udcff.pb' photo.jpg\n"
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", shown.source)


def test_only_names_from_right_to_left_are_isolated():
    assert (
        "\N{FIRST STRONG ISOLATE}אב\N{POP DIRECTIONAL ISOLATE}"
        in Card(made_up(["אב", "b", "c"], PATHS, [0, 0, 1, 2], [0, 1, 1, 2])).text
    )


def test_many_classes_keep_it_short():
    labels = [f"class {n}" for n in range(500)]
    paths = [f"{n}.jpg" for n in range(500)]
    record = made_up(labels, paths, list(range(500)), [0] * 500, warnings=["odd"] * 300)
    shown = Card(record)
    assert "and 480 more (all are in labels.txt)" in shown.text
    assert "The table shows 20 of 500 classes." in shown.text
    assert "The run gave 280 more warnings about the photos." in shown.text
    assert len(shown.source.splitlines()) < 180
