"""Labels images as the flags of label_image.py ask for, and prints their labels."""

import argparse
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retraining.bottlenecks.stream import FLUSH, Answer
from retraining.cli import rows
from retraining.cli.console import DONE, FAILED, ConsoleObserver, reader_left, say
from retraining.cli.label_flags import GRAPH, STDIN, is_many
from retraining.cli.start import typed
from retraining.cli.wording import in_flags
from retraining.errors import RetrainingError
from retraining.graphs.nodes import GraphError
from retraining.labelling.classifier import Classifier, load_classifier
from retraining.labelling.labels import read_labels
from retraining.labelling.resolve import Overrides
from retraining.labelling.sorting import Sorter
from retraining.photos.archive import ArchiveSource
from retraining.photos.bounds import MAX_PIXELS, ImageFileError
from retraining.photos.class_folders import some_names
from retraining.photos.folder import files_below, look_at_image
from retraining.photos.formats import claims_to_be_image
from retraining.photos.reader import ImageError
from retraining.system.addresses import take_login
from retraining.system.lines import (
    LONGEST_LINE,
    LineError,
    LongLineError,
    line_batches,
    nul_batches,
)
from retraining.system.text import as_path, counted

KERAS_PREFIX = "keras:"  # that of networks.keras, which few graphs need
NAMED = 3  # files that are no images, of a folder


class ListError(RetrainingError):
    """Standard input does not hold a list of paths."""


def run(options: argparse.Namespace) -> int:
    """Labels images, or scores a graph on a folder of photos; returns the exit code."""
    classifier = open_graph(options)
    classifier = replace(classifier, max_pixels=options.max_image_pixels)
    for note in classifier.notes:
        say(in_flags(note))
    if options.raw_scores:
        classifier = replace(classifier, temperature=classifier.raw_temperature)
    if options.evaluate:
        from retraining.cli.scores import evaluate_folder

        return evaluate_folder(classifier, options)
    return label_images(classifier, options)


def open_graph(options: argparse.Namespace) -> Classifier:
    """Returns the Classifier of the graph or the network that the flags name."""
    if options.graph.lower().startswith(KERAS_PREFIX):
        return load_stock(options)
    if options.weights:
        raise GraphError(f"{options.graph} has weights of its own; --weights is for keras:NAME")
    if options.graph == GRAPH and not os.path.exists(GRAPH):
        raise GraphError(
            f"there is no graph {GRAPH}; train one with {typed('retrain')}, or name it with --graph"
        )
    return load_classifier(
        options.graph, options.labels, overrides(options), options.precision, options.runtime
    )


def load_stock(options: argparse.Namespace) -> Classifier:
    """Returns the Classifier of a whole network of keras.applications, for ImageNet's classes."""
    from retraining.networks.keras import KerasRecipe, imagenet_labels, without_background
    from retraining.networks.recipes import Choice, ModelFiles
    from retraining.networks.registry import made_by, obtain

    recipe = KerasRecipe.named(options.graph, Choice(options.weights), classifier=True)
    shown = ConsoleObserver(quiet=False)
    path = obtain(made_by(recipe), options.model_dir, shown, offline=options.offline)
    if options.labels:
        labels = without_background(read_labels(options.labels))
    else:
        labels = imagenet_labels(ModelFiles(Path(options.model_dir), options.offline, shown))
    about = replace(overrides(options), input_mean=recipe.mean, input_std=recipe.std)
    return load_classifier(path, labels, about, options.precision, options.runtime)


def overrides(options: argparse.Namespace) -> Overrides:
    """Returns the flags that say what a graph does not."""
    return Overrides(
        options.input_layer,
        options.output_layer,
        options.input_height,
        options.input_width,
        options.input_mean,
        options.input_std,
        options.allow_unsafe_ops,
    )


def label_images(classifier: Classifier, options: argparse.Namespace) -> int:
    """Labels the images in their order, printing each at once; returns the exit code."""
    sorter = make_sorter(classifier, options)
    count = len(options.images) if options.single else None
    share = options.unknown_threshold
    labelled = failed = 0
    try:
        write = rows.make_writer(options.format, options.columns, options.header)
        for path, answer, novelty in classifier.predict(image_paths(options), count, share):
            labelled += 1
            ranking = ranked(answer, classifier.labels, options)
            if novelty is not None:
                ranking = [(classifier.unknown_label, novelty), *ranking[: options.top_k - 1]]
            if isinstance(answer, ImageError):
                failed += 1
                say(f"{path} {in_flags(str(answer))}")
            elif sorter and ranking:
                sorter.place(path, ranking[0][0])
            write(path, answer, ranking)
            sys.stdout.flush()
    except BrokenPipeError:
        return reader_left(failed > 0)
    if not labelled:
        say("no images were found")
    if sorter:
        placed, known = counted(sorter.placed, "image"), counted(sorter.known, "was", "were")
        say(f"{placed} put into {sorter.folder}, {known} there already")
    return FAILED if failed or not labelled else DONE


def image_paths(options: argparse.Namespace) -> Iterator[str]:
    """Yields the path of each image: files as given, images in folders sorted, paths on stdin.

    URLs come without their passwords.
    """
    sorted_into = options.sort_into and os.path.realpath(options.sort_into)
    for name in options.images:
        if name == STDIN:
            stdin: Any = sys.stdin.buffer  # its declared type has no read1
            yield from paths_on(stdin, options.null)
        elif is_many(name):
            yield from images_below(name, sorted_into)
        else:
            yield take_login(name)


def paths_on(stream: io.BufferedIOBase, null: bool = False) -> Iterator[str]:
    """Yields the paths on a byte stream, one a line or, if `null`, each up to a NUL.

    Yields FLUSH before it may wait for more.

    Raises:
        ListError: the text is no list of paths.
    """
    batches = nul_batches(stream) if null else line_batches(stream, errors="surrogateescape")
    empty = 0  # lines since the last path
    try:
        yield FLUSH
        for lines in batches:
            paths = [take_login(as_path(line)) for line in lines if line]
            empty = 0 if paths else empty + len(lines)
            if empty > LONGEST_LINE:
                raise LongLineError(empty)
            yield from paths
            yield FLUSH
    except LongLineError as error:
        raise ListError(
            f"standard input has no path within {LONGEST_LINE} bytes; give -0 if NUL ends each "
            f"path, and no -0 if a line end does"
        ) from error
    except LineError as error:
        raise ListError(
            f"line {error.line} of standard input {error}, or give -0 if NUL ends each path"
        ) from error


def images_below(folder: str, left_out: str | None = None) -> Iterator[str]:
    """Yields the files below a folder that are images, or are named like images, sorted.

    The folder may be an archive. Leaves out hidden files and the folder of real path `left_out`.
    Holds the names of one folder at a time. Says at the end which files are not images.
    """
    others, first = 0, list[str]()
    archived = ArchiveSource.claims(folder)
    files = ArchiveSource(folder).files_below(folder, recursive=True) if archived else None
    for path, _ in files or files_below(folder, left_out=left_out):
        try:
            ArchiveSource(folder).look_at(path, MAX_PIXELS) if archived else look_at_image(path)
        except ImageFileError as error:
            if not claims_to_be_image(path, error):
                others += 1
                first += [path] if len(first) <= NAMED else []
                continue
        yield path
    if others:
        say(
            f"{counted(others, 'file is not an image', 'files are not images')}: "
            f"{some_names(first)}"
        )


def ranked(
    answer: Answer, labels: Sequence[str], options: argparse.Namespace
) -> list[tuple[str, float]]:
    """Returns [(label, probability), ...], the likeliest first; [] for an ImageError."""
    if isinstance(answer, ImageError):
        return []
    best = (-answer).argsort(kind="stable")[: options.top_k]
    least = -math.inf if options.min_score is None else options.min_score
    return [(labels[i], float(answer[i])) for i in best if answer[i] >= least]


def make_sorter(classifier: Classifier, options: argparse.Namespace) -> Sorter | None:
    """Returns the Sorter that the flags ask for, or None."""
    if not options.sort_into:
        return None
    labels = [*classifier.labels, classifier.unknown_label]
    sorter = Sorter(options.sort_into, labels, options.sort_by)
    sorter.check_apart(filter(os.path.isdir, options.images))
    return sorter
