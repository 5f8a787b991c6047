"""Measures peak memory of freezing, running and retraining a network, each in a process of its own.

    python benchmarks/network_memory.py keras:ConvNeXtLarge keras:ConvNeXtXLarge

`freeze` makes the network's file, with random weights; `run` reads, folds and runs it; `export` is
a whole run of retrain.py on a few photos, which builds the retrained graph and tries it. The bound
is five times the file, which is nearly all weights, and 1.5 GB. Needs Linux, and disk for twice the
file in --dir.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
STEPS = ("freeze", "run", "export")
TIMES, SPARE = 5, 1_500_000_000  # the bound: so many times the weights, and so many bytes
PER_CLASS = 12  # photos to retrain on


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", metavar="keras:NAME")
    parser.add_argument("--step", choices=STEPS, help="only this step, in this very process")
    parser.add_argument("--dir", help="where the network's file goes; a temporary one by default")
    options = parser.parse_args()
    if options.step:
        take_step(options.step, options.networks[0], Path(options.dir))
        print(f"peak {own_peak()}")
        return
    for network in options.networks:
        with tempfile.TemporaryDirectory(prefix="memory-", dir=options.dir) as folder:
            for step in STEPS:
                peak, bound = measure(step, network, Path(folder))
                print(
                    f"{network} {step}: {peak / 1e9:.2f} GB, {peak / bound:.2f} of the bound "
                    f"{bound / 1e9:.2f} GB",
                    flush=True,
                )


def measure(step, network, folder):
    """(peak, bound) in bytes of one step in a child process; `freeze` has to come first."""
    command = [sys.executable, __file__, network, "--step", step, "--dir", folder]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    (file,) = folder.glob("models/*/*.pb")
    return int(done.stdout.split()[-1]), TIMES * file.stat().st_size + SPARE


def own_peak():
    """The most memory this process has held, in bytes.

    Not `getrusage`, whose figure a child takes over from the process that started it.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def take_step(step, name, folder):
    """Does one of STEPS in this process."""
    if step == "export":
        retrain_on_few(name, folder)
        return
    from retraining.networks.recipes import Choice
    from retraining.networks.registry import find, obtain
    from retraining.system.observer import Silent

    network = find(name, Choice("random"))
    path = obtain(network, folder / "models", Silent(), offline=True)
    if step == "run":
        run(path, network)


def run(path, network):
    """Computes the vectors of two images."""
    from retraining.graphs.run import Runner
    from retraining.networks.network import load_network

    base = load_network(path, network)
    runner = Runner(base.graph_def, base.input, base.bottleneck)
    runner.run(np.zeros((2, *base.preprocessing.size, 3), np.float32))


def retrain_on_few(name, folder):
    """Retrains the network on generated photos of two classes."""
    import retrain

    rng = np.random.default_rng(0)
    for label, colour in (("red", (220, 60, 60)), ("green", (60, 220, 60))):
        (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
        for number in range(PER_CLASS):
            pixels = np.uint8(rng.normal(colour, 25, (64, 64, 3)).clip(0, 255))
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.jpg")
    code = retrain.main(
        [
            *("--image_dir", str(folder / "photos"), "--model_dir", str(folder / "models")),
            *("--architecture", name, "--weights", "random", "--offline"),
            *("--bottleneck_dir", str(folder / "cache"), "--how_many_training_steps", "50"),
            *("--testing_percentage", "20", "--validation_percentage", "20"),
            *("--output_graph", str(folder / "graph.pb")),
            *("--output_labels", str(folder / "labels.txt")),
            *("--summaries_dir", str(folder / "logs"), "--logging_verbosity", "ERROR"),
        ]
    )
    if code:
        sys.exit(f"retrain.py ended with {code}")


if __name__ == "__main__":
    main()
