"""The README against the scripts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retraining.cli import flags
from retraining.cli import label_flags as cli
from tests import ROOT, tiny

README = (ROOT / "README.md").read_text(encoding="utf-8")


def sections():
    """{heading: text}."""
    parts = re.split(r"^##+ (.+)$", README, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries_of(parser):
    """The entries of --help, from the names of a flag to the end of its text."""
    return re.split(r"^  (?=-)", parser.format_help(), flags=re.M)[1:]


def flags_of(parser):
    names = [re.split(r"  |\n", entry)[0] for entry in entries_of(parser)]
    return set(re.findall(r"--\w+", " ".join(names))) - {"--help"}


@pytest.mark.parametrize(
    ("heading", "parser"),
    [
        ("All flags of retrain.py", flags.build_parser()),
        ("All flags of label_image.py", cli.build_parser()),
    ],
)
def test_the_tables_list_exactly_the_flags_of_help(heading, parser):
    table = "\n".join(line for line in sections()[heading].splitlines() if line.startswith("|"))
    assert set(re.findall(r"--\w+", table)) == flags_of(parser)


def test_every_flag_the_readme_names_exists():
    known = flags_of(flags.build_parser()) | flags_of(cli.build_parser())
    others = {"--left_out", "--logdir", "--generate", "--head", "--address"}  # of other programs
    assert set(re.findall(r"(?<![\w-])--\w+", README)) - known == {"--help"} | others - known


@pytest.mark.parametrize("build", [flags.build_parser, cli.build_parser])
def test_every_flag_has_help(build):
    for entry in entries_of(build()):
        assert re.match(r"\S.*?(  |\n) *\S", entry)


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, flags=re.M)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_code_example_runs(finished, monkeypatch, tmp_path, capsys):
    text = sections()["The exported graph elsewhere"]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "retrained_graph.pb").write_bytes(Path(finished.graph).read_bytes())
    photo = Path(finished.photos) / "red" / "photo_00.jpg"
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {})
    answer = [float(word) for word in re.findall(r"[\d.e-]+", capsys.readouterr().out)]
    assert len(answer) == 3
    assert answer[2] > 0.9  # red


@pytest.fixture(scope="module")
def workplace(finished, tmp_path_factory):
    """A folder where the shell examples can run: `python`, the script, a graph, a few photos."""
    folder = tmp_path_factory.mktemp("workplace")
    os.symlink(ROOT / "label_image.py", folder / "label_image.py")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    (folder / "models").mkdir()
    shutil.copy(finished.graph, folder / "models")
    tiny.write_photos(folder / "holiday", {"red": 2, "blue": 3}, seed=1)
    shutil.copytree(folder / "holiday", folder / "new_photos")
    shutil.copy(folder / "holiday" / "red" / "photo_00.jpg", folder / "photo.jpg")
    return folder


def run_example(workplace, heading):
    """What the shell example below a heading prints to stdout, run as it is written."""
    (code,) = re.findall(r"```sh\n(.*?)```", sections()[heading], flags=re.S)
    path = f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", code],
        capture_output=True,
        text=True,
        cwd=workplace,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the examples are for a POSIX shell")
def test_the_shell_examples_run_as_they_are_written(workplace):
    def read(name):
        return (workplace / name).read_text(encoding="utf-8")

    assert run_example(workplace, "Labelling").startswith("red (score=0.9")
    rows = [line.split(",") for line in read("holiday.csv").splitlines()]
    assert rows[0] == ["path", "rank", "label", "score"]
    assert [tuple(row[:3]) for row in rows if row[1] == "1"] == [
        *((f"holiday/blue/photo_{n:02d}.jpg", "1", "blue") for n in range(3)),
        *((f"holiday/red/photo_{n:02d}.jpg", "1", "red") for n in range(2)),
    ]
    counted = run_example(workplace, "In a pipeline").split()
    assert counted == ["6", "blue", "5", "red"]
    assert "./photo.jpg" in read("sure.txt").splitlines()
    objects = [json.loads(line) for line in read("labels.jsonl").splitlines()]
    assert len(objects) == 5 * 3
    assert run_example(workplace, "Sorting photos into folders") == ""
    assert [line.split("\t")[1] for line in read("labels.tsv").splitlines()] == [
        *("blue", "blue", "blue", "red", "red"),
    ]
    assert sorted(p.name for p in (workplace / "sorted" / "blue").iterdir()) == [
        *(f"photo_{n:02d}.jpg" for n in range(3)),
    ]
    assert run_example(workplace, "Evaluating") == ""
    assert read("evaluation.tsv").startswith(
        "accuracy\t1.0000\ninterval\t0.5655\t1.0000\nphotos\t5\n"
    )
