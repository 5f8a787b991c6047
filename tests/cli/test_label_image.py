"""label_image.py from end to end: our graphs, others' graphs, formats, pipes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import label_image
from retraining.cli import labelling as cli
from retraining.evaluation.temperature import apply_temperature
from retraining.graphs.description import read_metadata
from retraining.graphs.nodes import nodes_by_name
from retraining.graphs.preprocessing import Preprocessing
from retraining.graphs.read import read_graph
from retraining.graphs.run import BytesRunner
from retraining.photos.reader import ImageReader, read_file
from tests import ROOT, tiny


@pytest.fixture(scope="module")
def expected(finished):
    """{path: probabilities} of some photos, from bytes through the exported graph as it is."""
    runner = BytesRunner(read_graph(finished.graph), "final_result")
    paths = [f"{finished.photos}/{c}/photo_{n:02d}.jpg" for c in ("red", "blue") for n in range(3)]
    return {path: runner.run(read_file(path))[0] for path in paths}


LABELS = ["blue", "green", "red"]


def run(finished, *arguments):
    return label_image.main(["--graph", finished.graph, *map(str, arguments)])


def tsv(text):
    return [line.split("\t") for line in text.splitlines()]


@pytest.mark.numbers
def test_one_image_gives_the_classics_lines(finished, expected, capsys):
    path, answer = next(iter(expected.items()))
    assert run(finished, path, "--precision", "float32") == 0
    order = np.argsort(-answer)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (score=")[0] for line in lines] == [LABELS[i] for i in order]
    scores = [float(line.split("(score=")[1].rstrip(")")) for line in lines]
    np.testing.assert_allclose(scores, answer[order], atol=1e-4)
    assert lines[0].startswith("red (score=0.9")
    assert all(len(line.split("=")[1]) == len("0.12345)") for line in lines)


def test_the_classics_flag(finished, expected, capsys):
    path = next(iter(expected))
    assert run(finished, "--image", path, "--top_k", 1) == 0
    assert capsys.readouterr().out.startswith("red (score=")


@pytest.mark.numbers
def test_several_images_are_rows_in_input_order(finished, expected, capsys):
    paths = list(reversed(expected))
    assert run(finished, *paths, "--precision", "float32", "--top_k", 2) == 0
    found = tsv(capsys.readouterr().out)
    assert [row[0] for row in found] == [path for path in paths for _ in range(2)]
    for path, label, score in found:
        assert float(score) == pytest.approx(expected[path][LABELS.index(label)], abs=1e-4)
    assert [row[1] for row in found[::2]] == ["blue"] * 3 + ["red"] * 3


def test_a_folder_is_labelled_whole(finished, capsys):
    assert run(finished, finished.photos, "--top_k", 1) == 0
    found = tsv(capsys.readouterr().out)
    assert len(found) == 90
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    assert all(Path(path).parent.name == label for path, label, _ in found)


def test_a_list_on_stdin(finished, expected, capsys, monkeypatch):
    text = "\r\n".join(expected) + "\n\n"  # and the last line without an end
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run(finished, "-", "--top_k", 1) == 0
    assert [row[0] for row in tsv(capsys.readouterr().out)] == list(expected)


def test_a_path_on_stdin_is_answered_before_the_next_is_there(finished, expected):
    process = subprocess.Popen(
        [sys.executable, "label_image.py", "--graph", finished.graph, "-", "--top_k", "1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for path in list(expected)[:3]:
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(f"{path}\tred\t")
    process.stdin.close()
    assert process.stdout.read() == ""
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def test_no_image_at_all_is_a_failure(finished, tmp_path, capsys):
    assert run(finished, tmp_path) == 1
    assert "no images were found" in capsys.readouterr().err


def test_files_of_a_folder_that_are_no_images_are_named(finished, expected, tmp_path, capsys):
    shutil.copy(next(iter(expected)), tmp_path / "x.jpg")
    (tmp_path / "deep").mkdir()
    for name in ("IMG_1.doc", "deep/photos.zip"):
        (tmp_path / name).write_bytes(b"something else")
    assert run(finished, tmp_path) == 0
    captured = capsys.readouterr()
    assert [row[0] for row in tsv(captured.out)] == [f"{tmp_path}/x.jpg"] * 3
    said = "2 files are not images: IMG_1.doc, photos.zip"
    assert captured.err.partition(": ")[2] == f"{said}\n"
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("text")
    assert run(finished, tmp_path) == 0
    assert "11 files are not images: 0.txt, 1.txt, 2.txt, ...\n" in capsys.readouterr().err


def test_without_the_usual_graph_its_making_is_advised(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert label_image.main(["x.jpg"]) == 1
    said = "there is no graph models/retrained_graph.pb; train one with retrain.py, or name it with"
    assert f": {said} --graph\n" in capsys.readouterr().err


def test_jsonl(finished, expected, capsys, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    path = next(iter(expected))
    code = run(finished, path, tmp_path / "bad.jpg", "--format", "jsonl", "--top_k", 2)
    assert code == 1
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert [row.get("rank") for row in found] == [1, 2, None]
    assert found[0]["path"] == path
    assert found[0]["label"] == "red"
    assert found[0]["score"] == pytest.approx(expected[path][2], abs=0.02)
    bad = {"path": f"{tmp_path}/bad.jpg", "error": "is not an image of a known format"}
    assert found[2] == bad
    assert f"{tmp_path}/bad.jpg is not an image of a known format" in captured.err


def test_an_unreadable_image_does_not_stop_the_rest(finished, expected, capsys, tmp_path):
    paths = list(expected)
    assert run(finished, paths[0], tmp_path / "missing.jpg", paths[-1], "--top_k", 1) == 1
    captured = capsys.readouterr()
    assert [row[1] for row in tsv(captured.out)] == ["red", "blue"]
    assert captured.err.splitlines()[-1].endswith("cannot be read: No such file or directory")


def test_the_graphs_own_labels_count_more_than_a_file_beside_it(
    finished, expected, capsys, tmp_path
):
    shutil.copy(finished.graph, tmp_path / "graph.pb")
    path = next(iter(expected))
    beside = tmp_path / "retrained_labels.txt"
    for content, said in (
        (b"x\ny\nz\n", f"using the labels in the graph; those in {beside} differ\n"),
        (b"\xff", f"using the labels in the graph; those in {beside} differ\n"),
        ("".join(f"{label}\n" for label in LABELS).encode(), ""),
    ):
        beside.write_bytes(content)
        assert label_image.main(["--graph", f"{tmp_path}/graph.pb", path]) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("red (")
        assert captured.err.partition(": ")[2] == said


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("x\ny\nz\n", None),  # other names, such as those of another language
        ("Blue\nGREEN\nRed\n", None),
        ("blue\nblue\nred\n", "line 2 of the labels file {path} repeats 'blue' of line 1"),
        ("x\n\nz\n", "line 2 of the labels file {path} is empty"),
        ("x\ny\x1b[31m\nz\n", r"line 2 of the labels file {path} ('y\x1b[31m') has characters"),
        ("x\ny\u2028\nz\n", r"line 2 of the labels file {path} ('y\u2028') has characters"),
        ("x\r\ny\r\nz\r\n\x1a", None),  # as DOS ends a text
        ("red\nblue\ngreen\n", "'red' is number 1, and number 3 in the graph; drop --labels"),
        ("Red\nGreen\nBlue\n", "'Red' is number 1, and number 3 in the graph; drop --labels"),
        ("x\nred\ny\n", "'red' is number 2, and number 3 in the graph; drop --labels"),
        ("red\nblue\n", "the graph gives 3 probabilities for 2 labels"),
    ],
)
def test_labels_may_rename_classes_but_not_exchange_them(
    finished, expected, capsys, tmp_path, content, error
):
    (tmp_path / "mine.txt").write_text(content)
    flags = ("--labels", tmp_path / "mine.txt", "--top_k", 1)
    assert run(finished, next(iter(expected)), *flags) == (1 if error else 0)
    captured = capsys.readouterr()
    if error:
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert error.replace("{path}", str(tmp_path / "mine.txt")) in captured.err
    else:
        assert captured.out.startswith(f"{content.split()[2]} (")
        assert captured.err == ""


def test_labels_beside_a_graph_without_its_own_are_named(stock, expected, capsys, tmp_path):
    shutil.copy(stock[0], tmp_path / "graph.pb")
    beside = tmp_path / "retrained_labels.txt"
    shutil.copy(stock[1], beside)
    assert label_image.main(["--graph", f"{tmp_path}/graph.pb", next(iter(expected))]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("thing ")
    said = f"using the labels in {beside}; to use others, give their file with --labels\n"
    assert captured.err.partition(": ")[2] == said


def test_text_for_several_images_names_them(finished, expected, capsys):
    paths = list(expected)[:2]
    assert run(finished, *paths, "--format", "text", "--top_k", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == paths[0]
    assert lines[1].startswith("red (score=")
    assert lines[2] == paths[1]


def test_a_name_with_a_tab_stays_one_field(finished, expected, capsys, tmp_path):
    name = tmp_path / "a\tb.jpg"
    shutil.copy(next(iter(expected)), name)
    assert run(finished, name, "--format", "tsv", "--top_k", 1) == 0
    (row,) = tsv(capsys.readouterr().out)
    assert row[0] == str(name).replace("\t", "\\t")
    assert len(row) == 3


def test_a_reader_that_leaves_is_no_error(finished, expected):
    command = (
        f"{sys.executable} label_image.py --graph {finished.graph} "
        + " ".join([finished.photos] * 20)
        + " | head -1"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("flags", ["", "--format csv", "--evaluate"])
def test_a_reader_that_leaves_does_not_hide_a_bad_image(finished, tmp_path, flags):
    """The bad image comes first; then more rows than a pipe holds."""
    for number in range(3 if flags == "--evaluate" else 400):
        (tmp_path / "red").mkdir(exist_ok=True)
        os.symlink(f"{finished.photos}/red/photo_00.jpg", tmp_path / "red" / f"{number:03}.jpg")
    (tmp_path / "red" / "0.jpg").write_bytes(b"\xff\xd8\xff bad")
    images = f"{flags} {tmp_path}" if flags else f"{tmp_path} --top_k 3"
    line = f"{sys.executable} label_image.py --graph {finished.graph} {images} | head -1"
    reader = "sleep 0" if flags == "--evaluate" else "head -1"
    line = line.replace("head -1", reader)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert "0.jpg" in done.stderr


# -- in a pipeline ---------------------------------------------------------------------------


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("flags", [["-0"], ["--null", "-"], ["-", "-0"]])
def test_paths_that_end_in_nul(finished, expected, capsys, monkeypatch, tmp_path, flags):
    odd = tmp_path / "two\nlines.jpg"
    shutil.copy(next(iter(expected)), odd)
    paths = [str(odd), *expected]
    give_stdin(monkeypatch, "\0".join(paths).encode())  # the last one without an end
    assert run(finished, *flags, "--top_k", 1, "--format", "jsonl") == 0
    found = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert found == paths


def test_nul_paths_come_where_the_hyphen_is_or_last(finished, expected, capsys, monkeypatch):
    first, second, third = list(expected)[:3]
    for arguments, order in (
        (["-0", first, second], [first, second, third]),
        (["-0", first, "-", second], [first, third, second]),
    ):
        give_stdin(monkeypatch, f"{third}\0".encode())
        assert run(finished, *arguments, "--top_k", 1) == 0
        assert [row[0] for row in tsv(capsys.readouterr().out)] == order


def test_a_negative_number_is_still_a_value(tmp_path, expected, capsys, stock):
    flags = [
        "--graph",
        stock[0],
        "--labels",
        stock[1],
        "--input_mean",
        "-1",
        "--input_layer",
        "Mul",
    ]
    assert label_image.main([*flags, next(iter(expected))]) == 0


@pytest.mark.parametrize("flags", [["-"], ["-0"]])
def test_what_is_no_list_of_paths_is_one_line(finished, capsys, monkeypatch, flags):
    give_stdin(monkeypatch, b"x" * 200_000)
    assert run(finished, *flags) == 1
    captured = capsys.readouterr()
    assert "standard input has no path within 65536 bytes; give -0" in captured.err
    assert captured.err.count("\n") == 1


def test_a_long_list_is_asked_for_as_it_is_answered(finished, expected):
    """Of an endless list no more is taken than can be answered soon."""

    class Endless(io.RawIOBase):
        taken = 0

        def read1(self, size):
            self.taken += 1
            return f"{next(iter(expected))}\n".encode() * 10

    stream = Endless()
    paths = cli.paths_on(stream)
    classifier = cli.load_classifier(finished.graph)
    answers = classifier.predict(paths)
    for _ in range(25):
        next(answers)
    assert stream.taken <= 4
    answers.close()


def test_columns_are_chosen_and_ordered(finished, expected, capsys, tmp_path):
    path = next(iter(expected))
    flags = ("--top_k", 2, "--columns", "rank,label,error")
    assert run(finished, path, tmp_path / "none.jpg", *flags, "--header") == 1
    captured = capsys.readouterr()
    second = LABELS[np.argsort(-expected[path])[1]]
    assert captured.out == (
        f"rank\tlabel\terror\n1\tred\t\n2\t{second}\t\n"
        f"\t\tcannot be read: No such file or directory\n"
    )
    assert run(finished, path, "--format", "csv", "--top_k", 1, "--columns", "label") == 0
    assert capsys.readouterr().out == "label\r\nred\r\n"
    assert run(finished, path, "--format", "csv", "--top_k", 1, "--no_header") == 0
    assert capsys.readouterr().out.startswith(f"{path},1,red,0.")


def test_rows_below_the_least_score_are_left_out(finished, expected, capsys):
    paths = list(expected)
    least = np.mean(sorted(answer.max() for answer in expected.values())[1:3])
    assert run(finished, *paths, "--precision", "float32", "--min_score", least) == 0
    found = tsv(capsys.readouterr().out)
    assert [row[0] for row in found] == [p for p in paths if expected[p].max() >= least]
    assert run(finished, paths[0], "--min_score", 1) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["x.jpg", "--columns", "path,size"], "there is no column 'size'; there are path, rank"),
        (["x.jpg", "--columns", "path,path"], "named twice"),
        (["x.jpg", "--columns", ""], "there is no column ''"),
        (["x.jpg", "--columns", "path", "--format", "text"], "not for text"),
        (["x.jpg", "--header", "--format", "jsonl"], "each row names its columns"),
        (["x.jpg", "--min_score", "90"], "must be from 0 to 1"),
        (["x.jpg", "--sort_into", ""], "must name a folder"),
        (["x.jpg", "--sort_by", "move"], "invalid choice: 'move'"),
        (["x.jpg", "--evaluate", "y"], "give no other images"),
        (["--evaluate", "y", "-0"], "give no other images"),
        (["--evaluate", "y", "--sort_into", "z"], "--sort_into has no effect"),
        (["--evaluate", "y", "--format", "csv"], "gives text, tsv, jsonl, not csv"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(capsys, flags, reason):
    assert label_image.main(flags) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


# -- sorting ---------------------------------------------------------------------------------


def sorted_photos(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.jpg")}


def test_images_are_sorted_into_folders_per_label(finished, capsys, tmp_path):
    work = tmp_path / "work"
    for label in ("red", "blue"):
        tiny.write_photos(work / "mixed" / label, {label: 2}, seed=len(label))
    (work / "mixed" / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    into = work / "sorted"  # inside the folder that is labelled
    outputs = []
    for told in ("4 images put into", "0 images put into"):
        assert run(finished, work, "--top_k", 1, "--sort_into", into) == 1
        captured = capsys.readouterr()
        assert told in captured.err.splitlines()[-1]
        outputs.append(captured.out)
        assert sorted_photos(into) == {
            f"{c}/photo_{n:02d}.jpg" for c in ("red", "blue") for n in (0, 1)
        }
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 4


def test_an_image_below_the_least_score_goes_nowhere(finished, expected, tmp_path, capsys):
    flags = ("--sort_into", tmp_path / "out", "--min_score", 1)
    assert run(finished, *expected, *flags) == 0
    assert sorted_photos(tmp_path / "out") == set()
    assert capsys.readouterr().out == ""


def test_a_folder_is_not_sorted_into_itself(finished, expected, tmp_path, capsys):
    shutil.copy(next(iter(expected)), tmp_path / "a.jpg")
    assert run(finished, tmp_path, "--sort_into", tmp_path) == 1
    captured = capsys.readouterr()
    assert "choose another folder to sort into" in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_folder_that_cannot_be_sorted_into_is_one_line(finished, expected, tmp_path, capsys):
    (tmp_path / "red").write_text("a file")
    assert run(finished, next(iter(expected)), "--sort_into", tmp_path) == 1
    assert f"cannot put {next(iter(expected))} into {tmp_path}/red" in capsys.readouterr().err


# -- evaluating ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Photos whose folders are not what they show, one folder spelled otherwise, one unknown."""
    folder = tmp_path_factory.mktemp("labelled")
    tiny.write_photos(folder, {"red": 3, "blue": 2, "grey": 2}, seed=3)
    (folder / "blue").rename(folder / "Blue")
    tiny.photo(tiny.COLOURS["red"], np.random.default_rng(5)).save(folder / "Blue" / "wrong.png")
    return folder


EVALUATION = """\
accuracy	0.8333
interval	0.4365	0.9699
photos	6
correct	5
unseen_photos	6
unseen_accuracy	0.8333
class	blue	3	1.0000	0.6667	0.8000
class	red	3	0.7500	1.0000	0.8571
confusion	blue	blue	2
confusion	blue	red	1
confusion	red	red	3
"""


def test_a_labelled_folder_is_scored(finished, labelled, capsys):
    assert run(finished, "--evaluate", labelled) == 0
    captured = capsys.readouterr()
    assert captured.out == EVALUATION
    assert "accuracy on photos that the graph has not seen = 83.3% (N=6," in captured.err
    assert "has no class grey; its photos (2) are not scored" in captured.err
    assert "no folder for 1 class of the graph: green" in captured.err
    assert run(finished, "--evaluate", labelled, "--format", "jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["photos"], len(found["confusion"])) == (0.8333, 6, 3)
    assert run(finished, "--evaluate", labelled, "--format", "text") == 0
    assert "1 of blue taken for red\n" in capsys.readouterr().out


def test_the_photos_it_was_trained_on_are_told_from_others(finished, tmp_path, capsys):
    shutil.copytree(finished.photos, tmp_path / "elsewhere")
    assert run(finished, "--evaluate", tmp_path / "elsewhere") == 0
    captured = capsys.readouterr()
    lines = dict(line.split("\t")[:2] for line in captured.out.splitlines()[:6])
    assert lines["photos"] == "90"
    tested = read_metadata(read_graph(finished.graph))["results"]["test_photos"]
    assert lines["unseen_photos"] == str(tested)
    assert f"it has seen the other {90 - tested} in training or validation" in captured.err


def test_mistakes_are_listed_on_request(finished, labelled, capsys):
    assert run(finished, "--evaluate", labelled, "--print_misclassified") == 0
    lines = capsys.readouterr().out.splitlines()
    (mistake,) = (line.split("\t") for line in lines if line.startswith("misclassified"))
    assert mistake[2:4] == ["blue", "red"]
    assert os.path.dirname(mistake[1]) == f"{labelled}/Blue"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--evaluate", "y", "--top_k", "3"], "--top_k has no effect with --evaluate"),
        (["--evaluate", "y", "--raw_scores"], "needs --print_misclassified"),
        (["x.jpg", "--recursive"], "--recursive needs --evaluate"),
        (["x.jpg", "--print_misclassified"], "--print_misclassified needs --evaluate"),
    ],
)
def test_flags_without_a_meaning_are_refused(flags, said, capsys):
    assert label_image.main(flags) == 2
    assert said in capsys.readouterr().err


def test_unreadable_photos_are_named_and_not_scored(finished, labelled, tmp_path, capsys):
    shutil.copytree(labelled, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert run(finished, "--evaluate", tmp_path / "photos") == 1
    captured = capsys.readouterr()
    assert captured.out == EVALUATION
    assert f"not scored: {tmp_path}/photos/red/bad.jpg is" in captured.err


def test_nothing_to_score_is_a_failure(finished, labelled, tmp_path, capsys):
    shutil.copytree(labelled / "grey", tmp_path / "grey")
    assert run(finished, "--evaluate", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing to score" in captured.err.splitlines()[-1]
    assert run(finished, "--evaluate", tmp_path / "nowhere") == 1
    assert "cannot read the image folder" in capsys.readouterr().err


# -- other people's graphs -------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """The tiny network as published, with its labels."""
    folder = tmp_path_factory.mktemp("stock")
    tiny.write_graph(str(folder / "graph.pb"), tiny.tiny_inception())
    (folder / "labels.txt").write_text("".join(f"thing {n}\n" for n in range(10)))
    return str(folder / "graph.pb"), str(folder / "labels.txt")


@pytest.mark.numbers
def test_a_stock_graph_is_labelled(stock, expected, capsys):
    graph, labels = stock
    path = next(iter(expected))
    flags = ["--graph", graph, "--labels", labels, "--precision", "float32"]
    assert label_image.main([*flags, path]) == 0
    answer = BytesRunner(read_graph(graph), "softmax").run(read_file(path))[0]
    best = int(answer.argmax())
    label, score = capsys.readouterr().out.splitlines()[0].rstrip(")").split(" (score=")
    assert label == f"thing {best}"
    assert float(score) == pytest.approx(answer[best], abs=1e-4)


@pytest.mark.parametrize("layer", ["DecodeJpeg/contents", "DecodeJpeg/contents:0", "Mul:0"])
@pytest.mark.numbers
def test_the_input_layer_can_be_named(stock, expected, capsys, layer):
    graph, labels = stock
    flags = ["--graph", graph, "--labels", labels, "--precision", "float32"]
    assert label_image.main([*flags, "--input_layer", layer, *expected, "--top_k", "1"]) == 0
    runner = BytesRunner(read_graph(graph), "softmax")
    for path, label, score in tsv(capsys.readouterr().out):
        answer = runner.run(read_file(path))[0]
        assert label == f"thing {answer.argmax()}"
        assert float(score) == pytest.approx(answer.max(), abs=1e-4)


@pytest.fixture(scope="module")
def old_mobilenet(tmp_path_factory):
    """A MobileNet that tells its size but not how pixels are scaled."""
    folder = tmp_path_factory.mktemp("old")
    tiny.write_graph(str(folder / "graph.pb"), tiny.tiny_mobilenet())
    (folder / "labels.txt").write_text("".join(f"thing {n}\n" for n in range(8)))
    return ["--graph", f"{folder}/graph.pb", "--labels", f"{folder}/labels.txt"]


def mobilenet_answer(path, mean, std, size=(128, 128)):
    from retraining.graphs.run import Runner

    runner = Runner(tiny.tiny_mobilenet(), "input", "MobilenetV1/Predictions/Softmax")
    return runner.run(ImageReader(Preprocessing(size, mean, std)).read(path))[0]


@pytest.mark.parametrize(
    ("flags", "mean", "std"),
    [
        ([], 127.5, 127.5),
        (["--input_mean", "0", "--input_std", "255"], 0, 255),
        (["--input_mean", "0"], 0, 127.5),
        (
            ["--input_mean", "(-5, 100, 150)", "--input_std", "60,70,80.5"],
            (-5, 100, 150),
            (60, 70, 80.5),
        ),
    ],
)
def test_flags_count_before_what_is_usual_even_zero(
    old_mobilenet, expected, capsys, flags, mean, std
):
    path = next(iter(expected))
    output = ["--output_layer", "MobilenetV1/Predictions/Softmax", "--precision", "float32"]
    assert label_image.main([*old_mobilenet, *output, *flags, path, "--top_k", "1"]) == 0
    captured = capsys.readouterr()
    answer = mobilenet_answer(path, mean, std)
    label, score = captured.out.rstrip(")\n").split(" (score=")
    assert label == f"thing {answer.argmax()}"
    assert float(score) == pytest.approx(answer.max(), abs=1e-4)
    assert ("assuming" in captured.err) == (len(flags) < 4)


def test_labels_that_do_not_fit_are_an_error(stock, expected, capsys, tmp_path):
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    flags = ["--graph", stock[0], "--labels", str(tmp_path / "labels.txt")]
    assert label_image.main([*flags, next(iter(expected))]) == 1
    captured = capsys.readouterr()
    assert "10 probabilities for 2 labels" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "give an image"),
        (["x.jpg", "--top_k", "0"], 2, "must be 1 or more"),
        (["x.jpg", "--nothing"], 2, "unknown flag --nothing (see"),
        (["x.jpg", "--input_std", "0"], 2, "divide by zero"),
        (["x.jpg", "--input_mean", "nan"], 2, "finite"),
        (["x.jpg", "--input_mean", "1,nan,3"], 2, "finite"),
        (["x.jpg", "--input_mean", "1,2"], 2, "invalid number (or three, R,G,B) value: '1,2'"),
        (["x.jpg", "--input_std", "(1, 0, 1)"], 2, "divide by zero"),
        (["x.jpg", "--unknown_threshold", "1.5"], 2, "must be from 0 to 1"),
        (["x.jpg", "--unknown_threshold", "some"], 2, "share"),
        (["x.jpg", "--graph", "nothing.pb"], 1, "cannot read the graph nothing.pb"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, arguments, code, reason):
    assert label_image.main(arguments) == code
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--input_layer", "nothing"], "no node 'nothing'; see --input_layer"),
        (["--output_layer", "nothing"], "no node 'nothing'; see --output_layer"),
        (["--input_height", "64"], "takes images of 128 x 128"),
        (["--labels", "nothing.txt"], "cannot read the labels file"),
        (["--weights", "random"], "has weights of its own; --weights is for keras:NAME"),
    ],
)
def test_wrong_words_about_a_graph_are_one_line(old_mobilenet, capsys, flags, reason):
    output = ["--output_layer", "MobilenetV1/Predictions/Softmax"]
    assert label_image.main([*old_mobilenet, *output, *flags, "x.jpg"]) == 1
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def test_a_graph_without_labels_asks_for_them(stock, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert label_image.main(["--graph", os.path.relpath(stock[0]), "x.jpg"]) == 1
    assert "--labels" in capsys.readouterr().err


def test_another_graph_is_scored_by_the_names_of_its_labels(stock, expected, capsys, tmp_path):
    path = next(iter(expected))
    best = int(BytesRunner(read_graph(stock[0]), "softmax").run(read_file(path))[0].argmax())
    (tmp_path / f"Thing_{best}").mkdir()
    shutil.copy(path, tmp_path / f"Thing_{best}" / "a.jpg")
    graph = ["--graph", stock[0], "--labels", stock[1]]
    assert label_image.main([*graph, "--evaluate", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"confusion\tthing {best}\tthing {best}\t1"
    assert "no folder for 9 classes" in captured.err
    assert "does not list its training photos" in captured.err


# -- trust -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(tmp_path_factory, run_retrain):
    """A run with validation photos enough, some in the wrong class, and a class `unknown`."""
    folder = tmp_path_factory.mktemp("trusted")
    photos = Path(tiny.write_photos(folder / "photos", {"red": 40, "green": 40, "blue": 40}))
    for number in range(10):  # so that it cannot be right always
        shutil.copy(photos / f"red/photo_{number:02d}.jpg", photos / f"blue/red_{number}.jpg")
        tiny.photo(tiny.COLOURS["red"], np.random.default_rng(number)).save(
            photos / f"green/red_{number}.png"
        )
    (photos / "green").rename(photos / "unknown")
    flags = ("--precision", "float32", "--validation_percentage", 40)
    assert run_retrain(folder, photos, *flags) == 0
    tiny.photo((250, 250, 0), np.random.default_rng(0)).save(folder / "yellow.png")
    return SimpleNamespace(
        graph=str(folder / "models" / "retrained_graph.pb"),
        strange=str(folder / "yellow.png"),
        known=str(photos / "red/photo_20.jpg"),
    )


def test_the_graph_stores_temperature_and_score_beside_the_classics_nodes(trusted):
    graph_def = read_graph(trusted.graph)
    about = read_metadata(graph_def)["trust"]
    assert about["temperature"] not in (0.1, 1, 10)
    assert len(about["unknown"]["quantiles"]) == 101
    nodes = nodes_by_name(graph_def)
    ours = {name for name in nodes if name.startswith("retraining/")}
    assert ours == {f"retraining/{n}" for n in ("metadata", "unknown/axes", "unknown/origin")}
    assert not any(ours.intersection(node.input) for node in graph_def.node)


def test_an_evaluation_leaves_out_photos_of_no_known_class_on_request(trusted, tmp_path, capsys):
    (tmp_path / "red").mkdir()
    shutil.copy(trusted.known, tmp_path / "red")
    shutil.copy(trusted.strange, tmp_path / "red")
    graph = ("--graph", trusted.graph, "--evaluate", str(tmp_path))
    assert label_image.main([*graph, "--unknown_threshold", "auto"]) == 0
    lines = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert (lines["photos"], lines["answered"], lines["coverage"]) == ("2", "1", "0.5000")
    assert lines["answered_accuracy"] == "1.0000"


@pytest.mark.parametrize("flags", [[], ["--input_layer", "DecodeJpeg/contents"]])
@pytest.mark.numbers
def test_the_temperature_is_applied_unless_raw_scores_are_wanted(trusted, capsys, flags):
    raw = BytesRunner(read_graph(trusted.graph), "final_result").run(read_file(trusted.known))
    temperature = read_metadata(read_graph(trusted.graph))["trust"]["temperature"]
    for more, answer in (
        (["--raw_scores"], raw),
        ([], apply_temperature(raw, temperature)),
    ):
        run(trusted, trusted.known, "--precision", "float32", *flags, *more)
        line = capsys.readouterr().out.splitlines()[0]
        assert float(line.split("=")[1].rstrip(")")) == pytest.approx(answer.max(), abs=1e-4)
    assert abs(answer - raw).max() > 1e-3


@pytest.mark.numbers
def test_unknown_comes_first_in_every_format(trusted, capsys):
    """Its name gives way to the class `unknown`, so that the two cannot be taken for each other."""
    flags = ["--unknown_threshold", "auto", "--top_k", 3]
    assert run(trusted, trusted.strange, *flags, "--format", "text") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "(unknown) (score=1.00000)"
    assert len(lines) == 3
    run(trusted, trusted.strange, trusted.known, *flags)
    rows = tsv(capsys.readouterr().out)
    assert rows[0] == [trusted.strange, "(unknown)", "1.00000"]
    assert sorted(row[1] for row in rows[3:]) == ["blue", "red", "unknown"]
    run(trusted, trusted.strange, *flags, "--format", "jsonl")
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"path": trusted.strange, "rank": 1, "label": "(unknown)", "score": 1.0}


@pytest.mark.numbers
def test_the_bytes_path_knows_unknown_images_too(trusted, capsys, tmp_path):
    path = tmp_path / "strange.jpg"
    tiny.photo((250, 250, 0), np.random.default_rng(0)).save(path)
    flags = ["--unknown_threshold", "auto", "--input_layer", "DecodeJpeg/contents"]
    assert run(trusted, path, trusted.known, *flags, "--top_k", 1) == 0
    assert [row[1] for row in tsv(capsys.readouterr().out)] == ["(unknown)", "red"]


@pytest.mark.numbers
def test_the_threshold_is_a_share_of_known_photos(trusted, capsys):
    run(trusted, trusted.known, "--unknown_threshold", 1, "--top_k", 1)
    label, score = capsys.readouterr().out.rstrip(")\n").split(" (score=")
    assert label == "(unknown)"
    assert 0 <= float(score) < 0.95
    run(trusted, trusted.strange)
    assert "(unknown)" not in capsys.readouterr().out


def test_a_graph_without_such_a_score_says_so(stock, expected, capsys):
    flags = ["--graph", stock[0], "--labels", stock[1], "--unknown_threshold", "auto"]
    assert label_image.main([*flags, next(iter(expected))]) == 1
    captured = capsys.readouterr()
    assert "needs a frozen graph that retrain.py made with 20 validation photos" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
