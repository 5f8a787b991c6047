"""The package: its ranges against the pins, its constraints, and its wheel in an environment."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import retraining
from tests import ROOT, tiny

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    extra: [Requirement(line) for line in lines]
    for extra, lines in PROJECT["optional-dependencies"].items()
}


def lines_of(name):
    """The lines of a file of requirements, without comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line and not line.startswith("#")]


def pins(name):
    """{package: version} of a file of requirements, without those of other files."""
    found = [Requirement(line) for line in lines_of(name) if not line.startswith("-")]
    for each in found:
        assert [part.operator for part in each.specifier] == ["=="], each
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in found}


def ranges(requirements):
    """{package: its range}, without the extras that an extra takes in."""
    found = {canonicalize_name(each.name): each.specifier for each in requirements}
    return {name: specifier for name, specifier in found.items() if name != PROJECT["name"]}


# {file: its packages, and the ranges that the package gives them}
RANGES = {
    "requirements.txt": ranges(map(Requirement, PROJECT["dependencies"])),
    **{f"requirements-{extra}.txt": ranges(needs) for extra, needs in EXTRAS.items()},
}
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt"))


@pytest.mark.parametrize("file", RANGES)
def test_the_ranges_contain_the_pins_of_the_same_packages(file):
    pinned, allowed = pins(file), {k: v for each in RANGES.values() for k, v in each.items()}
    assert RANGES[file].keys() <= pinned.keys() <= allowed.keys()
    for name, version in pinned.items():
        assert allowed[name].contains(version), f"{name} {version} is not in {allowed[name]}"
        assert {part.operator for part in allowed[name]} == {">=", "<"}, name


def test_the_constraints_fix_the_pins_and_all_that_they_need():
    """If not: CONTRIBUTING.md has the command that writes constraints.txt."""
    fixed = pins("constraints.txt")
    named = {name: version for file in FILES for name, version in pins(file).items()}
    assert fixed == fixed | named
    needed, rest = set(named), list(named)
    while rest:
        new = {canonicalize_name(each.name) for each in installed_needs(rest.pop())} - needed
        needed |= new
        rest += new
    assert needed - fixed.keys() == set()
    assert needed - named.keys() >= {"markupsafe", "ml-dtypes", "certifi"}


def installed_needs(name):
    """What an installed package needs here; nothing where it is not installed."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [each for each in found if not each.marker or each.marker.evaluate({"extra": ""})]


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_requirements_is_constrained(file):
    lines = lines_of(file)
    assert "-c constraints.txt" in lines or "-r requirements" in " ".join(lines)


# -- a wheel, installed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of the commands of an environment that has the wheel and sees our packages."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("package")
    run("git", "clone", "-q", str(ROOT), str(folder / "clone"))
    pip = [sys.executable, "-m", "pip", "-q"]
    run(*pip, "wheel", "--no-deps", "-w", str(folder), str(folder / "clone"))
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=sys.platform != "win32")
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = sysconfig.get_path("purelib", vars=paths)
    (tmp := folder / "venv" / "ours.pth").write_text(sysconfig.get_path("purelib"))
    tmp.rename(f"{site}/ours.pth")
    scripts = sysconfig.get_path("scripts", vars=paths)
    run(*pip, f"--python={scripts}/python", "install", "--no-deps", str(wheel))
    return scripts


def run(*command, cwd=None):
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.newcomer
def test_the_wheel_has_commands_templates_types_and_manual_pages(installed, tmp_path):
    for command in ("retrain", "label-image", "label_image"):
        said = run(f"{installed}/{command}", "--version", cwd=tmp_path)
        assert said == f"image-retraining {retraining.__version__}\n"
    assert run(f"{installed}/label-image", "--help", cwd=tmp_path).startswith("usage: label-image ")
    list_files = (
        "import json, importlib.metadata as m; "
        "print(json.dumps([str(f) for f in m.files('image-retraining')]))"
    )
    listed = set(json.loads(run(f"{installed}/python", "-c", list_files, cwd=tmp_path)))
    templates = (ROOT / "retraining" / "report" / "templates").iterdir()
    shared = [
        path for path in (ROOT / "share").rglob("*") if path.parent.parent.parent == ROOT / "share"
    ]
    assert {f"retraining/report/templates/{path.name}" for path in templates} <= listed
    assert "retraining/py.typed" in listed
    assert len(shared) == 6
    for path in shared:
        assert any(name.endswith(path.relative_to(ROOT).as_posix()) for name in listed), path
    overview = run(f"{installed}/python", "-m", "retraining", cwd=tmp_path)
    assert re.findall(r"^  (retrain|label-image) +\w", overview, flags=re.M) == [
        *("retrain", "label-image"),
    ]


@pytest.mark.newcomer
def test_the_installed_commands_retrain_convert_and_label(installed, tmp_path):
    """The process that converts to other formats starts from the installed files, too."""
    tiny.write_photos(tmp_path / "photos", {"red": 20, "green": 20})
    flags = ["--architecture", "efficientnet_lite0", "--offline", "--tflite_file", "model.tflite"]
    said = run(f"{installed}/retrain", "--image_dir", "photos", *flags, cwd=tmp_path)
    assert "tflite\tmodel.tflite" in said
    said = run(f"{installed}/label-image", "photos/red/photo_00.jpg", cwd=tmp_path)
    assert said.startswith("red (score=")
    where = "import retraining; print(retraining.__file__)"
    assert "site-packages" in run(f"{installed}/python", "-c", where, cwd=tmp_path)
