"""The README against the scripts."""

import re
from pathlib import Path

import pytest

import label_image
import retrain

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def sections():
    """{heading: text}."""
    parts = re.split(r"^##+ (.+)$", README, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def flags_of(parser):
    return {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize(
    ("heading", "parser"),
    [
        ("All flags of retrain.py", retrain.build_parser()),
        ("All flags of label_image.py", label_image.build_parser()),
    ],
)
def test_the_tables_list_exactly_the_flags_of_help(heading, parser):
    table = "\n".join(line for line in sections()[heading].splitlines() if line.startswith("|"))
    assert set(re.findall(r"--\w+", table)) == flags_of(parser)


def test_every_flag_the_readme_names_exists():
    known = flags_of(retrain.build_parser()) | flags_of(label_image.build_parser())
    others = {"--help", "--logdir"}
    assert set(re.findall(r"(?<![\w-])--\w+", README)) - known == others


@pytest.mark.parametrize("build", [retrain.build_parser, label_image.build_parser])
def test_every_flag_has_help(build):
    for action in build()._actions:
        assert action.help


def test_ci_runs_the_readmes_test_command():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, flags=re.M)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_code_example_runs(finished, monkeypatch, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "retrained_graph.pb").write_bytes(Path(finished.graph).read_bytes())
    photo = Path(finished.photos) / "red" / "photo_00.jpg"
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {})
    answer = [float(word) for word in re.findall(r"[\d.e-]+", capsys.readouterr().out)]
    assert len(answer) == 3
    assert answer[2] > 0.9  # red
