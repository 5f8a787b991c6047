"""Runs the commands of commands.py on an old commit and on this tree, and compares what comes out.

    python -m tests.golden.compare --base REV [--only NAME ...] [--list]

Compared are stdout, stderr, the exit code and every output file; normalize.py and outputs.py tell
what of them is left out. Both sides run with this interpreter on one processor, in folders of the
same paths, on the same files. What the old commit gave is kept in the cache, so that a second
comparison runs this tree only. Exit code 1: something differs.
"""

import argparse
import difflib
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests import ROOT
from tests.golden import fixtures, normalize, outputs
from tests.golden.commands import COMMANDS

TREE = ROOT
CACHE = Path("~/.cache/retraining-golden").expanduser()
BY_NAME = {command.name: command for command in COMMANDS}
PRELUDE = """
retrain() { "$PYTHON" "$CODE/retrain.py" "$@"; }
label_image() { "$PYTHON" "$CODE/label_image.py" "$@"; }
"""
SECONDS = 300  # that a command may take
SHOWN = 12  # lines of each difference, unless all are asked for
PACKAGES = ("tensorflow", "numpy", "pillow", "keras", "ray", "onnx")


@dataclass(frozen=True)
class Result:
    """What a command left in `folder`: stdout, stderr, the exit code, the folder `files`."""

    folder: Path

    def text(self, name, names):
        """stdout or stderr, as far as two runs share it."""
        content = (self.folder / name).read_bytes().decode("utf-8", "backslashreplace")
        return normalize.text(content, names)

    @property
    def facts(self):
        return json.loads((self.folder / "result.json").read_text())

    def described(self, names):
        """{what: lines} of all that is compared."""
        streams = {name: self.text(name, names).split("\n") for name in ("stdout", "stderr")}
        code = {"exit code": [str(self.facts["code"])]}
        return {**code, **streams, **outputs.describe(self.folder / "files", names)}


class Sides:
    """Runs commands by old and new code in one cache folder."""

    def __init__(self, cache, revision):
        self.cache, self.new = cache, TREE
        self.commit = _git("rev-parse", f"{revision}^{{commit}}")
        self.old = cache / "code" / self.commit
        self.names = {self.old: "<code>", self.new: "<code>", cache: "<cache>"}
        self._store = None
        self._unpack()
        for name in ("home", "tmp", "results"):
            (cache / name).mkdir(exist_ok=True)
        make = [sys.executable, "-m", "tests.golden.fixtures", cache / "fixtures"]
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(make, cwd=TREE, env=quiet, check=True, stderr=subprocess.DEVNULL)

    def _unpack(self):
        if not self.old.is_dir():
            aside = self.old.with_suffix(".part")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            archive = subprocess.Popen(
                ["git", "archive", self.commit], cwd=TREE, stdout=subprocess.PIPE
            )
            subprocess.run(["tar", "-x"], cwd=aside, stdin=archive.stdout, check=True)
            if archive.wait():
                raise SystemExit(f"git archive {self.commit} failed")
            aside.rename(self.old)

    def old_result(self, command):
        """What the old code gives, from the cache if it ran before."""
        folder = self.cache / "results" / self.commit[:12] / f"{command.name}-{self._key(command)}"
        if not (folder / "result.json").is_file():
            self._run(command, self.old, folder)
        return Result(folder)

    def new_result(self, command):
        """What this tree gives, now."""
        folder = self.cache / "results" / "new" / command.name
        self._run(command, self.new, folder)
        return Result(folder)

    def _key(self, command):
        """Names all that the old result depends on but the commit."""
        facts = [command.line, fixtures.VERSION, sys.version, PRELUDE]
        facts += [metadata.version(name) for name in PACKAGES]
        facts += [inspect.getsource(command.setup)] if command.setup else []
        facts += [self._key(BY_NAME[command.after])] if command.after else []
        return hashlib.sha1(repr(facts).encode()).hexdigest()[:12]

    def _run(self, command, code, folder):
        run = self.cache / "run"
        shutil.rmtree(run, ignore_errors=True)
        if command.after:
            before = self.old_result(BY_NAME[command.after])
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(before.folder / "files", run, symlinks=True)
        run.mkdir(exist_ok=True)
        if command.setup:
            command.setup(run)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment, started = self._environment(command, code), time.monotonic()
        exit_code = _execute(command.line, run, environment, folder)
        seconds = round(time.monotonic() - started, 2)
        run.rename(folder / "files")
        if changed := fixtures.changed(self.cache / "fixtures"):
            raise SystemExit(f"{command.name} changed {changed[0]}; remove the fixtures")
        facts = {"code": exit_code, "seconds": seconds, "line": command.line}
        (folder / "result.json").write_text(json.dumps(facts))

    def _environment(self, command, code):
        """The whole environment of a command: the caller's own has no say."""
        variables = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "100"}
        variables |= {"HOME": str(self.cache / "home"), "TMPDIR": str(self.cache / "tmp")}
        variables |= {"PYTHON": sys.executable, "CODE": str(code), "PYTHONHASHSEED": "0"}
        variables |= {"GOLDEN": str(TREE / "tests" / "golden"), "RAY_USAGE_STATS_ENABLED": "0"}
        variables |= {"CUDA_VISIBLE_DEVICES": "", "no_proxy": "127.0.0.1"}
        if "s3://photos" in command.line:
            variables |= self._bucket()
        return variables

    def _bucket(self):
        """The variables by which the bucket `photos` of a server in this process is found."""
        if self._store is None:
            from tests.object_store import ObjectStore

            self._store = ObjectStore()
            self._store.upload(self.cache / "fixtures" / "few", "few")
        return self._store.environment


def _git(*words):
    return subprocess.run(
        ["git", *words], cwd=TREE, check=True, capture_output=True, text=True
    ).stdout.strip()


def _execute(line, run, environment, folder):
    """Runs a line of bash on one processor; its exit code, or `timeout`."""
    pin = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen(
            [*pin, "bash", "-o", "pipefail", "-c", PRELUDE + line],
            cwd=run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def differences(old, new, most=SHOWN):
    """Lines of unified diffs between two {what: lines}, `most` of each; none if they are equal."""
    lines = []
    for name in {**old, **new}:  # the exit code, what was said, then the files
        before, after = old.get(name, []), new.get(name, [])
        if before != after:
            diff = difflib.unified_diff(before, after, f"old {name}", f"new {name}", "", "", 1, "")
            found = list(diff)
            left = len(found) - most
            lines += found[:most] + ([f"... and {left} more lines"] if left > 0 else [])
    return lines


def unexpected(command, result, names):
    """Lines on what the old result has not that the table promises."""
    said = "\n".join(result.text(name, names) for name in ("stdout", "stderr"))
    lines = []
    if result.facts["code"] != command.code:
        lines.append(f"the old code's exit code is {result.facts['code']}, not {command.code}")
    if command.says not in said:
        lines.append(f"the old code does not say {command.says!r}")
    if command.silent_on and command.silent_on in said:
        lines.append(f"the old code says {command.silent_on!r}")
    return [*lines, *said.split("\n")] if lines else []


def compare(command, sides, most=SHOWN):
    """(the difference in lines, seconds of the old and of the new side)"""
    old = sides.old_result(command)
    lines = unexpected(command, old, sides.names)
    new = sides.new_result(command)
    lines += differences(old.described(sides.names), new.described(sides.names), most)
    return lines, old.facts["seconds"], new.facts["seconds"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", metavar="REV", help="the old commit")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BY_NAME, default=list(BY_NAME))
    parser.add_argument("--cache", type=Path, default=CACHE, help="outside of the project")
    parser.add_argument("--all_lines", action="store_true", help="show differences in full")
    parser.add_argument("--list", action="store_true", help="list the commands and do nothing")
    options = parser.parse_args(argv)
    if options.list:
        for command in COMMANDS:
            print(command.name, command.line, sep="\t")
        return 0
    if not options.base:
        parser.error("--base names the commit to compare with")
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    import fcntl  # which Windows has not

    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one folder in which commands run
        return report(options, Sides(cache, options.base))


def report(options, sides):
    """Compares the commands, a line each; 1 if one differs."""
    outputs.load_tensorflow()
    bad, total = [], [0.0, 0.0]
    for name in options.only:
        most = sys.maxsize if options.all_lines else SHOWN
        lines, *seconds = compare(BY_NAME[name], sides, most)
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        print(
            f"{'DIFFERS' if lines else 'same'}\t{name}\t{seconds[0]} s\t{seconds[1]} s", flush=True
        )
        for line in lines:
            print(f"    {line if options.all_lines else line[:200]}")
        bad += [name] * bool(lines)
    print(
        f"{len(options.only) - len(bad)} of {len(options.only)} commands give the same; "
        f"{total[0]:.0f} s by the old code, {total[1]:.0f} s by the new"
    )
    if bad:
        print(f"they differ in: {' '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
