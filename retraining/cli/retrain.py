"""The command retrain.py: reads flags, retrains, prints the results on stdout."""

import logging
import shlex
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from retraining.cli.console import (
    DONE,
    ConsoleObserver,
    print_for_programs,
    reports_errors,
    set_verbosity,
)
from retraining.cli.flags import is_quiet, parse_flags
from retraining.cli.start import typed
from retraining.cli.wording import in_flags
from retraining.run.settings import OutputSettings
from retraining.system.text import escaped

if TYPE_CHECKING:
    from retraining.export.verify import HeldOutResult
    from retraining.run.delivery import Results

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted; the work so far is kept; run the same command again to continue"
DESCRIPTION = """Retrains an image classifier on your own photos.

A frozen network turns each photo into a vector (its bottleneck), which is kept on disk; a new
softmax layer is trained on the vectors; the result is one frozen graph and a file of labels.
"""


@partial(reports_errors, interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> int:
    """Retrains according to the flags and prints the results; returns the exit code."""
    options, settings = parse_flags(argv, DESCRIPTION)
    from retraining.run.retrain import retrain  # which takes longer to import than flags to check

    set_verbosity(options.logging_verbosity)
    results = retrain(settings, ConsoleObserver(is_quiet(options)), in_flags)
    for caveat in results.caveats:
        log.warning(caveat)
    print_for_programs()
    print_results(results)
    if options.print_misclassified_test_images:
        print_misclassified(results.test, results.labels)
    for made in results.formats:
        print(f"{made.name}\t{escaped(made.path)}")
    print_comparison(results)
    log.info(what_next(results.settings.outputs))
    return DONE


def what_next(outputs: OutputSettings) -> str:
    """Returns one line on how to see the report, if there is one, and how to label a photo."""
    is_default = outputs.graph == OutputSettings.graph
    chosen = "" if is_default else f"--graph {shlex.quote(outputs.graph)} "
    command = typed("label-image")
    python = "python " if command.endswith(".py") else ""
    label = f"o label a photo, run: {python}{command} {chosen}photo.jpg"
    return f"Open {outputs.report}; t{label}" if outputs.report else f"T{label}"


def print_results(results: "Results") -> None:
    """Prints the results on stdout, one a line: name, tab, value."""
    settings, outputs = results.settings, results.settings.outputs
    print(f"test_accuracy\t{results.test.accuracy:.4f}")
    print(f"test_photos\t{results.test.total}")
    if validated := results.validated:
        print(f"cross_validated_accuracy\t{validated.accuracy:.4f}")
        print(f"cross_validated_low\t{validated.low:.4f}")
        print(f"cross_validated_high\t{validated.high:.4f}")
        print(f"cross_validated_deviation\t{validated.deviation:.4f}")
    print(f"graph\t{escaped(outputs.graph)}")
    print(f"labels\t{escaped(outputs.labels)}")
    if outputs.report:
        print(f"report\t{escaped(outputs.report)}")
    if outputs.model_card:
        print(f"model_card\t{escaped(outputs.model_card)}")
    print(f"metrics\t{escaped(outputs.metrics)}")
    if outputs.bundle:
        print(f"bundle\t{escaped(outputs.bundle)}")
    if settings.bottlenecks.export_file:
        print(f"vectors\t{escaped(settings.bottlenecks.export_file)}")


def print_misclassified(result: "HeldOutResult", labels: list[str]) -> None:
    """Prints the test photos that the model gets wrong: path, class, answer, score."""
    rows = zip(result.paths, result.targets, result.probabilities, strict=True)
    for path, target, answer in rows:
        if answer.argmax() != target:
            names = (path, labels[target], labels[answer.argmax()])
            print("misclassified", *map(escaped, names), f"{answer.max():.5f}", sep="\t")


def print_comparison(results: "Results") -> None:
    """Prints the compared methods: name, top-1 and top-5 on the test photos, seconds."""
    if results.comparison is None:
        return
    for attempt in results.attempts:
        print(
            f"method\t{attempt.method}\t{attempt.top_1:.4f}\t{attempt.top_5:.4f}\t{attempt.seconds:.1f}"
        )
    exported = next(row["method"] for row in results.comparison if row["exported"])
    print(f"exported_method\t{exported}")
    print(f"comparison\t{escaped(results.settings.outputs.comparison)}")
