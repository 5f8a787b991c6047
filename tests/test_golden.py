"""The table of golden/ and what it takes out of texts; its commands themselves run by hand."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.golden import normalize, outputs
from tests.golden.commands import COMMANDS
from tests.golden.compare import differences

FULL, PART = "██████████", "█████     "


def test_names_are_unique():
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names) >= 60
    assert all(name.isidentifier() for name in names)


def test_each_command_follows_an_earlier_one():
    known = {None}
    for command in COMMANDS:
        assert command.after in known, command.name
        known.add(command.name)


def test_lines_are_whole():
    for command in COMMANDS:
        assert "  " not in command.line, command.name
        assert not command.line.endswith("\\"), command.name
        assert "\n" not in command.line, command.name


def test_there_are_errors_of_both_kinds():
    codes = [command.code for command in COMMANDS]
    assert min(codes.count(1), codes.count(2)) >= 15
    assert set(codes) == {0, 1, 2, 130, 137}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("step 99: train accuracy 88.0%", "step 99: train accuracy 88.0%"),
        (
            "fine-tuning all: 2 epochs in 13 s, best",
            "fine-tuning all: 2 epochs in <seconds> s, best",
        ),
        ("method\thead\t0.8750\t1.0000\t0.1", "method\thead\t0.8750\t1.0000\t<seconds>"),
        ("logs/2026-11-28_151541/train", "logs/<date>/train"),
        ("x.sqlite.damaged-20261128-151541", "x.sqlite.damaged-<date>"),
        ("2026-11-28T15:15:41+00:00", "<date>"),
        ("2026-11-28 15:15 UTC", "<date>"),
        ("a/events.out.tfevents.1795878941.vm", "a/events.out.tfevents"),
        ("at 0x7f2e1c00aa10", "at <address>"),
        ("(process 1234)", "(process <pid>)"),
        ("http://127.0.0.1:5123/x", "http://127.0.0.1:<port>/x"),
        ("/old/tree/retrain.py", "<code>/retrain.py"),
    ],
)
def test_what_is_taken_out_of_texts(given, expected):
    assert normalize.text(given, {"/old/tree": "<code>"}) == expected


def test_a_bar_is_its_end():
    given = (
        "before\n\rbottlenecks:   0%|          | 0/72 [00:00<?, ?img/s]Improper call\n"
        f"\rbottlenecks:  50%|{PART}| 36/72 [00:01<00:01, 32.1img/s]"
        f"\rbottlenecks: 100%|{FULL}| 72/72 [00:00<00:00, 608.93img/s]\n"
        f"\rtraining: 100%|{FULL}| 9/9 [00:00<00:00, 1.5s/step, validation 84.0%]\nafter\n"
    )
    expected = "before\nImproper call\nbottlenecks: 72/72\ntraining: 9/9 validation 84.0%\nafter\n"
    assert normalize.text(given) == expected


def test_json_and_tables_and_pages_lose_their_seconds():
    given = {"created": "now", "a": [{"seconds": 1, "b": 2}], "options": {"seed": 0}}
    assert normalize.without_times(given) == {"a": [{"b": 2}], "options": {"seed": 0}}
    assert normalize.table("x\tseconds\ty\n1\t2.5\t3\n") == "x\tseconds\ty\n1\t<seconds>\t3\n"
    page = (
        "<table><caption>Seconds per step</caption><tr><th>training</th><td>1.2</td></tr></table>"
        "<table><tr><th>seed</th><td>12</td></tr><tr><td>3</td><td>0.4</td></tr></table>"
    )
    expected = page.replace("1.2", "<seconds>").replace("0.4", "<seconds>")
    assert normalize.page(page) == expected


def test_outputs_are_described(tmp_path):
    (tmp_path / "retrain_logs" / "2026-11-28_151541").mkdir(parents=True)
    (tmp_path / "m.json").write_text(json.dumps({"seconds": {"a": 1}, "b": 1}))
    (tmp_path / "picture.png").write_bytes(b"any")
    (tmp_path / "broken.sqlite").write_bytes(b"no store" * 100)
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE files (path BLOB)")
        connection.execute("INSERT INTO files VALUES (?), (?)", (b"/cache/run/a", b"/fixtures/b"))
    found = outputs.describe(tmp_path, {})
    assert found["retrain_logs/<date>/"] == ["an empty folder"]
    assert found["m.json"] == ["{", ' "b": 1', "}"]
    assert found["picture.png"][0].startswith("3 bytes, SHA-1 ")
    assert "not read: DatabaseError" in found["broken.sqlite"][0]
    assert found["s.sqlite"] == ["CREATE TABLE files (path BLOB)", "b'/fixtures/b'"]


def test_differences_are_named():
    assert differences({"stdout": ["a"]}, {"stdout": ["a"]}) == []
    lines = differences({"stdout": ["a"], "gone.pb": ["x"]}, {"stdout": ["b"]})
    assert lines == [
        *("--- old stdout", "+++ new stdout", "@@ -1 +1 @@", "-a", "+b"),
        *("--- old gone.pb", "+++ new gone.pb", "@@ -1 +0,0 @@", "-x"),
    ]
    lines = differences({"x": list("abcdef")}, {"x": list("ghijkl")}, most=4)
    assert lines[-1] == "... and 11 more lines"
