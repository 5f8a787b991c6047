"""Both commands with photos that come with splits: split folders, and tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import label_image
from retraining.cli.flags import parse_flags
from retraining.graphs.description import read_metadata
from retraining.graphs.read import read_graph
from retraining.photos.key_set import KeySet
from retraining.photos.registry import hash_file
from tests import tiny


@pytest.fixture
def split(tmp_path):
    """Two classes in train, Val and test, of 20, 4 and 5 photos."""
    for seed, (name, count) in enumerate({"train": 20, "Val": 4, "test": 5}.items()):
        tiny.write_photos(tmp_path / "data" / name, {"red": count, "blue": count}, seed)
    (tmp_path / "data" / "data.yaml").write_text("nc: 2")
    return tmp_path / "data"


def record(printed):
    metrics = dict(line.split("\t", 1) for line in printed.splitlines())["metrics"]
    return json.loads(Path(metrics).read_text())


def test_folders_and_the_same_table_give_the_same_run(tmp_path, run_retrain, split, capsys):
    assert run_retrain(tmp_path / "folders", split) == 0
    printed = capsys.readouterr()
    assert (
        "using the given splits: 40 for training, 8 for validation, 10 for testing\n" in printed.err
    )
    first = record(printed.out)
    assert first["test"]["photos"] == 10
    rows = [
        {"path": str(path.relative_to(split)), "label": path.parent.name, "split": path.parts[-3]}
        for path in split.rglob("*.jpg")
    ]
    table = tmp_path / "photos.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    assert run_retrain(tmp_path / "table", split, "--photo_table", table) == 0
    second = record(capsys.readouterr().out)
    assert [first[part] for part in ("photos", "test")] == [
        second[part] for part in ("photos", "test")
    ]


def test_split_folders_and_tables_are_scored_whole(tmp_path, finished, split, capsys):
    rows = ["path\tlabel", *(f"{p}\t{p.parent.name}" for p in split.rglob("*.jpg"))]
    (tmp_path / "t.tsv").write_text("\n".join([*rows, "gone.jpg\tred", "x.jpg\tpink"]))
    outputs = []
    for place, code in ((split, 0), (tmp_path / "t.tsv", 1)):
        assert label_image.main(["--graph", finished.graph, "--evaluate", str(place)]) == code
        outputs.append(capsys.readouterr())
    assert outputs[0].out == outputs[1].out
    assert "photos\t58\n" in outputs[0].out
    line = (
        "data holds photos in splits (40 for training, 8 for validation, 10 for testing); the score"
    )
    assert line in outputs[0].err
    assert "splits" not in outputs[1].err
    assert f"not scored: {tmp_path}/gone.jpg cannot be read" in outputs[1].err
    assert "has no class pink; its photos (1) are not scored" in outputs[1].err


def write_varied(folder, count, rng):
    """Photos of coloured squares, no two alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        colours.resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number}.jpg")


def test_near_duplicates_of_test_photos_are_not_trained_on(tmp_path, run_retrain, capsys):
    rng = np.random.default_rng(0)
    for split, count in {"train": 20, "val": 4, "test": 5}.items():
        for label in ("red", "blue"):
            write_varied(tmp_path / "data" / split / label, count, rng)
    twin, tested = (tmp_path / "data" / name for name in ("train/red/twin.jpg", "test/blue/3.jpg"))
    twin.write_bytes(tested.read_bytes() + b"other bytes, the same picture")
    flags = ("--validation_percentage", 0, "--early_stopping", 3, "--precision", "float32")
    assert run_retrain(tmp_path, tmp_path / "data", *flags) == 0
    printed = capsys.readouterr()
    warning = (
        "1 training photo nearly duplicates held-out photos; the run leaves out "
        "red/twin.jpg (of blue/3.jpg)"
    )
    assert f"warning: {warning}\n" in printed.err
    found = record(printed.out)
    assert sum(row["training"] for row in found["photos"]) == 40
    assert warning in found["warnings"]
    graph = read_graph(tmp_path / "models" / "retrained_graph.pb")
    trained = KeySet(read_metadata(graph)["trained_photos"])
    assert len(trained) == 48
    assert hash_file(str(twin)) not in trained


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "give --image_dir or --photo_table"),
        (["--photo_table", "t.csv", "--recursive"], "--recursive is for folders"),
        (["--photo_table", "s3://b/t.csv"], "is a URL; only --image_dir may be one"),
        (["--photo_table", "t.csv", "--image_dir", "s3://b"], "--image_dir is a URL"),
        (["--photo_table", "g.pb", "--output_graph", "g.pb"], "replace the file of --photo_table"),
        (["--image_dir", "x", "--split_by", "luck"], "invalid choice: 'luck'"),
    ],
)
def test_flags_of_tables_that_make_no_sense_are_refused(flags, reason, capsys):
    with pytest.raises(SystemExit) as end:
        parse_flags(flags, None)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_table_allows_outputs_in_the_folder_of_photos():
    flags = ["--photo_table", "t.csv", "--image_dir", "x", "--output_graph", "x/models/g.pb"]
    options, settings = parse_flags(flags, None)
    assert (settings.photos.photo_table, settings.photos.split.by) == ("t.csv", "auto")
    assert (options.photo_table, options.split_by) == ("t.csv", "auto")


def test_a_wrong_row_is_one_line(tmp_path, run_retrain, capsys):
    (tmp_path / "t.csv").write_text("path,label\na.jpg\n")
    assert run_retrain(tmp_path, "", "--photo_table", tmp_path / "t.csv") == 1
    assert capsys.readouterr().err.endswith(
        f": line 2 of {tmp_path}/t.csv has 1 field, the header has 2\n"
    )
