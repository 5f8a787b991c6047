"""The scripts in benchmarks/, each on tiny data: they run, and their figures are plausible."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retraining.export.pixels_graph import Source
from retraining.export.registry import CONVERTERS
from retraining.graphs.read import read_graph
from tests import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="some figures are read from /proc"),
]
FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NETWORKS = "inception_v3", "mobilenet_0.25_128"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, photos):
    """A folder with photos and networks where the benchmarks look for them by default."""
    folder = tmp_path_factory.mktemp("workplace")
    os.symlink(photos, folder / "flower_photos")
    models = folder / "models"
    inception = models / "inception_dec_2015" / "tensorflow_inception_graph.pb"
    tiny.write_graph(str(inception), tiny.tiny_inception())
    mobilenet = models / "mobilenet_v1_0.25_128" / "frozen_graph.pb"
    tiny.write_graph(str(mobilenet), tiny.tiny_mobilenet())
    return folder


@pytest.fixture
def run(workplace):
    """Runs a benchmark there; gives its lines, or with `fails` those of stderr."""

    def call(script, *flags, fails=False):
        command = [sys.executable, str(FOLDER / script), *map(str, flags)]
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return (done.stderr if fails else done.stdout).splitlines()

    return call


def rows(lines):
    """{first cell: numbers in the others} of the rows of a table."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {first: numbers(" ".join(others)) for first, *others in cells[2:]}


def numbers(text):
    """The numbers in a text; those in names such as MobileNetV2 are left out."""
    return [float(word.replace(",", "")) for word in re.findall(r"(?<![\w.])[+-]?[\d,.]*\d", text)]


def test_bench(run, workplace):
    lines = run(
        "bench.py", "--model_file", "models/inception_dec_2015/tensorflow_inception_graph.pb"
    )
    found = json.loads((workplace / "bench.json").read_text())
    assert lines[0].startswith("90 photos")
    assert list(rows(lines)) == [row["name"] for row in found["rows"]]
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row["classic"] > 0
        assert row["ours"] > 0
        better = "images/s" in row["name"]
        ratio = row["ours"] / row["classic"] if better else row["classic"] / row["ours"]
        assert row["ratio"] == pytest.approx(ratio)
    by_name = {row["name"].split(" (")[0]: row for row in found["rows"]}
    assert 20 < by_name["cold extraction, auto"]["ours"] < 100_000
    assert by_name["4000 training steps"]["ours"] < by_name["warm run, whole"]["ours"] < 300
    assert by_name["4000 training steps"]["ratio"] > 1
    assert 100 < by_name["peak memory, cold run"]["ours"] < 4_000
    assert min(found["test_accuracy"].values()) > 0.5


def test_bench_with_a_run_that_fails(run):
    lines = run("bench.py", "--model_file", "absent.pb", fails=True)
    assert "absent.pb" in "\n".join(lines)
    assert re.search(r"\w+\.py ended with 1; its message is above", lines[-1])


def test_networks(run):
    flags = "--rounds", 1, "--bottleneck_dir", "cache_networks"
    found = rows(run("networks.py", *flags, *NETWORKS, "+".join(NETWORKS)))
    assert [row[2] for row in found.values()] == [24, 8, 32]  # the vectors' widths
    for speed, times, _, accuracy, size in found.values():
        assert speed > 0
        assert times > 0
        assert 0.5 < accuracy <= 1
        assert size >= 0


def test_heads(run, workplace):
    error = run("heads.py", "--bottleneck_dir", "cache_heads", fails=True)
    assert error[-1].startswith("cache_heads lacks the vectors of 90 of 90 photos; first run")
    command = [sys.executable, str(FOLDER.parent / "retrain.py"), "--image_dir", "flower_photos"]
    command += ["--architecture", "inception_v3", "--bottleneck_dir", "cache_heads"]
    command += ["--how_many_training_steps", "10", "--output_graph", "out/graph.pb", "--quiet"]
    subprocess.run(command, cwd=workplace, check=True, capture_output=True)
    found = rows(run("heads.py", "--bottleneck_dir", "cache_heads", "--splits", 2))
    assert len(found) == 10
    for accuracy, _, _, _, better, worse, loss, _, seconds in found.values():
        assert 0.5 < accuracy <= 1
        assert 0 <= better + worse <= 2
        assert 0 <= loss < 2
        assert 0 <= seconds < 60


def test_pair(run):
    lines = run("pair.py", "--architectures", *NETWORKS, "--splits", 2)
    found = rows(lines[1:])
    assert lines[0].startswith("90 photos, accuracy on 18 held out")
    assert len(found) == 8
    assert all(len(row) == 3 and 0.5 < min(row) <= max(row) <= 1 for row in found.values())


def test_precision(run):
    *rates, cosines = run("precision.py")
    assert [line.split(":")[0] for line in rates] == ["float32", "bfloat16"]
    assert all(10 < numbers(line.split(":")[1])[0] < 1e6 for line in rates)
    count, median, least = numbers(cosines)
    assert count == 90
    assert 0.9 < least <= median <= 1.0001


def test_exports(run, workplace):
    command = [sys.executable, str(FOLDER.parent / "retrain.py"), "--image_dir", "flower_photos"]
    command += ["--architecture", "mobilenet_0.25_128", "--bottleneck_dir", "cache_exports"]
    command += ["--how_many_training_steps", "10", "--output_graph", "exports/g.pb", "--quiet"]
    subprocess.run(command, cwd=workplace, check=True, capture_output=True)
    found = rows(run("exports.py", "exports/g.pb", "--formats", "saved_model", "tflite"))
    assert list(found) == ["frozen graph", "saved_model", "tflite"]
    megabytes = (workplace / "exports" / "g.pb").stat().st_size / 1e6
    assert found["frozen graph"][0] == pytest.approx(megabytes, abs=0.06)
    for kind in ("saved_model", "tflite"):
        seconds, processor, peak, size, photo = found[kind]
        assert 0 < min(seconds, processor) <= max(seconds, processor) < 300
        assert 100 < peak < 2_500
        assert size == pytest.approx(megabytes, abs=0.5)
        assert 0 <= photo < 1_000
    assert "nothing.pb" in "\n".join(run("exports.py", "nothing.pb", fails=True))


def test_unknown(run):
    lines = run("unknown.py", "--left_out", 1)
    found = rows(lines)
    assert "1 of the classes left out, 3 times" in lines
    assert len(found) == 11
    for area, _, far, _, caught, caught_far, *_ in found.values():
        assert 0 <= area <= 1
        assert 0 <= far <= 1
        assert 0 <= caught <= 100
        assert 0 <= caught_far <= 100
    assert found["energy"][0] > 0.9


def test_worst_images(run):
    found = rows(run("worst_images.py", "--most", 40_000, "--only", "GIF", "PNG RGBA, 16", "BMP"))
    assert len(found) == 6
    for size, pixels, seconds, memory, allowed in found.values():
        assert size > 0
        assert pixels == 200 * 200
        assert seconds < 10
        assert 10 < memory < allowed == 1_500


def test_decode_matrix(run):
    pytest.importorskip("cv2")
    *lines, speed = run("decode_matrix.py")
    found = rows(lines)
    assert sum(equal for equal, *_ in found.values()) > 3_000
    assert all(different == 0 for _, different, *_ in list(found.values())[:8])
    assert all(each > 0 for each in numbers(speed))


def test_audit_of_labels(run, workplace):
    rng = np.random.default_rng(0)
    for number in range(3):
        folder = workplace / "classic_bottlenecks" / f"class{number}"
        folder.mkdir(parents=True)
        for photo in range(40):
            vector = rng.random(16) + 2 * (np.arange(16) % 3 == number)
            (folder / f"{photo}.txt").write_text(",".join(map(str, vector)))
    first, *others = run("audit.py", "labels")
    assert first.startswith("120 photos, 6 labels swapped, 10 seeds")
    assert len(others) == 5
    for line in others:
        mean, least = numbers(line[40:])
        assert 0.8 < least <= mean <= 1


def test_audit_of_duplicates(run):
    lines = run("audit.py", "duplicates")
    shares = {line[:20].strip(): numbers(line[20:]) for line in lines if " found of " in line}
    assert len(shares) == 9
    assert all(0 <= share <= 100 and count == 6 for share, count in shares.values())
    assert shares["JPEG quality 70"][0] > 50


def test_groups(run):
    found = rows(run("groups.py", "--architecture", "mobilenet_0.25_128", "--subjects", 15))
    assert len(found) == 12
    for classes in ("as they are", "look-alikes"):
        shares = [found[f"{classes}, {share}"] for share in (0.3, 0.4, 0.5, 0.6, 0.7, "inf")]
        for column in zip(*shares, strict=True):
            assert column[0] >= 0
            assert list(column) == sorted(column)
            assert column[-1] <= 100


def test_time_of_the_audit(run):
    (line,) = run("audit.py", "time", "--photos", 500, "--classes", 3)
    assert line.startswith("500 photos, 3 classes: ")
    assert all(0 < each < 60 for each in numbers(line)[2:])


def test_store(run):
    lines = [line.split("\t") for line in run("store.py", "--count", 2_000, "--width", 64)]
    assert [line[0] for line in lines] == [
        *("written", "size", "asked which are missing", "loaded"),
        "peak memory, mapped pages included",
    ]
    assert all(float(lines[row][2].split()[0]) > 1_000 for row in (0, 2, 3))
    assert 1 < numbers(lines[1][2])[0] < 2


@pytest.mark.parametrize("what", ["photos", "paths"])
def test_memory(run, finished, what):
    lines = run("memory.py", what, "--graph", finished.graph, "--count", 50, 100)
    assert [line.split(":")[0] for line in lines] == [f"50 {what}", f"100 {what}"]
    assert all(30 < numbers(line)[1] < 2_000 for line in lines)


def test_memory_of_vectors(run):
    *times, end = run("memory.py", "vectors", "--count", 1_000)
    assert len(times) == 3
    accuracy, peak = numbers(end)
    assert 0.5 < accuracy <= 1
    assert 5 < peak < 2_000


def test_network_memory(run):
    lines = run("network_memory.py", "keras:MobileNetV2")
    assert [line.split(":")[1].split()[1] for line in lines] == ["freeze", "run", "export"]
    assert all(0.1 < numbers(line)[0] < numbers(line)[2] for line in lines)


# -- Ray -------------------------------------------------------------------------------------


@pytest.fixture
def ray():
    pytest.importorskip("ray")


@pytest.mark.usefixtures("ray")
def test_speed_of_ray(run):
    lines = run("ray_cluster.py", "speed", "--rounds", 1, "--warm_up", 15, "--seconds", 2)
    rates = [line for line in lines if line.endswith("images/s")]
    assert [line.split(" on ")[0] for line in rates] == ["local", "ray"] * 2
    assert all(10 < numbers(line.split(":")[1])[0] < 1e6 for line in rates)


@pytest.mark.usefixtures("ray")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_ray_beside_the_local_engine(run):
    lines = run("ray_cluster.py", "beside", "--rounds", 1, "--warm_up", 20, "--seconds", 2)
    assert len(lines) == 2
    for line in lines:
        local, ray, ratio = numbers(line)
        assert ratio == pytest.approx(ray / local, abs=0.002)


@pytest.mark.usefixtures("ray")
def test_overhead_of_ray(run):
    lines = run("ray_cluster.py", "overhead")
    assert len(lines) == 4
    for line in lines:
        milliseconds, rate, cpu = numbers(line.split(":")[1])[:3]
        assert 0 < milliseconds < 60_000
        assert rate > 0
        assert cpu > 0


@pytest.mark.usefixtures("ray")
def test_a_node_that_is_killed(run, workplace):
    """The photos are large, so that the run lasts; each has its own key by bytes at its end."""
    rng = np.random.default_rng(0)
    for label in ("red", "green", "blue"):
        folder = workplace / "large" / label
        folder.mkdir(parents=True)
        tiny.photo(tiny.COLOURS[label], rng, (1600, 1200)).save(folder / "0.jpg")
        content = (folder / "0.jpg").read_bytes()
        for number in range(1, 300):
            (folder / f"{number}.jpg").write_bytes(content + b"%d" % number)
    lines = run("ray_cluster.py", "kill", "--image_dir", "large")
    assert 450 <= numbers(lines[0])[0] < 900
    assert lines[1] == "the run ended with 0"
    assert lines[2] == "vectors: 900 local, 900 Ray, the same photos: True"
    assert numbers(lines[3])[0] < 1e-5
    assert [line.split()[0] for line in lines[4:]] == ["local", "Ray"]


@pytest.mark.usefixtures("ray")
def test_a_run_that_fails_instead_of_a_killed_node(run):
    lines = run("ray_cluster.py", "kill", "--model_dir", "absent", fails=True)
    assert lines[-1] == "the local run ended with 1; its message is above"
    assert not any("Traceback" in line for line in lines)


def test_export_agreement(run, finished, tmp_path):
    path = tmp_path / "m.tflite"
    CONVERTERS["tflite"].save(Source.of(read_graph(finished.graph)), str(path))
    flags = "export_agreement.py", "--repeats", 1, "--graph", finished.graph, path
    head, *lines = (line.split("\t") for line in run(*flags))
    assert head[2:5] == ["photos", "same first label", "apart"]
    assert [line[2:4] for line in lines] == [["90", "90"]] * 2
    assert 0 < float(lines[1][4]) < 1e-5
    run(*flags, "--most", 0, fails=True)
