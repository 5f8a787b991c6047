"""The flags of label_image.py. Their check needs neither NumPy nor what labels images."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retraining.cli.parser import ALLOW_UNSAFE_OPS, LABEL_FROM, Parser, add_weights, number
from retraining.cli.start import typed
from retraining.graphs.precision import PRECISIONS
from retraining.graphs.runtimes import AUTO, RUNTIMES
from retraining.labelling.sorting import WAYS
from retraining.photos.archive import ArchiveSource, is_archive_folder
from retraining.photos.bounds import MAX_PIXELS
from retraining.photos.registry import is_table
from retraining.photos.source import FOLDER, LABELS_FROM
from retraining.system.addresses import is_url

if TYPE_CHECKING:
    from retraining.graphs.preprocessing import PerChannel

DESCRIPTION = """Labels images with a retrained graph, or with any frozen image classifier.

Give image files, folders, or `-` for a list of paths on standard input. A graph from retrain.py
knows its labels and how to feed it images. For other graphs, use the flags below.
"""
STDIN = "-"
GRAPH = "models/retrained_graph.pb"  # where retrain.py puts it
MOST_LABELS = 5  # of an image
STRANGEST_SHARE = 0.05  # of known photos that `--unknown_threshold auto` calls unknown
COLUMNS = ("path", "rank", "label", "score", "error")  # of rows
SAFE_CSV = "csv, safe"  # CSV whose names no spreadsheet takes for formulas
SCORE_FORMATS = ("text", "tsv", "jsonl")  # of --evaluate


def parse_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the checked flags. Bad flags end the program with one line and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(spell_out_null(sys.argv[1:] if argv is None else argv))
    std = options.input_std
    if 0 in (std if isinstance(std, tuple) else (std,)):
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
    if is_table(options.evaluate):
        if options.recursive:
            parser.error("--recursive is for folders; a table names its photos")
        if options.label_from != FOLDER:
            parser.error("--label_from is for folders; a table has labels")
    if is_url(options.evaluate):
        parser.error("--evaluate takes a folder of this machine, no URL")
    for name in ("columns", "header", "min_score", "sort_into", "top_k"):
        if getattr(options, name) is not None:
            parser.error(f"--{name} has no effect with --evaluate")
    if options.raw_scores and not options.print_misclassified:
        parser.error("--raw_scores changes no answer; it needs --print_misclassified here")
    options.format = options.format or "tsv"
    if options.format not in SCORE_FORMATS:
        parser.error(f"--evaluate gives {', '.join(SCORE_FORMATS)}, not {options.format}")


def check_labelling(options: argparse.Namespace, parser: Parser) -> None:
    """Refuses flags that exclude each other; chooses the format."""
    for name in ("recursive", "print_misclassified"):
        if getattr(options, name):
            parser.error(f"--{name} needs --evaluate")
    if options.label_from != FOLDER:
        parser.error("--label_from needs --evaluate")
    options.top_k = options.top_k or MOST_LABELS
    if not options.images:
        parser.error("give an image, a folder, or - for a list of paths on standard input")
    if options.sort_into == "":
        parser.error("--sort_into must name a folder")
    if options.sort_into and any(map(is_url, options.images)):
        parser.error("--sort_into takes images of this machine, no URLs")
    if options.sort_into and any(map(ArchiveSource.claims, options.images)):
        parser.error("--sort_into takes images in files of their own; unpack the archive")
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
        options.format = SAFE_CSV
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
        "--label_from",
        choices=LABELS_FROM,
        default=FOLDER,
        help=f"with --evaluate: {LABEL_FROM}",
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
        help="frozen graph, LiteRT or ONNX file, or folder of a SavedModel; those of retrain.py "
        "need no other flag. Or keras:NAME for a network of keras.applications with the classes "
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
    add(
        "--runtime",
        choices=RUNTIMES,
        default=AUTO,
        help="what runs the network: TensorFlow, or LiteRT, which starts much faster; auto takes "
        "LiteRT for a few images if retrain.py has left its model, and the faster one for many",
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
        help=f"labels per image, the likeliest first; default: {MOST_LABELS}",
    )
    add(
        "--min_score",
        type=number(float, 0, 1),
        help="leave out labels with a lower score; an image of which none is left has no row",
    )
    add(
        "--format",
        choices=("text", "tsv", "csv", "jsonl"),
        help="text: `label (score=0.98380)`; tsv: path, label, score; csv: path, rank, label, "
        "score after a header; jsonl: a JSON object a row. Default: text for one image, else tsv",
    )
    add(
        "--columns",
        type=column_names,
        metavar="NAME,...",
        help=f"columns of tsv, csv and jsonl, of {', '.join(COLUMNS)}; with error, an image "
        f"that cannot be read has a row, too",
    )
    add(
        "--csv_safe",
        action="store_true",
        help="begin names in csv with an apostrophe where a spreadsheet would take them for a "
        "formula, as they begin with =, +, - or @",
    )
    add("--header", action="store_true", default=None, help="begin tsv or csv with column names")
    add("--no_header", dest="header", action="store_false", default=None, help="begin without them")


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
        if name not in COLUMNS:
            known = ", ".join(COLUMNS)
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


def numbers(text: str) -> "PerChannel":
    """Parses a flag: a finite number, or three as `R,G,B` or in parentheses, as notes show them."""
    values = text.removeprefix("(").removesuffix(")").split(",")
    parsed = [number(float, -math.inf)(value) for value in values]
    if len(parsed) == 1:
        return parsed[0]
    red, green, blue = parsed
    return red, green, blue


numbers.__name__ = "number (or three, R,G,B)"


def is_many(name: str) -> bool:
    """Returns whether an argument may stand for several images."""
    return name == STDIN or os.path.isdir(name) or is_archive_folder(name)
