"""The files that say how the project is kept, against what they speak of."""

import re
import tomllib

import pytest
import yaml

import retraining
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def released():
    """[(version, date)] of the changelog, newest first."""
    return re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), flags=re.M)


def test_the_changelog_begins_with_what_is_not_released_and_has_this_version():
    headings = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), flags=re.M)
    assert headings[0] == "Unreleased"
    assert headings[1:] == [version for version, _ in released()]
    assert released()[0][0] == retraining.__version__


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], str(citation["date-released"])) == released()[0]
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])


def workflow():
    return yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]


def test_the_workflow_covers_the_systems_and_pythons_of_the_package():
    matrix = workflow()["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: "
    named = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if prefix in line]
    assert matrix["python"] == [version for version in named if re.fullmatch(r"3\.\d+", version)]
    systems = ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["os"] == systems
    assert sum(line.startswith("Operating System ::") for line in PROJECT["classifiers"]) == 3


def test_the_workflow_runs_the_checks_of_the_project():
    steps = [step for job in workflow().values() for step in job["steps"]]
    run = "\n".join(step.get("run", "") for step in steps)
    wanted = re.findall(r"\.venv/bin/(.+?)(?= &&|\n)", read(".ci/run") + "\n")
    wanted = [command for command in wanted if not command.startswith("pip ")]
    assert {"ruff check .", "mypy", "python -m pytest -m newcomer"} <= set(wanted)
    assert [command for command in wanted if command not in run] == []


def test_the_hooks_run_tools_that_the_requirements_bring():
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    tools = [hook["entry"].split()[0] for hook in local["hooks"]]
    assert tools == ["ruff", "ruff", "mypy", "lint-imports"]
    pinned = read("requirements-dev.txt")
    names = {"lint-imports": "import-linter"}
    assert all(f"{names.get(tool, tool)}==" in pinned for tool in tools)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_pages_name_files_that_exist(page):
    text = read(page)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"(?<![\w/])(?:tests|retraining|docs|share|\.github)/[\w./-]*\w/?", text)
    assert len(links + paths) > 1
    assert [path for path in links + paths if not (ROOT / path).exists()] == []


def test_contributing_has_the_command_that_wrote_the_constraints():
    (command,) = re.findall(r"uvx (uv pip compile .*)", read("CONTRIBUTING.md"))
    files = sorted(path.name for path in ROOT.glob("requirements-*.txt"))
    written = command.replace("requirements-*.txt", " ".join(files))
    assert read("constraints.txt").splitlines()[1] == f"#    {written}"


def test_editors_are_told_the_line_length_of_the_linter():
    length = tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["line-length"]
    (python,) = re.findall(r"^\[\*\.\{py,.*\n(?:.+\n)*", read(".editorconfig"), flags=re.M)
    assert f"max_line_length = {length}\n" in python
