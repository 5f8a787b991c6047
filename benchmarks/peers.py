"""Times other image classifiers beside this tool, each in an environment of its own.

    python benchmarks/peers.py --photos flower_photos --venvs /tmp/peers

The environments in --venvs are made if they are not there, and kept. They take several gigabytes:
PyTorch's package for Linux brings CUDA. The peers' networks have random weights: no download, the
same time. All measurements go in turn; a ratio is the median of the ratios of single rounds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import describe_machine

from retraining.examples.drawings import LABELS, draw_flower_photos

ROOT = Path(__file__).resolve().parent.parent
OURS, ULTRALYTICS, TIMM = PEERS = ("this tool", "Ultralytics", "timm")
PACKAGES = {OURS: ["tensorflow"], ULTRALYTICS: ["ultralytics", "torch"], TIMM: ["timm", "torch"]}
CUDA = ("nvidia", "triton", "cuda")  # packages that a computer without a GPU never uses
PHOTOS = 256  # in each round of the extraction
# What extracts the vectors of `paths`, decoding included, on two threads.
EXTRACT = {
    OURS: f"""
sys.path.insert(0, {str(ROOT)!r})
from argparse import Namespace
from benchmarks.base_network import load
from retraining.bottlenecks.runtime import RuntimeSettings, open_runner
from retraining.bottlenecks.stream import stream
from retraining.graphs.run import Running
from retraining.graphs.twin import VectorPart, cache_folder
from retraining.photos.reader import ImageReader
options = Namespace(architecture=sys.argv[1], model_file=sys.argv[3] or None, model_dir="models")
network = load(options)
part = VectorPart(network.graph_def, network.input, network.bottleneck, network.preprocessing)
settings = RuntimeSettings("auto", (cache_folder(),))
runner, reader = open_runner(part, Running(), settings), ImageReader(network.preprocessing)
compute = lambda: list(stream(paths, reader.read, runner))
""",
    TIMM: """
import timm, torch
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
torch.set_num_threads(2)
torch.set_grad_enabled(False)
side = {"img_size": 224} if sys.argv[2].startswith("vit") else {}
model = timm.create_model(sys.argv[2], num_classes=0, **side).eval()
model = model.to(memory_format=torch.channels_last)
config = timm.data.resolve_model_data_config(model) | {"crop_pct": 1, "crop_mode": "squash"}
if side:
    config["input_size"] = (3, 224, 224)
transform, pool = timm.data.create_transform(**config), ThreadPoolExecutor(2)
load = lambda path: transform(Image.open(path).convert("RGB"))
def compute():
    photos = pool.map(load, paths)
    for _ in range(0, len(paths), 32):
        batch = torch.stack([photo for _, photo in zip(range(32), photos)])
        model(batch.to(memory_format=torch.channels_last))
""",
}
EXTRACT_LOOP = """import glob, sys, time
paths = sorted(glob.glob("flat/*/*"))
paths = paths[:: max(1, len(paths) // {})][:{}]
{}
for _ in sys.stdin:
    started, used = time.perf_counter(), time.process_time()
    compute()
    print(time.perf_counter() - started, time.process_time() - used, flush=True)
"""
LABEL_BY_TIMM = """import sys, timm, torch
from PIL import Image
model = timm.create_model("efficientnet_lite0", num_classes=5).eval()
config = timm.data.resolve_model_data_config(model)
pixels = timm.data.create_transform(**config)(Image.open(sys.argv[1]).convert("RGB"))
with torch.inference_mode():
    print(model(pixels[None]).softmax(1).max(1))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="a folder per class; default: drawn ones")
    parser.add_argument("--count", type=int, default=1500, help="photos to use at most")
    parser.add_argument("--venvs", type=Path, required=True, help="where environments are kept")
    parser.add_argument("--runs", type=int, default=1, help="rounds of the whole runs")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the rest")
    parser.add_argument("--inception_file", type=Path, help="also measure with this frozen graph")
    parser.add_argument("--dinov2_file", type=Path, help="also measure with this model.safetensors")
    options = parser.parse_args()
    pythons = {peer: environment(peer, options.venvs) for peer in PEERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"YOLO_CONFIG_DIR": name, "YOLO_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        facts = f"{copy_photos(options, folder):,} photos; {datetime.now(UTC):%Y-%m-%d}"
        print(f"{describe_machine()}; {facts}. {versions(pythons)}.\n")
        print(f"| | {' | '.join(PEERS)} |\n|---|{'---:|' * len(PEERS)}", flush=True)
        runs = in_turn(whole_runs, pythons, folder, options.runs)
        print_row("first run; one epoch, whole process (s)", runs, 0)
        print_row("the same (s of CPU)", runs, 1)
        labelled = in_turn(one_photo, pythons, folder, options.rounds)
        print_row("label one photo, whole process (s)", labelled, 0)
        print_row("the same (s of CPU)", labelled, 1)
        for ours, timms, file in networks(options):
            extracted = extraction(pythons, folder, [ours, timms, file], options.rounds)
            print_row(f"{PHOTOS} photos to vectors, {ours} (s)", extracted, 0)
            print_row("the same (s of CPU)", extracted, 1)
    sizes = [installed(pythons[peer]) for peer in PEERS]
    for what, row in zip(("", ", without CUDA's"), zip(*sizes, strict=True), strict=True):
        print(f"| installed packages{what} (MB) | {' | '.join(f'{n / 1e6:,.0f}' for n in row)} |")


def environment(peer, venvs):
    """The Python of a peer's environment, which is made if it is not there."""
    python = venvs.resolve() / peer.lower().replace(" ", "-") / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        wanted = ["-r", ROOT / "requirements.txt"] if peer == OURS else [PACKAGES[peer][0]]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, stdout=2)
    return python


def copy_photos(options, folder):
    """Copies the photos to `flat/CLASS` and to `split/train/CLASS`, `split/val/CLASS`."""
    source = Path(options.photos or folder / "drawn")
    if not options.photos:
        draw_flower_photos(source, -(-options.count // len(LABELS)))
    classes = [path for path in sorted(source.iterdir()) if path.is_dir()]
    for each in classes:
        for number, photo in enumerate(sorted(each.glob("*.jpg"))[: options.count // len(classes)]):
            for target in ("flat", "split/train" if number % 10 else "split/val"):
                (folder / target / each.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, folder / target / each.name)
    shutil.copy(photo, folder / "photo.jpg")
    return len([*folder.glob("flat/*/*")])


def whole_runs(pythons, folder, number):
    """The commands of a first run of this tool, and of one epoch of Ultralytics."""
    ours = f"""{pythons[OURS]} {ROOT}/retrain.py --image_dir flat --architecture efficientnet_lite0
        --offline --bottleneck_dir cache_{number} --output_graph graph.pb"""
    yolo = f"""{pythons[ULTRALYTICS].parent}/yolo classify train model=yolo11n-cls.yaml epochs=1
        data={folder}/split project={folder}/yolo name=run exist_ok=True imgsz=224 device=cpu"""
    return {OURS: ours.split(), ULTRALYTICS: yolo.split()}


def one_photo(pythons, folder, number):
    """The commands that label one photo."""
    ours = f"{pythons[OURS]} {ROOT}/label_image.py --graph graph.pb photo.jpg"
    yolo = f"""{pythons[ULTRALYTICS].parent}/yolo classify predict source=photo.jpg imgsz=224
        model={folder}/yolo/run/weights/best.pt device=cpu save=False"""
    timm = [pythons[TIMM], "-c", LABEL_BY_TIMM, "photo.jpg"]
    return {OURS: ours.split(), ULTRALYTICS: yolo.split(), TIMM: timm}


def in_turn(commands, pythons, folder, rounds):
    """{peer: [(seconds, seconds of CPU) of each round]} of whole processes in a folder."""
    taken = {}
    for number in range(rounds):
        for peer, command in commands(pythons, folder, number).items():
            print("...", peer, commands.__name__, file=sys.stderr)
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"{peer} ended with status {status}; its message is above")
            seconds = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
            taken.setdefault(peer, []).append(seconds)
    return taken


def networks(options):
    """[the name of a network here, in timm, its file or ""] of each to measure."""
    wanted = [["efficientnet_lite0", "efficientnet_lite0", ""]]
    if options.inception_file:
        wanted.append(["inception_v3", "inception_v3", str(options.inception_file.resolve())])
    if options.dinov2_file:
        names = "dinov2_small", "vit_small_patch14_dinov2"
        wanted.append([*names, str(options.dinov2_file.resolve())])
    return wanted


def extraction(pythons, folder, network, rounds):
    """{peer: [(seconds, seconds of CPU) of each round]}; the processes end with this one."""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    extracting = {}
    for peer, code in EXTRACT.items():
        command = [pythons[peer], "-c", EXTRACT_LOOP.format(PHOTOS, PHOTOS, code), *network]
        extracting[peer] = subprocess.Popen(command, cwd=folder, **pipe)
    taken = {peer: [] for peer in EXTRACT}
    for number in range(1 + rounds):  # the first warms up
        for peer, process in extracting.items():
            process.stdin.write("\n")
            seconds = tuple(map(float, process.stdout.readline().split()))
            taken[peer] += [seconds] * bool(number)
    return taken


def print_row(name, taken, kind):
    """Prints the medians; for peers, the median of their ratios to this tool in brackets."""
    columns = {peer: [each[kind] for each in rounds] for peer, rounds in taken.items()}
    cells = dict.fromkeys(PEERS, "-")
    for peer, found in columns.items():
        ratio = median(a / b for a, b in zip(found, columns[OURS], strict=True))
        cells[peer] = f"{median(found):.1f}" + f" ({ratio:.2f})" * (peer != OURS)
    print(f"| {name} | {' | '.join(cells.values())} |", flush=True)


def versions(pythons):
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    commands = [[pythons[peer], "-c", code, *PACKAGES[peer]] for peer in PEERS]
    found = (subprocess.check_output(command, text=True).split() for command in commands)
    return ", ".join(map(" ".join, chain(*map(zip, PACKAGES.values(), found))))


def installed(python):
    """Bytes of the packages: [all, without those of CUDA]."""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file()]
    needed = [p for p in files if not p.relative_to(packages).parts[0].startswith(CUDA)]
    return [sum(path.stat().st_size for path in paths) for paths in (files, needed)]


if __name__ == "__main__":
    main()
