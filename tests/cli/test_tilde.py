"""parser.py: a path that begins with ~ is one in a home folder, however the flag is written."""

import os

import pytest

from retraining.cli import flags, label_flags

posix = pytest.mark.skipif(os.name != "posix", reason="homes are elsewhere")
PARSERS = {"retrain.py": flags.build_parser(), "label_image.py": label_flags.build_parser()}
# All flags that take a path.
PATHS = {
    "retrain.py": {
        *("--image_dir", "--photo_table", "--exclude", "--weights", "--model_dir", "--model_file"),
        *("--bottleneck_dir", "--import_classic_bottlenecks", "--import_vectors"),
        *("--output_graph", "--output_labels", "--label_audit", "--report", "--model_card"),
        "--metrics",
        *("--export_vectors", "--summaries_dir", "--intermediate_output_graphs_dir"),
        *("--saved_model_dir", "--tflite_file", "--onnx_file", "--pixels_graph", "--bundle"),
    },
    "label_image.py": {
        *("--image", "--evaluate", "--graph", "--weights", "--model_dir", "--labels"),
        "--sort_into",
    },
}
NO_PATHS = {
    *("--bottleneck_layer", "--final_tensor_name", "--freeze_until", "--input_layer"),
    "--output_layer",
}
EVERY = [(name, flag) for name, of_one in PATHS.items() for flag in sorted(of_one)]


def value_of(name, *words):
    """The value of the one flag that `words` give."""
    parser = PARSERS[name]
    dest = next(a.dest for a in parser._actions if words[0].split("=")[0] in a.option_strings)
    return getattr(parser.parse_args(list(words)), dest)


def test_no_flag_with_a_path_is_missing_here():
    """A new flag that takes any text is to be put into PATHS or NO_PATHS."""
    for name, parser in PARSERS.items():
        texts = {
            action.option_strings[0]
            for action in parser._actions
            if action.option_strings and action.nargs is None and not action.choices
            and (action.type is None or action.type.__name__ == "_layer")
        }  # fmt: skip
        assert texts - NO_PATHS == PATHS[name]


@posix
@pytest.mark.parametrize(("name", "flag"), EVERY)
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("~/x", "/of/me/x"),
        ("~", "/of/me"),
        ("~root/x", f"{os.path.expanduser('~root')}/x"),
        ("~nobody has this name/x", "~nobody has this name/x"),  # as a shell leaves it
        ("./~", "./~"),
        ("./~/x", "./~/x"),
        ("a/~/x", "a/~/x"),
        ("/~", "/~"),
        (" ~/x", " ~/x"),
        ("x~", "x~"),
        ("$HOME/x", "$HOME/x"),
        ("~/x,~/y z,./~,w", "/of/me/x,~/y z,./~,w"),
        ("x,~", "x,~"),
        ("d=~/x", "d=~/x"),
        ("s3://bucket/x?y=~/z,~", "s3://bucket/x?y=~/z,~"),
    ],
)
def test_the_home_folder_stands_for_a_tilde(monkeypatch, name, flag, text, wanted):
    monkeypatch.setenv("HOME", "/of/me")
    assert value_of(name, f"{flag}={text}") == wanted
    assert value_of(name, flag, text) == wanted


@posix
def test_images_without_a_flag_are_as_the_shell_gives_them(monkeypatch):
    monkeypatch.setenv("HOME", "/of/me")
    assert PARSERS["label_image.py"].parse_args(["~/x", "~"]).images == ["~/x", "~"]


@posix
def test_a_run_keeps_to_the_home_folder(run_retrain, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folders = ["--bottleneck_dir=~/vectors", "--summaries_dir=~/logs"]
    outputs = ["--output_graph=~/m/g.pb", "--output_labels=./~"]
    assert run_retrain(tmp_path, photos, *folders, *outputs, steps=5) == 0
    assert sorted(os.listdir(tmp_path / "home")) == ["logs", "m", "vectors"]
    assert os.listdir(tmp_path / "here") == ["~"]
    assert f"graph\t{tmp_path}/home/m/g.pb\nlabels\t./~\n" in capsys.readouterr().out
