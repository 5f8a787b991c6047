"""Scores a graph on a folder of photos, for label_image.py --evaluate, and prints the score."""

import argparse
import sys
from collections.abc import Callable, Iterable

from retraining.cli import rows
from retraining.cli.console import (
    DONE,
    FAILED,
    print_for_programs,
    progress_bar,
    reader_left,
    say,
)
from retraining.cli.wording import in_flags
from retraining.labelling import scoring
from retraining.labelling.classifier import Classifier
from retraining.photos.reader import ImageError
from retraining.photos.source import ScanOptions


def evaluate_folder(classifier: Classifier, options: argparse.Namespace) -> int:
    """Labels the photos of a folder of class folders, prints the score; returns the exit code."""
    taken = ScanOptions(options.recursive, label_from=options.label_from)
    photos = scoring.find_labelled(options.evaluate, classifier.labels, taken)
    for warning in photos.warnings:
        say(in_flags(warning))
    bad: list[str] = []

    def leave_out(path: str, error: ImageError) -> None:
        bad.append(path)
        say(f"not scored: {path} {in_flags(str(error))}")

    share, count = options.unknown_threshold, len(photos.paths)
    answers = progress_bar("labelling", "img")(
        classifier.predict(photos.paths, count, share), total=count
    )
    trained = scoring.trained_photos(classifier.described)
    scored = scoring.score(photos.targets, answers, classifier.labels, trained, leave_out)
    result = scoring.Score(scored, rejects=share is not None)
    if not result.photos:
        say("nothing to score: there is no readable photo of a class that the graph has")
        return FAILED
    say(scoring.describe_seen(result))
    if options.format != "text":
        print_for_programs()
    try:
        for line in SCORE_LINES[options.format](result):
            print(line)
        if options.print_misclassified:
            for line in MISTAKE_LINES[options.format](result):
                print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_left(bool(bad))
    return FAILED if bad else DONE


SCORE_LINES: dict[str, Callable[[scoring.Score], Iterable[str]]] = {
    "text": scoring.text_lines,
    "tsv": scoring.tsv_lines,
    "jsonl": lambda result: [rows.to_json(scoring.to_dict(result))],
}
MISTAKE_LINES: dict[str, Callable[[scoring.Score], Iterable[str]]] = {
    "text": scoring.misclassified_lines,
    "tsv": scoring.misclassified_lines,
    "jsonl": lambda result: map(rows.to_json, scoring.misclassified_dicts(result)),
}
