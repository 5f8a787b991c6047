"""The command label_image.py: reads images, prints labels."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retraining.bottlenecks.extract import FLUSH, Answer
from retraining.cli import rows
from retraining.cli.console import (
    DONE,
    FAILED,
    ConsoleObserver,
    print_for_programs,
    progress_bar,
    reader_left,
    reports_errors,
    say,
)
from retraining.cli.parser import ALLOW_UNSAFE_OPS, Parser, add_weights, number
from retraining.cli.start import typed
from retraining.cli.wording import in_flags
from retraining.errors import RetrainingError
from retraining.evaluation.unknown import STRANGEST_SHARE
from retraining.graphs.nodes import GraphError
from retraining.graphs.precision import PRECISIONS
from retraining.graphs.preprocessing import PerChannel, channels, per_channel
from retraining.labelling import scoring
from retraining.labelling.classifier import (
    FEW,
    Classifier,
    load_classifier,
    read_labels,
)
from retraining.labelling.resolve import Overrides
from retraining.labelling.sorting import WAYS, Sorter
from retraining.networks.keras import KERAS_PREFIX, KerasRecipe, imagenet_labels, without_background
from retraining.networks.recipes import Choice, ModelFiles
from retraining.networks.registry import made_by, obtain
from retraining.photos.bounds import MAX_PIXELS, ImageFileError
from retraining.photos.class_folders import some_names
from retraining.photos.folder import files_below, look_at_image
from retraining.photos.formats import claims_to_be_image
from retraining.photos.reader import ImageError
from retraining.photos.registry import is_table
from retraining.photos.url import is_url
from retraining.system.lines import (
    LONGEST_LINE,
    LineError,
    LongLineError,
    line_batches,
    nul_batches,
)
from retraining.system.text import as_path, counted

DESCRIPTION = """Labels images with a retrained graph, or with any frozen image classifier.

Give image files, folders, or `-` for a list of paths on standard input. A graph from retrain.py
knows its labels and how to feed it images. For other graphs, use the flags below.
"""
STDIN = "-"
GRAPH = "models/retrained_graph.pb"  # where retrain.py puts it
MOST_LABELS = 5  # of an image
NAMED = 3  # files that are no images, of a folder


class ListError(RetrainingError):
    """Standard input does not hold a list of paths."""


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Reads the graph, then labels every image, or scores the graph on a folder of photos."""
    options = parse_flags(argv)
    if options.graph.lower().startswith(KERAS_PREFIX):
        classifier = load_stock(options)
    else:
        if options.graph == GRAPH and not os.path.exists(GRAPH):
            raise GraphError(
                f"there is no graph {GRAPH}; train one with {typed('retrain')}, or give its "
                f"path with --graph"
            )
        classifier = load_classifier(
            options.graph, options.labels, overrides(options), options.precision
        )
    classifier = replace(classifier, max_pixels=options.max_image_pixels)
    for note in classifier.notes:
        say(in_flags(note))
    if options.raw_scores:
        classifier = replace(classifier, temperature=1.0)
    if options.evaluate:
        return evaluate_folder(classifier, options)
    return label_images(classifier, options)


def load_stock(options: argparse.Namespace) -> Classifier:
    """Returns the Classifier of a whole network of keras.applications, for ImageNet's classes."""
    recipe = KerasRecipe.named(options.graph, Choice(options.weights), classifier=True)
    shown = ConsoleObserver(quiet=False)
    path = obtain(made_by(recipe), options.model_dir, shown, offline=options.offline)
    if options.labels:
        labels = without_background(read_labels(options.labels))
    else:
        labels = imagenet_labels(ModelFiles(Path(options.model_dir), options.offline, shown))
    about = replace(overrides(options), input_mean=recipe.mean, input_std=recipe.std)
    return load_classifier(path, labels, about, options.precision)


def label_images(classifier: Classifier, options: argparse.Namespace) -> int:
    """Labels the images in their order, printing each at once; returns the exit code."""
    sorter = make_sorter(classifier, options)
    few = options.single and len(options.images) <= FEW
    share = options.unknown_threshold
    labelled = failed = 0
    try:
        write = rows.make_writer(options.format, options.columns, options.header)
        for path, answer, novelty in classifier.predict(image_paths(options), few, share):
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


def evaluate_folder(classifier: Classifier, options: argparse.Namespace) -> int:
    """Labels the photos of a folder of class folders, prints the score; returns the exit code."""
    photos = scoring.find_labelled(options.evaluate, classifier.labels, options.recursive)
    for warning in photos.warnings:
        say(in_flags(warning))
    bad: list[str] = []

    def leave_out(path: str, error: ImageError) -> None:
        bad.append(path)
        say(f"not scored: {path} {in_flags(str(error))}")

    share, few = options.unknown_threshold, len(photos.paths) <= FEW
    answers = progress_bar("labelling", "img")(
        classifier.predict(photos.paths, few, share), total=len(photos.paths)
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


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the checked flags. Bad flags end the program with one line and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(spell_out_null(sys.argv[1:] if argv is None else argv))
    if options.input_std is not None and 0 in channels(options.input_std):
        parser.error("--input_std 0 would divide by zero; give the graph's own value")
    options.images = [*([options.image] if options.image else []), *options.images]
    if options.null and STDIN not in options.images:
        options.images.append(STDIN)
    options.single = not any(map(is_many, options.images))
    if options.evaluate is not None:
        check_evaluation(options, parser)
    else:
        check_labelling(options, parser)
    return options


def spell_out_null(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with --null in place of -0.

    If argparse knew -0, it would also take the -1 of `--input_mean -1` for a flag.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before = ["--null" if word == "-0" else word for word in arguments[:end]]
    return [*before, *arguments[end:]]


def check_evaluation(options: argparse.Namespace, parser: Parser) -> None:
    """Refuses flags that have no meaning with --evaluate; chooses the format."""
    if options.images:
        parser.error("--evaluate takes its photos from its folder; give no other images")
    if options.recursive and is_table(options.evaluate):
        parser.error("--recursive is for folders; a table names its photos")
    if is_url(options.evaluate):
        parser.error("--evaluate takes a folder of this machine, no URL")
    for name in ("columns", "header", "min_score", "sort_into", "top_k"):
        if getattr(options, name) is not None:
            parser.error(f"--{name} has no effect with --evaluate")
    if options.raw_scores and not options.print_misclassified:
        parser.error("--raw_scores changes no answer; it needs --print_misclassified here")
    options.format = options.format or "tsv"
    if options.format not in SCORE_LINES:
        parser.error(f"--evaluate gives {', '.join(SCORE_LINES)}, not {options.format}")


def check_labelling(options: argparse.Namespace, parser: Parser) -> None:
    """Refuses flags that exclude each other; chooses the format."""
    for name in ("recursive", "print_misclassified"):
        if getattr(options, name):
            parser.error(f"--{name} needs --evaluate")
    options.top_k = options.top_k or MOST_LABELS
    if not options.images:
        parser.error("give an image, a folder, or - for a list of paths on standard input")
    if options.sort_into == "":
        parser.error("--sort_into must name a folder")
    if options.sort_into and any(map(is_url, options.images)):
        parser.error("--sort_into takes images of this machine, no URLs")
    table = options.columns or options.header is not None
    one = options.single and len(options.images) == 1
    options.format = options.format or ("text" if one and not table else "tsv")
    if options.format == "text" and table:
        parser.error("--columns and --header are for tsv, csv and jsonl, not for text")
    if options.format == "jsonl" and options.header is not None:
        parser.error("--header is for tsv and csv; in jsonl each row names its columns")
    if options.csv_safe:
        if options.format != "csv":
            parser.error("--csv_safe is for --format csv")
        options.format = rows.SAFE_CSV
    if options.format == "text" and not one:
        options.format = "text with names"


def build_parser() -> Parser:
    """Returns the parser of all flags, in groups; flags of the classic keep their names."""
    parser = Parser(prog=typed("label-image"), description=DESCRIPTION)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="file, folder, URL of a file, or - for paths on standard input",
    )
    add = parser.add_argument_group("images").add_argument
    add("--image", help="another image, as in the classic")
    add(
        "--null",
        action="store_true",
        help="or -0: read paths from standard input, even without -, each ending in NUL instead "
        "of a line end, as `find -print0` writes them",
    )
    add(
        "--max_image_pixels",
        type=number(int, 1),
        default=MAX_PIXELS,
        help="refuse larger images without decoding them",
    )
    add(
        "--evaluate",
        metavar="DIR|TABLE",
        help="instead of labels, print how well the graph labels the photos of a folder with one "
        "sub-folder per class (also within train, val and test folders), or of a table as for "
        "retrain.py --photo_table: accuracy, its 95%% interval, a row per class, and confusions; "
        "also the accuracy on photos that the graph was not trained on, if it lists those it was "
        "trained on",
    )
    add(
        "--recursive",
        action="store_true",
        help="with --evaluate: also take photos from folders below the class folders",
    )
    add(
        "--print_misclassified",
        action="store_true",
        help="with --evaluate: also print a row for each mistake: path, class, answer, score",
    )
    _add_graph(parser)
    _add_output(parser)
    _add_sorting(parser)
    _add_trust(parser)
    return parser


def _add_graph(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("graph").add_argument
    add(
        "--graph",
        default=GRAPH,
        help="frozen graph, or keras:NAME for a network of keras.applications with the classes "
        "of ImageNet",
    )
    add_weights(add)
    add("--model_dir", default="models", help="folder for the frozen graph of keras:NAME")
    add("--offline", action="store_true", help="download nothing for keras:NAME")
    add(
        "--labels",
        help="file with one label per line; default: the labels in the graph, else the file "
        "retrained_labels.txt beside it",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic; auto is bfloat16 for inception_v3 where the processor has it, else "
        "float32",
    )
    add("--allow_unsafe_ops", action="store_true", help=ALLOW_UNSAFE_OPS)
    add = parser.add_argument_group("for graphs that do not describe themselves").add_argument
    add(
        "--input_layer",
        help="node that takes the image; default: the only placeholder of images, else `Mul` "
        "behind a decoder, else the node that takes a file's bytes",
    )
    add("--output_layer", help="node that gives the probabilities")
    add("--input_height", type=number(int, 1), help="height in pixels to which images are resized")
    add("--input_width", type=number(int, 1), help="width in pixels to which images are resized")
    add(
        "--input_mean",
        type=numbers,
        metavar="NUMBER|R,G,B",
        help="number to subtract from each pixel value of 0..255, or one for each channel",
    )
    add(
        "--input_std",
        type=numbers,
        metavar="NUMBER|R,G,B",
        help="number by which to divide each pixel value then, or one for each channel; not 0",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--top_k",
        "--num_top_predictions",
        type=number(int, 1),
        help=f"number of labels per image, the likeliest first; default: {MOST_LABELS}",
    )
    add(
        "--min_score",
        type=number(float, 0, 1),
        help="leave out labels with a lower score; an image without any label left has no row",
    )
    add(
        "--format",
        choices=("text", "tsv", "csv", "jsonl"),
        help="text: `label (score=0.98380)`; tsv: path, label, score; csv: path, rank, label, "
        "score, after a header; jsonl: one JSON object per row. Default: text for one image, else "
        "tsv",
    )
    add(
        "--columns",
        type=column_names,
        metavar="NAME,...",
        help=f"columns of tsv, csv and jsonl, of {', '.join(rows.COLUMNS)}; with error, an image "
        "that cannot be read also has a row",
    )
    add(
        "--csv_safe",
        action="store_true",
        help="in csv, put an apostrophe before names that a spreadsheet would take for a "
        "formula, since they begin with =, +, - or @",
    )
    add(
        "--header",
        action="store_true",
        default=None,
        help="print the column names first, in tsv and csv",
    )
    add(
        "--no_header",
        dest="header",
        action="store_false",
        default=None,
        help="do not print the column names",
    )


def _add_sorting(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sorting").add_argument
    add(
        "--sort_into",
        metavar="DIR",
        help="also put each image into a folder of DIR named after its likeliest label. Nothing "
        "is overwritten. An image below --min_score goes nowhere",
    )
    add(
        "--sort_by",
        choices=WAYS,
        default="copy",
        help="copy: make a copy; link: make a hard link, a second name of the same file, which "
        "takes no space and must be on the same disk",
    )


def column_names(text: str) -> tuple[str, ...]:
    """Parses a flag: names of columns between commas."""
    names = tuple(text.split(","))
    for name in names:
        if name not in rows.COLUMNS:
            known = ", ".join(rows.COLUMNS)
            raise argparse.ArgumentTypeError(f"there is no column {name!r}; there are {known}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("a column is named twice")
    return names


def _add_trust(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("trust").add_argument
    add(
        "--raw_scores",
        action="store_true",
        help="print the plain softmax, without the temperature that the graph may carry",
    )
    add(
        "--unknown_threshold",
        type=share_given_away,
        metavar="auto|X",
        help="label an image `unknown` if it looks less like the classes than all but a share X "
        f"(0 to 1) of the validation photos; auto is {STRANGEST_SHARE}, so that about 95 %% of "
        "known photos keep their label. Default: every image gets one of the labels",
    )


def share_given_away(text: str) -> float:
    """Parses a flag: `auto` or a number from 0 to 1."""
    try:
        return STRANGEST_SHARE if text == "auto" else number(float, 0, 1)(text)
    except ValueError as error:
        message = f"must be auto, or a share from 0 to 1, not {text}"
        raise argparse.ArgumentTypeError(message) from error


def numbers(text: str) -> PerChannel:
    """Parses a flag: a finite number, or three as `R,G,B` or in parentheses, as notes show them."""
    values = text.removeprefix("(").removesuffix(")").split(",")
    parsed = [number(float, -math.inf)(value) for value in values]
    return per_channel(parsed if len(parsed) > 1 else parsed[0])


numbers.__name__ = "number (or three, R,G,B)"


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


def is_many(name: str) -> bool:
    """Returns whether an argument may stand for several images."""
    return name == STDIN or os.path.isdir(name)


def image_paths(options: argparse.Namespace) -> Iterator[str]:
    """Yields the path of each image: files as given, images in folders sorted, paths on stdin."""
    sorted_into = options.sort_into and os.path.realpath(options.sort_into)
    for name in options.images:
        if name == STDIN:
            stdin: Any = sys.stdin.buffer  # its declared type has no read1
            yield from paths_on(stdin, options.null)
        elif os.path.isdir(name):
            yield from images_below(name, sorted_into)
        else:
            yield name


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
            paths = list(map(as_path, filter(None, lines)))
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

    Leaves out hidden files and the folder of real path `left_out`. Holds the names of one folder
    at a time. Says at the end which files are not images.
    """
    others, first = 0, list[str]()
    for path, _ in files_below(folder, left_out=left_out):
        try:
            look_at_image(path)
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
