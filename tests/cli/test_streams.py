"""What both commands print where stdout has another encoding than UTF-8, as Windows gives it."""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

import label_image
from retraining.system.text import escaped, unescaped
from tests import ROOT

# A command that prints a row of each format for every name in a file, and says the name.
COMMAND = """
import json, sys
from retraining.cli import rows
from retraining.cli.console import leave, reports_errors, say

def main(argv=None):
    kind, path = sys.argv[1:]
    write = rows.make_writer(kind)
    with open(path, encoding="ascii") as file:
        names = json.load(file)
    for name in names:
        say(name)
        write(name, None, [(name, 0.5)])
    return 0

leave(reports_errors(main)())
"""
NAMES = [
    *("plain", "straße", "Łódź 😀", "猫", "क्\u200dष", "नमस्\u200cते", "a\u00a0b", "e\u0301"),
    *("مرحبا", "שלום\u200f!", "👨\u200d👩\u200d👧", "\ufeffa", "\u2028", "a\x85b", "\x1b[1m"),
    *(
        "a\tb",
        "a\\tb",
        "a\nb",
        "a\r\nb\\",
        '"quoted", too',
        "b\udcff",
        "\udcc3",
        "\ud800",
        "\\ud800",
    ),
]
ENCODINGS = {
    "as it is": {},
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "1"},
    "UTF-8 mode, cp1252": {"PYTHONUTF8": "1", "PYTHONIOENCODING": "cp1252"},
    **{
        name: {"PYTHONIOENCODING": name}
        for name in (
            *("ascii", "latin-1", "cp1252", "cp1252:strict", "cp437", "cp932", "gbk", "cp037"),
            *("utf-8:strict", "utf-8:replace", "utf-8-sig", "utf-16", "utf-32-le"),
        )
    },
    "as old Windows": {"PYTHONIOENCODING": "cp850", "PYTHONLEGACYWINDOWSSTDIO": "1"},
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Runs COMMAND in one of ENCODINGS; returns the bytes of stdout and of stderr."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "command.py").write_text(COMMAND)
    (folder / "names.json").write_text(json.dumps(NAMES))

    @functools.cache
    def run(kind, encoding):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [sys.executable, "command.py", kind, "names.json"],
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **ENCODINGS[encoding]},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        return done.stdout, done.stderr

    return run


def rows_of(kind, content):
    """The (path, label) of each row."""
    if kind == "jsonl":
        rows = [json.loads(line) for line in content.decode("utf-8").split("\n")[:-1]]
        return [(row["path"], row["label"]) for row in rows]
    text = content.decode("utf-8", "surrogateescape")
    if kind == "csv":
        return [
            (row["path"], row["label"]) for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
    fields = [line.split("\t") for line in text.split("\n")[:-1]]
    assert {len(row) for row in fields} == {3}
    return [(unescaped(path), unescaped(label)) for path, label, _ in fields]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_what_programs_read_is_utf_8(printed, encoding, kind):
    out, _ = printed(kind, encoding)
    wanted = [(name, name) for name in NAMES]
    if kind == "csv":  # which has no escapes
        wanted = [(n.replace("\ud800", "\\ud800"),) * 2 for n, _ in wanted]
    assert rows_of(kind, out) == wanted
    assert out == printed(kind, "as it is")[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_people_read_is_in_their_encoding(printed, encoding):
    out, err = printed("text with names", encoding)
    named = ENCODINGS[encoding].get("PYTHONIOENCODING", "utf-8").split(":")[0]
    named = "ascii" if encoding == "ASCII" else named
    said = err.decode(named)  # each character is one of the encoding
    assert "command.py: straße\n" in said or "command.py: stra\\xdfe\n" in said
    shown = out.decode(named, "surrogateescape")
    lines = shown.removeprefix("\ufeff").split("\n")
    assert lines[:2] == ["plain", "plain (score=0.50000)"]
    for name in ("straße", "Łódź 😀", "猫"):
        in_it = name.encode(named, "backslashreplace").decode(named).removeprefix("\ufeff")
        assert f"{in_it} (score=0.50000)" in lines
    assert "b\\udcff" in said


def test_a_long_line_of_each_kind_of_character_is_escaped_one_by_one(printed):
    out, _ = printed("text", "cp1252")
    assert b"\\u0141\xf3d\\u017a \\U0001f600 (score=0.50000)\n" in out
    assert b"b\xff (score=0.50000)\n" in out


# -- the commands themselves -----------------------------------------------------------------


class Redirected:
    """A stdout of another encoding, and what was written to it."""

    def __init__(self, encoding):
        self.bytes = io.BytesIO()
        self.stream = io.TextIOWrapper(self.bytes, encoding=encoding, write_through=True)

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(contextlib.redirect_stdout(self.stream))
        return self

    def __exit__(self, *_):
        self._stack.close()


def test_the_results_of_a_run_are_utf_8(run_retrain, photos, tmp_path):
    work = tmp_path / "Łódź\t😀"
    shutil.copytree(photos, work / "photos")
    os.rename(work / "photos" / "red", work / "photos" / "क्\u200dष \\t")
    with Redirected("cp1252") as out:
        code = run_retrain(work, work / "photos", "--print_misclassified_test_images", steps=1)
    assert code == 0
    lines = [line.split("\t") for line in out.bytes.getvalue().decode("utf-8").split("\n")[:-1]]
    found = dict(line[:2] for line in lines)
    assert found["graph"] == escaped(f"{work}/models/retrained_graph.pb")
    wrong = [line for line in lines if line[0] == "misclassified"]
    assert wrong
    labels = {unescaped(label) for line in wrong for label in line[2:4]}
    assert labels <= {"blue", "green", "क्\u200dष \\t"}
    assert all(os.path.isfile(unescaped(line[1])) for line in wrong)


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "text"])
def test_an_evaluation_is_utf_8_unless_it_is_for_people(finished, tmp_path, kind):
    labels = tmp_path / "labels.txt"
    labels.write_text("Łódź\ngreen\nक्\u200dष\n", encoding="utf-16")
    for name, colour in {"Łódź": "blue", "क्\u200dष": "red"}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(f"{finished.photos}/{colour}/photo_00.jpg", tmp_path / "photos" / name)
    flags = ["--graph", finished.graph, "--labels", str(labels), "--format", kind]
    with Redirected("cp1252") as out:
        assert label_image.main([*flags, "--evaluate", str(tmp_path / "photos")]) == 0
    content = out.bytes.getvalue()
    if kind == "text":
        assert "\\u0141ódź"[:7].encode("cp1252") in content
        return
    text = content.decode("utf-8")
    if kind == "jsonl":
        assert [row["label"] for row in json.loads(text)["classes"]] == ["Łódź", "क्\u200dष"]
        assert "क्\u200dष" in text  # not escaped
    else:
        assert "class\tŁódź\t1\t1.0000\t1.0000\t1.0000\n" in text
        assert "class\tक्\u200dष\t1\t1.0000\t1.0000\t1.0000\n" in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are bytes")
@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_escapes_and_messages_are_the_same_where_the_locale_is_ascii(finished, tmp_path, kind):
    for name in ("nel\x85.jpg", "line\u2028.jpg"):
        shutil.copy(f"{finished.photos}/red/photo_00.jpg", tmp_path / name)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "label_image.py", "--graph", finished.graph, "--format", kind]
    locales = [
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ]
    utf8, ascii_only = (
        subprocess.run(
            [*command, str(tmp_path), f"{tmp_path}/nope\u00e9.jpg"],
            cwd=ROOT,
            capture_output=True,
            env={**inherited, **locale},
        )
        for locale in locales
    )
    assert (utf8.returncode, ascii_only.returncode) == (1, 1)
    assert ascii_only.stdout == utf8.stdout
    assert rb"/nel\u0085.jpg" in utf8.stdout
    assert rb"/line\u2028.jpg" in utf8.stdout
    assert "/nope\u00e9.jpg".encode() in utf8.stderr
    assert rb"/nope\xe9.jpg" in ascii_only.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are bytes")
@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_names_are_the_same_where_the_locale_is_ascii(finished, tmp_path, kind):
    names = ["straße.jpg", "猫.jpg"]
    for name in names:
        shutil.copy(f"{finished.photos}/red/photo_00.jpg", tmp_path / name)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "label_image.py", "--graph", finished.graph, "--format", kind]
    done = subprocess.run(
        [*command, "--top_k", "1", str(tmp_path), "-"],
        cwd=ROOT,
        input=f"{tmp_path}/猫.jpg\n".encode("utf-16"),
        capture_output=True,
        env={**inherited, "LC_ALL": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    wanted = [(f"{tmp_path}/{name}", "red") for name in [*names, "猫.jpg"]]
    assert rows_of(kind, done.stdout) == wanted
    assert "straße" in done.stdout.decode("utf-8")
