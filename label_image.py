"""Labels images with a retrained graph, or with any frozen image classifier.

Give image files, folders, or `-` for a list of paths on standard input. A graph from retrain.py
knows its labels and how it wants its images; for other graphs there are flags.
"""

import json
import math
import os
import sys
from dataclasses import replace

from retraining.classify import Overrides, load_classifier
from retraining.command import DONE, FAILED, Parser, escaped, leave, number, reports_errors, say
from retraining.dataset import looks_like_image
from retraining.extract import FLUSH
from retraining.graph import PRECISIONS
from retraining.images import ImageError
from retraining.trust import STRANGEST_SHARE

FEW = 8  # images up to which the optimizer's start-up costs more than it saves


@reports_errors
def main(argv=None):
    """Reads the graph, labels every image in the order given, prints as it goes."""
    options = parse_flags(argv)
    classifier = load_classifier(
        options.graph, options.labels, overrides(options), options.precision
    )
    for note in classifier.notes:
        say(note)
    if options.raw_scores:
        classifier = replace(classifier, temperature=1.0)
    write = WRITERS[options.format]
    few = options.single and len(options.images) <= FEW
    failed = False
    labelled = 0
    share = options.unknown_threshold
    for path, answer, strangeness in classifier.judge(image_paths(options.images), few, share):
        labelled += 1
        ranking = ranked(answer, classifier.labels, options.top_k)
        if strangeness is not None:
            ranking = [(classifier.unknown_label, strangeness), *ranking[: options.top_k - 1]]
        if isinstance(answer, ImageError):
            failed = True
            say(f"{path} {answer}")
        write(path, answer, ranking)
        sys.stdout.flush()
    if not labelled:
        say("no images were found")
    return FAILED if failed or not labelled else DONE


def parse_flags(argv=None):
    """The checked flags. Bad ones end the program with one line and exit code 2."""
    parser = build_parser()
    options = parser.parse_args(argv)
    options.images = [*([options.image] if options.image else []), *options.images]
    if not options.images:
        parser.error("give an image, a folder, or - for a list of paths on standard input")
    if options.input_std == 0:
        parser.error("--input_std 0 would divide by zero; give the graph's own value")
    options.single = not any(map(is_many, options.images))
    one = options.single and len(options.images) == 1
    if options.format is None:
        options.format = "text" if one else "tsv"
    if options.format == "text" and not one:
        options.format = "text with names"
    return options


def build_parser():
    """All flags, in groups; those of the classic label_image.py keep their names."""
    parser = Parser(prog="label_image.py", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, or - for stdin")
    parser.add_argument("--image", help="one more image, as in the classic")
    _add_graph(parser)
    _add_output(parser)
    _add_trust(parser)
    return parser


def _add_graph(parser):
    add = parser.add_argument_group("graph").add_argument
    add("--graph", default="models/retrained_graph.pb", help="frozen graph")
    add(
        "--labels",
        help="file with a label a line; default: the labels in the graph, else the file "
        "retrained_labels.txt beside it",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic; auto is bfloat16 for inception_v3 where the processor has it, else "
        "float32",
    )
    add = parser.add_argument_group("for graphs that do not describe themselves").add_argument
    add("--input_layer", help="node that takes the image")
    add("--output_layer", help="node that gives the probabilities")
    any_number = number(float, -math.inf)
    add("--input_height", type=number(int, 1), help="height in pixels to which images are resized")
    add("--input_width", type=number(int, 1), help="width in pixels to which images are resized")
    add("--input_mean", type=any_number, help="subtracted from each pixel value of 0..255")
    add("--input_std", type=any_number, help="then each pixel is divided by this, so not 0")


def _add_output(parser):
    add = parser.add_argument_group("output").add_argument
    add(
        "--top_k",
        "--num_top_predictions",
        type=number(int, 1),
        default=5,
        help="labels per image, the likeliest first",
    )
    add(
        "--format",
        choices=("text", "tsv", "jsonl"),
        help="text: `label (score=0.98380)`; tsv: path, label, score; jsonl: a JSON object a row. "
        "Default: text for one image, else tsv",
    )


def _add_trust(parser):
    add = parser.add_argument_group("trust").add_argument
    add(
        "--raw_scores",
        action="store_true",
        help="plain softmax, without the temperature that the graph may carry",
    )
    add(
        "--unknown_threshold",
        type=share_given_away,
        metavar="auto|X",
        help="label an image `unknown` if it looks less like the classes than all but a share X "
        f"(0 to 1) of the validation photos; auto is {STRANGEST_SHARE}, so that about 95 %% of "
        "known photos keep their label. Default: every image gets one of the labels",
    )


def share_given_away(text):
    """A flag type: `auto` or a number from 0 to 1."""
    return STRANGEST_SHARE if text == "auto" else number(float, 0, 1)(text)


share_given_away.__name__ = "share (auto, or a number from 0 to 1)"


def overrides(options):
    """The flags that say what a graph does not."""
    return Overrides(
        options.input_layer,
        options.output_layer,
        options.input_height,
        options.input_width,
        options.input_mean,
        options.input_std,
    )


# -- images in -------------------------------------------------------------------------------


def is_many(name):
    """Whether an argument may stand for several images."""
    return name == "-" or os.path.isdir(name)


def image_paths(names):
    """Yields the path of each image: files as given, folders' images sorted, lines of stdin."""
    for name in names:
        if name == "-":
            yield from paths_on(sys.stdin.buffer)
        elif os.path.isdir(name):
            yield from images_below(name)
        else:
            yield name


def paths_on(stream):
    """Yields the lines of a byte stream as paths; FLUSH before it may have to wait for more."""
    rest = b""
    while True:
        yield FLUSH
        chunk = stream.read1(1 << 16)
        *lines, rest = (rest + chunk).split(b"\n") if chunk else (rest, b"")
        yield from (os.fsdecode(path) for line in lines if (path := line.rstrip(b"\r")))
        if not chunk:
            return


def images_below(folder):
    """Yields the files below a folder that begin like an image, sorted, hidden ones left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not name.startswith(".") and looks_like_image(path):
                yield path


# -- labels out ------------------------------------------------------------------------------


def ranked(answer, labels, top_k):
    """[(label, probability), ...] of an image, the likeliest first; none for an ImageError."""
    if isinstance(answer, ImageError):
        return []
    return [(labels[i], float(answer[i])) for i in (-answer).argsort(kind="stable")[:top_k]]


def write_text(path, _, ranking):
    """The classic's lines."""
    for label, score in ranking:
        print(f"{label} (score={score:.5f})")


def write_named_text(path, _, ranking):
    """The classic's lines of one of several images, after a line with its path."""
    if ranking:
        print(escaped(path))
    write_text(path, _, ranking)


def write_tsv(path, _, ranking):
    """path, label, score; tabs and line ends in a name are written \\t, \\n, \\r."""
    for label, score in ranking:
        print(f"{escaped(path)}\t{escaped(label)}\t{score:.5f}")


def write_jsonl(path, answer, ranking):
    """An object per image and rank, or one with `error`."""
    if isinstance(answer, ImageError):
        print(to_json({"path": path, "error": str(answer)}))
    for rank, (label, score) in enumerate(ranking, start=1):
        row = {"path": path, "rank": rank, "label": label, "score": round(score, 5)}
        print(to_json(row))


def to_json(row):
    """JSON in UTF-8, or all ASCII where a name holds bytes that are no UTF-8."""
    text = json.dumps(row, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(row)


WRITERS = {
    "text": write_text,
    "text with names": write_named_text,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
}


if __name__ == "__main__":
    leave(main())
