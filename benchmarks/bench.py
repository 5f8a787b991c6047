"""Measures this tool against the classic way, in one run, and prints the ratios.

    python benchmarks/bench.py --image_dir flower_photos --model_file models/.../graph.pb

The classic way is written plainly in `classic.py` beside this file: the untouched graph, one image
at a time, a text file per vector, each read again for every batch. Each measurement runs in a
process of its own. Parts of the classic that would take minutes are measured on a share and
multiplied; the table says which. A ratio above 1 means that ours takes less.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLASSIC_IMAGES, CLASSIC_STEPS, STEPS = 60, 60, 4000
FOLDER_IMAGES = 200


def main():
    options = parse_flags()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(options, Path(folder))
        figures = {"machine": describe_machine(), "photos": len(bench.photos), **bench.run()}
    print_table(figures)
    Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_dir", default="flower_photos")
    parser.add_argument("--model_file", required=True, help="the frozen Inception-v3 graph")
    parser.add_argument("--json", default="bench.json", help="where the figures are written")
    options = parser.parse_args()
    options.image_dir = os.path.abspath(options.image_dir)
    options.model_file = os.path.abspath(options.model_file)
    return options


class Bench:
    """The measurements, each a method that returns seconds (or bytes) by name."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        paths = (
            Path(parent, name) for parent, _, names in os.walk(options.image_dir) for name in names
        )
        self.photos = sorted(
            str(path) for path in paths if path.suffix.lower() in (".jpg", ".jpeg")
        )

    def run(self):
        some = self.photos[:: max(1, len(self.photos) // CLASSIC_IMAGES)][:CLASSIC_IMAGES]
        classic = self.child("classic.py", "extract", self.options.model_file, self.folder, *some)
        cold = self.retrain("auto")
        again = self.child("classic.py", "extract", self.options.model_file, self.folder, *some)
        classic["rate"] = (classic["rate"] + again["rate"]) / 2  # before and after: machines drift
        warm = self.retrain("auto")
        bare = self.retrain("auto", "--no_report", "--label_audit", "", "--projector_photos", "0")
        alone = self.retrain("auto", "--testing_percentage", "0")  # nothing runs beside training
        float32 = self.float32_rate()
        trained = self.child("classic.py", "train", self.folder, CLASSIC_STEPS, len(self.photos))
        graph = str(self.folder / "graph.pb")
        one_classic = self.child("classic.py", "label", graph, self.photos[0])["process"]
        one = min(self.label(graph, self.photos[0]) for _ in range(2))
        folder = self.label(graph, *self.photos[:FOLDER_IMAGES])
        count = min(FOLDER_IMAGES, len(self.photos))
        step = trained["step"]
        # Every vector is read once to see that it is there, those of the test photos once more.
        whole = classic["start"] + 1.1 * trained["read"] + STEPS * step + classic["export"]
        return {
            "rows": [
                row("cold extraction, auto (images/s)", classic["rate"], cold["rate"], rate=True),
                row("cold extraction, float32 (images/s)", classic["rate"], float32, rate=True),
                row(
                    f"{STEPS} training steps (s; classic x {STEPS // CLASSIC_STEPS})",
                    STEPS * step,
                    alone["training"],
                ),
                row("warm run, whole (s; classic: sum of its parts)", whole, warm["process"]),
                row("the same without report and audit (s)", whole, bare["process"]),
                row("label one photo (s)", one_classic, one),
                row(
                    f"label {count} photos (s; classic: a process each)",
                    count * one_classic,
                    folder,
                ),
                row("peak memory, cold run (MB)", classic["memory"] / 1e6, cold["memory"] / 1e6),
            ],
            "test_accuracy": {"auto": cold["test_accuracy"], "float32": self.accuracy_float32},
        }

    def child(self, script, *arguments):
        """Runs a script beside this one, which prints JSON; adds its wall time as `process`."""
        command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
        return run(command)

    def retrain(self, precision, *flags):
        """A run of retrain.py, and how long its parts took; see timed_retrain.py."""
        command = [
            *(sys.executable, str(ROOT / "benchmarks" / "timed_retrain.py")),
            *("--image_dir", self.options.image_dir, "--precision", precision),
            *("--model_file", self.options.model_file, "--architecture", "inception_v3"),
            *("--bottleneck_dir", self.folder / f"cache_{precision}"),
            *(
                "--output_graph",
                self.folder / "graph.pb",
                "--output_labels",
                self.folder / "labels",
            ),
            *("--label_audit", self.folder / "label_audit.tsv"),
            *("--summaries_dir", self.folder / "logs", "--logging_verbosity", "WARN"),
            *flags,
        ]
        return run(list(map(str, command)))

    def float32_rate(self):
        figures = self.retrain("float32")
        self.accuracy_float32 = figures["test_accuracy"]
        return figures["rate"]

    def label(self, graph, *photos):
        command = [sys.executable, str(ROOT / "label_image.py"), "--graph", graph, *photos]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def run(command):
    """The JSON on the last line of a command's output, with its wall time and peak memory."""
    print("...", " ".join(command)[:100], file=sys.stderr)
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} ended with {done.returncode}; its message is above")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "process": time.perf_counter() - started}


def row(name, classic, ours, rate=False):
    ratio = ours / classic if rate else classic / ours
    return {"name": name, "classic": classic, "ours": ours, "ratio": ratio}


def describe_machine():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        text = file.read()
    model = next(line.split(":")[1].strip() for line in text.splitlines() if "model name" in line)
    extra = [name for name in ("avx512_bf16", "amx_bf16") if name in text]
    bfloat16 = ", ".join(extra) or "no bfloat16"
    return f"{os.cpu_count()} cores of {model} ({bfloat16}), {platform.system()}"


def peak_memory():
    """Bytes of the largest resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_table(figures):
    print(f"{figures['photos']} photos, {figures['machine']}\n")
    print("| | classic | this tool | ratio |\n|---|---:|---:|---:|")
    for each in figures["rows"]:
        print(
            f"| {each['name']} | {each['classic']:.1f} | {each['ours']:.1f} | {each['ratio']:.2f} |"
        )
    print(f"\ntest accuracy: {figures['test_accuracy']}")


if __name__ == "__main__":
    main()
