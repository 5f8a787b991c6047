"""--classes and --label_from of both commands, from the flags to the labels file."""

import json
import shutil
from pathlib import Path

import pytest

import label_image
from retraining.cli.flags import parse_flags


@pytest.mark.parametrize("by_file", [False, True])
def test_picked_classes_give_the_labels_and_their_order(
    tmp_path, run_retrain, photos, capsys, by_file
):
    chosen = "red, blue"
    if by_file:
        chosen = tmp_path / "classes.txt"
        chosen.write_text("red\nblue\n\n")
    assert run_retrain(tmp_path, photos, "--classes", chosen) == 0
    printed = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
    assert Path(printed["labels"]).read_text() == "red\nblue\n"
    record = json.loads(Path(printed["metrics"]).read_text())
    assert record["labels"] == ["red", "blue"]
    assert [row["label"] for row in record["photos"]] == ["red", "blue"]
    assert record["options"]["classes"] == ["red", "blue"]
    assert float(printed["test_accuracy"]) > 0.9
    assert label_image.main(["--graph", printed["graph"], "--evaluate", str(photos)]) == 0
    scored = capsys.readouterr()
    assert "the graph has no class green; its photos (30) are not scored" in scored.err
    assert "photos\t60\n" in scored.out
    assert float(dict(line.split("\t")[:2] for line in scored.out.splitlines())["accuracy"]) > 0.9


def test_labels_in_names_train_as_class_folders_do(tmp_path, run_retrain, photos, capsys):
    (tmp_path / "flat").mkdir()
    for path in Path(photos).rglob("*.jpg"):
        shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}_{path.stem[-2:]}.jpg")
    records = []
    for folder, flags in ((photos, ()), (tmp_path / "flat", ("--label_from", "name"))):
        assert run_retrain(tmp_path / f"run_{len(records)}", folder, *flags) == 0
        printed = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
        records.append(json.loads(Path(printed["metrics"]).read_text()))
    for part in ("labels", "photos", "test"):
        assert records[0][part] == records[1][part]
    evaluate = ["--graph", printed["graph"], "--evaluate", str(tmp_path / "flat")]
    assert label_image.main([*evaluate, "--label_from", "name"]) == 0
    assert "photos\t90\n" in capsys.readouterr().out
    assert label_image.main(evaluate) == 1
    assert "(blue, green, red): give --label_from name" in capsys.readouterr().err


def test_the_flag_takes_labels_or_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("b, c\n a\n\n", encoding="utf-8")
    for given, classes in (
        ("b,a ,c", ("b", "a", "c")),
        (str(tmp_path / "classes.txt"), ("b, c", " a")),
    ):
        _, settings = parse_flags(["--image_dir", "x", "--classes", given], "")
        assert settings.photos.classes == classes
    assert parse_flags(["--image_dir", "x"], "")[1].photos.classes == ()


def test_an_empty_file_names_no_class(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_flags(["--image_dir", "x", "--classes", str(tmp_path / "classes.txt")], "")
    assert "classes.txt names no class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--classes", "a,b,a"], "--classes names a twice"),
        (["--classes", "a,"], "--classes must name at least two classes, but names only a"),
        (["--classes", ","], "--classes: , names no class"),
        (["--classes", "no.txt"], "no.txt is neither a file nor a list of classes with commas"),
        (["--classes", __file__ + "/.."], "is neither a file nor a list"),
        (["--label_from", "luck"], "invalid choice: 'luck'"),
    ],
)
def test_wrong_flags_are_one_line(flags, reason, capsys):
    with pytest.raises(SystemExit) as end:
        parse_flags(["--image_dir", "x", *flags], "")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["x.jpg", "--label_from", "name"], "--label_from needs --evaluate"),
        (["--evaluate", __file__, "--label_from", "name"], "--label_from is for folders"),
    ],
)
def test_wrong_flags_of_labelling(flags, reason, capsys):
    assert label_image.main(flags) == 2
    assert reason in capsys.readouterr().err
