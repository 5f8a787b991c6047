"""wording.py and settings.py: the library names settings, the command line its flags."""

import ast
import json
import pickle
import re
import shutil
from dataclasses import fields

import pytest
from PIL import Image

from retraining.cli import flags, label_flags, label_image
from retraining.cli.console import reports_errors
from retraining.cli.settings import FLAGS, flags_of, settings_of
from retraining.cli.wording import PARAMETERS, SETTING, in_flags
from retraining.errors import RetrainingError
from retraining.networks.recipes import Choice, ChoiceError
from tests import ROOT

LIBRARY = [
    path
    for path in sorted((ROOT / "retraining").rglob("*.py"))
    if path.parent != ROOT / "retraining" / "cli"
]
FILLED = "FILLED"  # stands for the values in an f-string
OTHER_PROGRAMS = (
    "ray start --head",  # a flag of the same name
    'python label_image.py {% if graph and graph != "models/retrained_graph.pb" %}--graph',
)


def known_flags():
    parsers = flags.build_parser(), label_flags.build_parser()
    return {name for each in parsers for name in each._option_string_actions if len(name) > 2}


def strings_of(path):
    """The text of each string in a module, docstrings and f-strings among them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            fixed = [part for part in node.values if isinstance(part, ast.Constant)]
            yield "".join(part.value if part in fixed else FILLED for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_nothing_below_the_command_line_names_a_flag():
    known, found = known_flags() - {"--help"}, []
    templates = sorted((ROOT / "retraining" / "report" / "templates").glob("*.html"))
    texts = [(path, text) for path in LIBRARY for text in strings_of(path)]
    for path, text in [*texts, *((path, path.read_text(encoding="utf-8")) for path in templates)]:
        for other in OTHER_PROGRAMS:
            text = text.replace(other, "")
        found += [(path.name, flag) for flag in re.findall(r"--\w+", text) if flag in known]
    assert found == []


def test_every_setting_that_the_library_names_has_a_flag():
    texts = [text for path in LIBRARY for text in strings_of(path)]
    named = {name for text in texts for name in SETTING.findall(text) if FILLED not in name}
    classes = {kind.__name__ for kind in FLAGS}
    settings = {name for name in named if name.split(".")[0] in classes and "." in name}
    assert len(settings) > 30
    assert {name for name in settings if not in_flags(f"`{name}`").startswith("--")} == set()
    assert named >= PARAMETERS.keys()


@pytest.mark.parametrize("kind", FLAGS)
def test_settings_are_filled_from_flags_that_exist(kind):
    assert FLAGS[kind].keys() <= {field.name for field in fields(kind)}
    assert {f"--{flag.split()[0]}" for flag in flags_of(kind).values()} <= known_flags()


def test_parameters_have_flags_that_exist():
    assert set(PARAMETERS.values()) <= known_flags()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name a layer with `Choice.layer`", "name a layer with --bottleneck_layer"),
        ("`Choice.mean` 0 `Choice.std` 255", "--input_mean 0 --input_std 255"),
        ("drop `Choice.height`, or (`Choice.width`).", "drop --input_height, or (--input_width)."),
        ("give `HeadSettings.search`; or", "give --head auto; or"),
        ("epochs: `TuningOptions.epochs`", "epochs: --fine_tune_epochs"),
        ("more than `max_pixels` 5 allows", "more than --max_image_pixels 5 allows"),
    ],
)
def test_settings_become_flags(text, expected):
    assert in_flags(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "no setting at all",
        "`layer` and `Choice.layers` and `TuningOptions.scratch` are no settings with a flag",
        "Choice.layer without backticks",
        "one `Choice.layer alone, and Choice.layer` another",
        "photos/`Choice.layer` cannot be read",
        "`Choice.layer`.jpg cannot be read",
        "the class x`Choice.layer`y, `Choice.layer`s and `Choice.layer `",
        "start one (`ray start --head`)",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert in_flags(text) == text


def test_an_error_of_another_process_still_names_its_setting():
    with pytest.raises(ChoiceError) as caught:
        Choice(mean=1).refuse("vgg16", "mean")
    copied = pickle.loads(pickle.dumps(caught.value))
    assert in_flags(str(copied)) == "--input_mean has no effect with vgg16; drop it"


def test_flags_that_settings_refuse_are_named(capsys):
    given = ["--image_dir", "x", "--testing_percentage", "60", "--validation_percentage", "40"]
    with pytest.raises(SystemExit):
        flags.parse_flags(given, "")
    assert (
        "--testing_percentage and --validation_percentage leave no training images"
        in capsys.readouterr().err
    )


def test_settings_are_made_once(monkeypatch):
    made = []

    def keep(options):
        made.append(settings_of(options))
        return made[-1]

    monkeypatch.setattr(flags, "settings_of", keep)
    _, settings = flags.parse_flags(["--image_dir", "x"], "")
    assert made == [settings]


def test_an_error_is_printed_in_flags(capsys):
    def main(argv=None):
        raise RetrainingError("`Choice.layer` is wrong")

    assert reports_errors(main)() == 1
    assert capsys.readouterr().err.endswith(": --bottleneck_layer is wrong\n")


def test_the_files_of_a_run_name_flags(run_retrain, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    red = next((folder / "red").iterdir())
    (folder / "red" / "inner").mkdir()
    Image.new("RGB", (600, 600)).save(red.with_name("large.png"))
    shutil.copy(red, folder / "red" / "inner")
    assert run_retrain(tmp_path, folder, "--max_image_pixels", "300000") == 0
    reason = "has 600 x 600 pixels, more than --max_image_pixels 300000 allows"
    assert (tmp_path / "models" / "bad_images.tsv").read_text().splitlines()[1].endswith(reason)
    record = json.loads((tmp_path / "models" / "retrained_metrics.json").read_text())
    assert [bad["reason"] for bad in record["bad_images"]] == [reason]
    assert "--recursive also takes the photos in them" in " ".join(record["warnings"])
    assert "`" not in json.dumps(record)


def test_label_image_names_flags_in_rows_and_on_stderr(finished, capsys):
    photo = f"{finished.photos}/red/photo_00.jpg"
    given = ["--graph", finished.graph, "--format", "jsonl", "--max_image_pixels", "5", photo]
    assert label_image.main(given) == 1
    said = capsys.readouterr()
    assert "more than --max_image_pixels 5 allows" in json.loads(said.out)["error"]
    assert "more than --max_image_pixels 5 allows" in said.err
