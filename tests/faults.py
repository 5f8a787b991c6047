"""Kills retrain.py at each call that changes a file, or fills the disk there; checks what is left.

    python -m tests.faults [--runs plain,folds] [--faults kill,full] [--first 1] [--every 1]

Each run is retrain.py on generated photos and a tiny network, over an earlier model of fewer
classes. After each fault the command checks that

- the outputs are all of the earlier model or all of the new one, once the next start has looked,
- the store has every vector that it had, and each vector has its value,
- a full disk ends the run with one line and exit code 1 (or does no harm to the model),
- the same command then succeeds, with the result of a run without a fault,
- nothing is left over then, of files or processes, and other files are as they were.

Prints a table on stdout; what fails goes to stderr, and the exit code is then 1. Runs on Linux on
x86-64; see tests/syscalls.py.
"""

import argparse
import contextlib
import os
import re
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from retraining.bottlenecks.store import check_sum
from tests.syscalls import supervise

OLD_CLASSES = {"red": 12, "green": 12}
NEW_CLASSES = {"red": 12, "green": 12, "blue": 12}
# TensorBoard's folders are of one run each, and have the time in their names.
# Python's `tempfile` tries with a file of its own whether it can write into a folder.
ALLOWED = re.compile(r"logs/.+|tmp/[a-z0-9_]{8}")
NUMBER = re.compile(rb"\d+(\.\d+)?(e-?\d+)?")
TUNING = ("--fine_tune", "all", "--fine_tune_epochs", "2", "--folds", "2")


@dataclass(frozen=True)
class Run:
    """A run of retrain.py to be disturbed; `{0}` in its flags is the folder it works in."""

    flags: tuple[str, ...] = ()
    children: bool = False  # it has child processes


RUNS = {
    "plain": Run(("--no_report", "--label_audit", "")),
    "folds": Run(("--folds", "5", "--export_vectors", "{0}/out/vectors.parquet")),
    "fine_tune": Run(TUNING),
    "compare": Run(("--compare", "head,two_rates", *TUNING[2:])),
    "saved_model": Run(("--saved_model_dir", "{0}/out/saved"), children=True),
    "tflite": Run(("--tflite_file", "{0}/out/model.tflite"), children=True),
    "onnx": Run(("--onnx_file", "{0}/out/model.onnx"), children=True),
}


def prepare(folder):
    """Writes photos, a network, and files of the user's that no run may touch."""
    from tests import tiny

    network = folder / "models" / "inception_dec_2015" / "tensorflow_inception_graph.pb"
    tiny.write_graph(str(network), tiny.tiny_inception())
    tiny.write_photos(folder / "photos" / "new", NEW_CLASSES)
    tiny.write_photos(folder / "photos" / "old", OLD_CLASSES)
    for name in ("out/mine.txt", "cache/mine.txt", "logs/mine.txt", "tmp/mine.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")


def arguments(folder, photos, flags):
    """Returns the flags of a run in the folder."""
    return [
        *("--image_dir", f"{folder}/photos/{photos}", "--model_dir", f"{folder}/models"),
        *("--bottleneck_dir", f"{folder}/cache", "--output_graph", f"{folder}/out/graph.pb"),
        *("--summaries_dir", f"{folder}/logs", "--how_many_training_steps", "20"),
        *("--precision", "float32", "--learning_rate", "0.1", "--eval_step_interval", "10"),
        *(flag.format(folder) for flag in flags),
    ]


def retrains(folder, photos, flags, log):
    """Returns a function that runs retrain.py in a forked process; it returns the exit code."""

    def work():
        from retraining.cli.retrain import main

        os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.argv[0] = "retrain.py"  # which begins the lines of errors
        code = main(arguments(folder, photos, flags))
        sys.stdout.flush()
        return code

    return work


def starts(folder, flags):
    """Returns a function that does what a run does before it writes."""

    def work():
        from retraining.cli.flags import parse_flags
        from retraining.run.outputs import check_outputs

        os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
        check_outputs([], parse_flags(arguments(folder, "new", flags), "")[1])
        return 0

    return work


def forked(work):
    """Returns the exit code of a forked process that calls `work`."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os._exit(work())
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder):
    """Returns {path: bytes} of all files below the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def outputs(tree):
    """Returns those of {path: bytes} that are outputs, without temporary files."""
    named = tree.items()
    return {name: content for name, content in named if re.match(r"out/(?!\.|mine)", name)}


def vectors(folder):
    """Returns {(store, key): row} of all stores, read from a copy; raises sqlite3.Error."""
    rows = {}
    with tempfile.TemporaryDirectory() as aside:
        copy = shutil.copytree(folder / "cache", Path(aside, "cache"))
        for path in copy.glob("*.sqlite"):
            if path.name != "file_keys.sqlite":
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    for row in _rows(connection):
                        rows[path.name, row[0]] = row
    return rows


def _rows(connection):
    if not list(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors'")):
        return
    for key, blob, mark, stored in connection.execute("SELECT * FROM vectors"):
        if stored != check_sum(key, blob, mark):
            raise sqlite3.DatabaseError(f"the row of {key} is damaged")
        yield key, blob, mark, stored


@dataclass
class Expected:
    """What a run without a fault leaves: the files, and which of them no two runs write alike."""

    tree: dict[str, bytes]
    another: dict[str, bytes]

    def differences(self, tree):
        """Returns lines on how the outputs in {path: bytes} differ from the expected."""
        wanted, got = outputs(self.tree), outputs(tree)
        lines = [f"{name} is missing" for name in wanted.keys() - got.keys()]
        lines += [f"{name} is too many" for name in got.keys() - wanted.keys()]
        alike = wanted.keys() & got.keys()
        return lines + [f"{name} differs" for name in alike if not self._same(name, got[name])]

    def _same(self, name, content):
        first, second = self.tree[name], self.another.get(name, b"")
        if first == second:
            return content == first
        if name.endswith("fingerprint.pb"):  # TensorFlow draws numbers at random for it
            return True
        masked = {NUMBER.sub(b"", text) for text in (first, second)}
        # Times differ between runs; some libraries also write names by chance.
        return len(masked) > 1 or NUMBER.sub(b"", content) in masked


@dataclass
class Bench:
    """One run's folder before the run, and what it leaves if nothing goes wrong."""

    run: Run
    folder: Path  # where each trial goes on; the paths in outputs are always the same
    before: Path
    log: Path
    fresh: Expected = field(init=False)
    again: Expected = field(init=False)  # of the same command over its own outputs
    rows: dict = field(init=False)
    old_rows: dict = field(init=False)
    old: dict = field(init=False)

    def __post_init__(self):
        prepare(self.folder)
        self.calm("old")
        shutil.copytree(self.folder, self.before)
        self.old, self.old_rows = contents(self.folder), vectors(self.folder)
        once, twice = [], []
        for _ in range(2):
            self.reset()
            for trees in (once, twice):
                self.calm("new")
                trees.append(contents(self.folder))
        self.rows = vectors(self.folder)
        self.fresh, self.again = Expected(*once), Expected(*twice)

    def reset(self):
        """Puts the folder as it was before the run."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.before, self.folder)

    def work(self, photos):
        """Returns the function that runs the command."""
        return retrains(self.folder, photos, self.run.flags, self.log)

    def calm(self, photos):
        """Runs the command without a fault."""
        code = forked(self.work(photos))
        if code:
            raise SystemExit(f"the run without a fault failed: {self.log.read_text()[-2000:]}")

    def disturbed(self, number, fault):
        """Runs with a fault at the n-th call; returns the Course and lines on what failed."""
        self.reset()
        course = supervise(self.work("new"), self.folder, number, fault)
        if not course.hit:
            return course, []
        lines = ["a child process is still there"] * course.outlived
        lines += [*self.told(course, fault), *self.unharmed(), *self.stored()]
        if forked(starts(self.folder, self.run.flags)):
            lines.append("the next start fails")
        tree = contents(self.folder)
        is_old = outputs(tree) == outputs(self.old)
        if not is_old:
            lines += [f"neither old nor new: {line}" for line in self.fresh.differences(tree)]
        if course.code == 0 and is_old:
            lines.append("exit code 0, but the outputs are old")
        return course, lines + self.next_run(is_old)

    def told(self, course, fault):
        """Returns lines on what is wrong with the end of the disturbed run and what it said."""
        if fault == "kill":
            return [f"exit code {course.code}"] * (course.code != -9)
        text = self.log.read_text(errors="replace")
        if course.code not in (0, 1) or "Traceback" in text or "Exception ignored" in text:
            return [f"exit code {course.code}: {text[-1500:]}"]
        errors = re.findall(r"^retrain\.py: .*", text, re.MULTILINE)
        return [f"error lines: {errors}"] * (len(errors) != course.code)

    def unharmed(self):
        """Returns lines on files of the user's that are gone or others."""
        tree = contents(self.folder)
        mine = {name for name in self.old if not re.match(r"out/(?!mine)|cache/(?!mine)", name)}
        return [f"{name} is harmed" for name in mine if tree.get(name) != self.old[name]]

    def stored(self):
        """Returns lines on vectors that are lost or wrong."""
        try:
            rows = vectors(self.folder)
        except sqlite3.Error as error:
            return [f"the store is damaged: {error}"]
        lost = [key for key in self.old_rows if rows.get(key) != self.old_rows[key]]
        wrong = [key for key in rows if rows[key] != self.rows.get(key)]
        return [f"{len(lost)} vectors are lost"] * bool(lost) + [
            f"{len(wrong)} vectors are wrong"
        ] * bool(wrong)

    def next_run(self, is_old):
        """Runs the same command again; returns lines on what differs from a run without a fault."""
        if code := forked(self.work("new")):
            return [f"the next run: exit code {code}: {self.log.read_text()[-500:]}"]
        expected, tree = self.fresh if is_old else self.again, contents(self.folder)
        lines = [*expected.differences(tree), *self.unharmed()]
        lines += ["other vectors"] * (vectors(self.folder) != self.rows)
        extra = [name for name in tree.keys() - expected.tree.keys() if not ALLOWED.fullmatch(name)]
        # A scratch folder that its process had no time to lock is empty, and nobody knows whose.
        extra += [
            str(p) for p in (self.folder / "tmp").iterdir() if p.is_dir() and any(p.iterdir())
        ]
        return [f"the next run: {line}" for line in lines + [f"{name} is left" for name in extra]]


def disturb(bench, name, fault, first, every):
    """Tries the fault at every n-th call of a run; returns (calls, faults tried, failures)."""
    tried, failures, number = 0, 0, first
    while True:
        course, lines = bench.disturbed(number, fault)
        if not course.hit:
            return course.calls, tried, failures
        tried, failures = tried + 1, failures + bool(lines)
        for line in lines:
            print(f"{name}, {fault} at call {number}, {course.hit}: {line}", file=sys.stderr)
        number += every


def warm_up():
    """Imports what each run would import, so that forked processes need not."""
    import jinja2  # noqa: F401
    import PIL.JpegImagePlugin  # noqa: F401
    import scipy.optimize  # noqa: F401

    import retraining.cli.retrain  # noqa: F401
    from retraining.graphs.tensorflow import import_tensorflow

    import_tensorflow()


def main(argv=None):
    """Tries the faults and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default=",".join(RUNS), help="names, with commas between")
    parser.add_argument("--faults", default="kill,kill child,full")
    parser.add_argument("--first", type=int, default=1, help="the number of the first call to try")
    parser.add_argument("--every", type=int, default=1, help="try every n-th call only")
    options = parser.parse_args(argv)
    warm_up()
    print(
        "| run | fault | calls | tried | failures |", "|---|---|---|---|---|", sep="\n", flush=True
    )
    failed = 0
    for name in options.runs.split(","):
        with tempfile.TemporaryDirectory() as place:
            bench = Bench(RUNS[name], *(Path(place, part) for part in ("work", "before", "log")))
            for fault in options.faults.split(","):
                if fault == "kill child" and not bench.run.children:
                    continue
                figures = disturb(bench, name, fault, options.first, options.every)
                print("|", " | ".join(map(str, (name, fault, *figures))), "|", flush=True)
                failed += figures[-1]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
