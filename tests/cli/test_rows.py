"""rows.py: what is printed, to the byte."""

import csv
import io
import json
import sys

import pytest

from retraining.cli.rows import make_writer
from retraining.photos.reader import ImageError

RANKING = [("red, dark", 0.70049), ('"b"\nlue', 0.2)]
BROKEN = ImageError("is broken")
ODD = 'a\tb"\n\\.jpg'


def written(capfdbinary, kind, *columns, header=None):
    """The bytes that a good image of an odd name, and a broken one, give."""
    write = make_writer(kind, columns, header)
    write(ODD, None, RANKING)
    write("bad.jpg", BROKEN, [])
    print(end="", flush=True)
    return capfdbinary.readouterr().out


@pytest.mark.parametrize(
    ("kind", "columns", "header", "expected"),
    [
        ("text", (), None, b'red, dark (score=0.70049)\n"b"\\nlue (score=0.20000)\n'),
        (
            "tsv",
            (),
            None,
            b'a\\tb"\\n\\\\.jpg\tred, dark\t0.70049\na\\tb"\\n\\\\.jpg\t"b"\\nlue\t0.20000\n',
        ),
        (
            "tsv",
            ("error", "rank", "score"),
            True,
            b"error\trank\tscore\n\t1\t0.70049\n\t2\t0.20000\nis broken\t\t\n",
        ),
        (
            "csv",
            (),
            None,
            b'path,rank,label,score\r\n"a\tb""\n\\.jpg",1,"red, dark",0.70049\r\n'
            b'"a\tb""\n\\.jpg",2,"""b""\nlue",0.20000\r\n',
        ),
        ("csv", ("rank", "error"), False, b"1,\r\n2,\r\n,is broken\r\n"),
        (
            "jsonl",
            (),
            None,
            b'{"path": "a\\tb\\"\\n\\\\.jpg", "rank": 1, "label": "red, dark", "score": 0.70049}\n'
            b'{"path": "a\\tb\\"\\n\\\\.jpg", "rank": 2, "label": "\\"b\\"\\nlue", "score": 0.2}\n'
            b'{"path": "bad.jpg", "error": "is broken"}\n',
        ),
        (
            "jsonl",
            ("score", "rank"),
            None,
            b'{"score": 0.70049, "rank": 1}\n{"score": 0.2, "rank": 2}\n',
        ),
    ],
)
def test_the_bytes_of_each_format(capfdbinary, kind, columns, header, expected):
    assert written(capfdbinary, kind, *columns, header=header) == expected


HOSTILE = "=\x1b]0;x\a\u202ea.jpg"


@pytest.mark.parametrize("kind", ["text with names", "tsv", "csv", "jsonl"])
def test_no_name_reaches_a_terminal_as_it_is(capsys, monkeypatch, kind):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    make_writer(kind)(HOSTILE, None, [("\x9bred\b", 0.5)])
    printed = capsys.readouterr().out
    assert not {"\x1b", "\a", "\u202e", "\x9b", "\b"}.intersection(printed)
    assert "\\u001b]0;x" in printed
    assert "\\u009bred\\" in printed


def test_csv_for_programs_is_exact_and_for_spreadsheets_guarded(capfdbinary):
    for kind in ("csv", "csv, safe"):
        make_writer(kind, ("path", "label", "score"))("=1+1", None, [("-x", 0.5), ("red", 0.25)])
        print(end="", flush=True)
    assert capfdbinary.readouterr().out == (
        b"path,label,score\r\n=1+1,-x,0.50000\r\n=1+1,red,0.25000\r\n"
        b"path,label,score\r\n'=1+1,'-x,0.50000\r\n'=1+1,red,0.25000\r\n"
    )


def test_csv_and_json_give_names_back(capfdbinary):
    text = written(capfdbinary, "csv").decode()
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["path"], row["label"]) for row in found] == [(ODD, r[0]) for r in RANKING]
    lines = written(capfdbinary, "jsonl").decode().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [ODD, ODD, "bad.jpg"]


def test_undecodable_bytes_are_escaped_in_json(capfdbinary):
    make_writer("jsonl", ("path",))("a\udcff.jpg", None, RANKING[:1])
    print(end="", flush=True)
    assert capfdbinary.readouterr().out == b'{"path": "a\\udcff.jpg"}\n'
