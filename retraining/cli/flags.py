"""The flags of retrain.py: names, help, checks. The classic's flags keep names and defaults."""

import argparse
import importlib.util
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, get_args, get_type_hints

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.parquet import why_no_parquet
from retraining.bottlenecks.ray_engine import Ray
from retraining.cli.parser import (
    ALLOW_UNSAFE_OPS,
    LABEL_FROM,
    VERBOSITIES,
    Parser,
    add_weights,
    batch_size,
    number,
)
from retraining.cli.settings import ENGINES, LOCAL, ONE_CPU, RAY, flags_of, formats_of, settings_of
from retraining.cli.start import typed
from retraining.cli.wording import in_flags
from retraining.export.registry import CONVERTERS, FORMATS
from retraining.graphs.description import PIXELS, TAKES
from retraining.graphs.precision import PRECISIONS
from retraining.graphs.preprocessing import RAW_WAYS
from retraining.graphs.runtimes import RUNTIMES
from retraining.networks.pair import JOINT
from retraining.networks.precision import BEARS_BFLOAT16
from retraining.networks.recipes import Choice
from retraining.networks.registry import (
    DEFAULT,
    EMBEDDED,
    SAVED_MODEL,
    NetworkError,
    describe_names,
    find,
)
from retraining.photos.exclude import read_listed
from retraining.photos.reader import Distortions
from retraining.photos.source import LABELS_FROM, DatasetError
from retraining.photos.split import PATH, WAYS, SplitOptions
from retraining.run.settings import (
    BESIDE_THE_GRAPH,
    FINAL_FITS,
    EvaluationSettings,
    HeadSettings,
    NetworkSettings,
    OutputSettings,
    PhotoSettings,
    RunSettings,
)
from retraining.system.addresses import is_url, local, without_password
from retraining.system.atomic import is_within
from retraining.system.lines import TextError, read_lines
from retraining.system.ranges import SettingsError
from retraining.training.fine_tune import RANDOM_VIEWS, TuningOptions
from retraining.training.loop import CLASS_WEIGHTS, TrainingOptions
from retraining.training.methods import ALL, HEAD, METHODS, SCRATCH
from retraining.training.optimizers import LBFGS, OPTIMIZERS, RATES

COUNT = number(int, 0)
POSITIVE = number(int, 1)
MOST_ACTORS, MOST_CPUS = 100_000, 10_000  # of the CPUs, in one machine
MOST_WEIGHTS = 1 << 26  # between hidden layers: 256 MB, and as much again while training
MOST_UNITS = 16_384  # of a hidden layer: 128 MB behind vectors of 2,048
MOST_LIST_BYTES = 1 << 24  # of a list of classes, as of labels
MOST_PROJECTED = 10_000  # photos; their thumbnails fill the largest picture that browsers accept


def parse_flags(
    argv: Sequence[str] | None, description: str | None
) -> tuple[argparse.Namespace, RunSettings]:
    """Returns the checked flags and the settings that they ask for.

    Bad flags end the program with one line and exit code 2.
    """
    parser = build_parser(description)
    options, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}{_remedy(options, rest)}")
    _complete(parser, options)
    _check_head(parser, options, given_flags(argv))
    if options.stratified and options.split_by == PATH:
        parser.error("--stratified goes by the photos' bytes; drop --split_by path")
    _check_tuning(parser, options)
    try:
        settings = settings_of(options)
    except SettingsError as error:
        parser.error(in_flags(str(error)))
    _check_network(parser, settings)
    _check_urls(parser, options, settings)
    _check_engine(parser, options)
    _check_output_flags(parser, options)
    _check_files(parser, settings)
    _check_places(parser, settings)
    return options, settings


def _remedy(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Returns what may be meant by words that belong to no flag."""
    if any(word.startswith("-") for word in rest):
        return ""
    unnamed = options.image_dir is None and options.photo_table is None
    meant = f"; did you mean --image_dir {rest[0]}?" if unnamed and len(rest) == 1 else ""
    return meant or "; a path with spaces needs quotes" + (" after --image_dir" if unnamed else "")


def _complete(parser: Parser, options: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other flags, and reads the list of --exclude."""
    options.image_dir = local(options.image_dir or "")
    beside = OutputSettings(options.output_graph)
    for name in BESIDE_THE_GRAPH:
        if getattr(options, OUTPUT_FLAGS[name]) is None:
            setattr(options, OUTPUT_FLAGS[name], getattr(beside, name))
    if options.learning_rate is None and options.head != "auto" and options.optimizer != LBFGS:
        options.learning_rate = RATES[options.optimizer]
    if options.engine == RAY:
        options.ray_resources = options.ray_resources or ONE_CPU
    try:
        options.listed = read_listed(options.exclude) if options.exclude else []
    except DatasetError as error:
        parser.error(f"--exclude: {in_flags(str(error))}")


def format_folders(settings: RunSettings) -> dict[str, str]:
    """Returns {flag: path} of the formats that are folders."""
    formats = [(CONVERTERS[kind], path) for kind, path in settings.outputs.formats.items()]
    return {f"--{converter.option}": path for converter, path in formats if converter.is_folder}


def _check_formats(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if a variant is asked for of a format that is not."""
    for converter in FORMATS:
        choice = getattr(options, converter.variant_option, "none")
        if choice != "none" and not getattr(options, converter.option):
            parser.error(f"--{converter.variant_option} needs --{converter.option}")
    wanted, chosen = options.export_input, [CONVERTERS[kind] for kind in formats_of(options)]
    if wanted != PIXELS and not any(wanted in converter.takes for converter in chosen):
        needed = (f"--{converter.option}" for converter in FORMATS if wanted in converter.takes)
        parser.error(f"--export_input {wanted} needs {' or '.join(needed)}")


def _check_network(parser: Parser, settings: RunSettings) -> None:
    """Ends the program if a network does not allow the choice, as far as no file tells."""
    network = settings.network
    for name in network.names or (DEFAULT,):
        try:
            find(name, network.choice_for(name))
        except NetworkError as error:
            parser.error(in_flags(str(error)))
    if SAVED_MODEL in network.names and not network.model_file:
        parser.error("--architecture saved_model needs --model_file: a SavedModel or Keras file")
    both = len(network.names) > 1
    if both and network.model_file:
        parser.error(
            "--model_file gives the file of a single network; put both files into --model_dir"
        )
    if settings.bottlenecks.classic_folder and (both or network.mirror_average):
        parser.error(
            "--import_classic_bottlenecks is for one network and photos as they are; import in a "
            "run without the other network and --mirror_average"
        )


def given_flags(argv: Sequence[str] | None = None) -> set[str]:
    """Returns the flags on the command line, whatever their values."""
    words = sys.argv[1:] if argv is None else argv
    return {word.split("=")[0] for word in words if word.startswith("--")}


# The flags of training step by step.
STEPWISE = ("--learning_rate", "--epochs", "--early_stopping", "--train_batch_size", "--dropout")
NOT_WITH_LBFGS = (*STEPWISE, "--intermediate_store_frequency")
NOT_WITH_AUTO = (
    *("--hidden_units", "--optimizer", "--l2", "--how_many_training_steps", "--eval_step_interval"),
    *("--validation_batch_size", *NOT_WITH_LBFGS),
)


def _check_head(parser: Parser, options: argparse.Namespace, given: Collection[str]) -> None:
    """Ends the program if flags of the head contradict each other."""
    auto, by_lbfgs = options.head == "auto", options.optimizer == LBFGS
    for about, applies, flags in (
        ("--head auto finds the softmax layer by itself", auto, NOT_WITH_AUTO),
        ("--optimizer lbfgs takes all photos at once", by_lbfgs, NOT_WITH_LBFGS),
    ):
        if meaningless := [flag for flag in flags if applies and flag in given]:
            parser.error(f"{about}; {', '.join(meaningless)} cannot be combined with it")
    if options.epochs and "--how_many_training_steps" in given:
        parser.error(
            "--epochs and --how_many_training_steps both set the length of training; give only one"
        )
    if options.dropout and not options.hidden_units:
        parser.error("--dropout is for hidden layers; add --hidden_units")


# The flag of each of RunSettings.output_files, without dashes.
OUTPUT_FLAGS = {
    **flags_of(BottleneckSettings),
    **flags_of(OutputSettings),
    **{kind: converter.option for kind, converter in CONVERTERS.items()},
}
WITHOUT_FLAGS = {
    "comparison": "the table of --compare",
    "bad_images": "the list of bad images",
    "bundle_graph": "the graph of --bundle",
    "bundle_labels": "the labels of --bundle",
    "bundle_metrics": "the metrics of --bundle",
}


def output_paths(settings: RunSettings) -> dict[str, str]:
    """Returns {flag, or a name: path} of the files that a run writes."""
    files = settings.output_files
    return {WITHOUT_FLAGS.get(n) or f"--{OUTPUT_FLAGS[n]}": path for n, path in files.items()}


FOLDERS_AND_INPUTS = (
    *("bottleneck_dir", "model_dir", "model_file", "weights", "summaries_dir", "import_vectors"),
    *("intermediate_output_graphs_dir", "photo_table"),
)


def _check_urls(parser: Parser, options: argparse.Namespace, settings: RunSettings) -> None:
    """Ends the program if a flag other than --image_dir is a URL, or a file to import is none."""
    others = {f"--{flag}": getattr(options, flag) for flag in FOLDERS_AND_INPUTS}
    for flag, path in {**output_paths(settings), **others, **format_folders(settings)}.items():
        if path and is_url(path):
            parser.error(f"{flag} {without_password(path)} is a URL; only --image_dir may be one")
    if is_url(options.image_dir) and options.import_classic_bottlenecks:
        parser.error("--import_classic_bottlenecks needs the photos in a folder of this machine")
    if (path := options.import_vectors) is not None and not os.path.isfile(path):
        parser.error(f"--import_vectors {path} is not a file")
    folder = options.import_classic_bottlenecks
    if folder is not None and not os.path.isdir(folder):
        parser.error(f"--import_classic_bottlenecks {folder} is not a folder")
    for flag in ("export_vectors", "import_vectors"):
        if getattr(options, flag) is not None and (reason := why_no_parquet()):
            parser.error(f"--{flag} {reason}")


def _check_engine(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if Ray is wanted but missing, or has flags but is not wanted."""
    if options.engine == RAY:
        if importlib.util.find_spec("ray") is None:
            parser.error("--engine ray needs Ray: pip install -r requirements-ray.txt")
        return
    for flag in ("ray_address", "ray_actors", "ray_resources"):
        if getattr(options, flag) != parser.get_default(flag):
            parser.error(f"--{flag} needs --engine ray")


TENSOR_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\-]*(/[A-Za-z0-9_.\-]+)*")


def _check_output_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if a flag of an output is useless or lacks another."""
    if not TENSOR_NAME.fullmatch(options.final_tensor_name):
        parser.error(f"--final_tensor_name {options.final_tensor_name!r} cannot name a tensor")
    _check_formats(parser, options)
    if options.intermediate_store_frequency and not options.intermediate_output_graphs_dir:
        parser.error("--intermediate_store_frequency needs --intermediate_output_graphs_dir")


def _check_files(parser: Parser, settings: RunSettings) -> None:
    """Ends the program if an output has no name, or would replace another output or an input."""
    read = {
        "--exclude": settings.photos.excluded_by,
        "--photo_table": settings.photos.photo_table,
        "--import_vectors": settings.bottlenecks.import_file,
    }
    first = {os.path.realpath(path): flag for flag, path in read.items() if path}
    for flag, path in output_paths(settings).items():
        if not path:
            parser.error(f"{flag} must name a file")
        other = first.setdefault(os.path.realpath(path), flag)
        if other in read:
            parser.error(f"{flag} would replace the file of {other}; choose another file")
        if other != flag:
            parser.error(f"{other} and {flag} name the same file")


TUNING_FLAGS = (
    "base_learning_rate",
    "head_learning_rate",
    "freeze_until",
    "fine_tune_epochs",
    "fine_tune_batch_size",
    "fine_tune_views",
)


def _check_tuning(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if flags of fine-tuning contradict each other or have no effect."""
    if options.compare and options.fine_tune == "all":
        parser.error("--compare names the ways of fine-tuning; drop --fine_tune all")
    if options.fine_tune == "none" and not options.compare:
        for flag in TUNING_FLAGS:
            if getattr(options, flag) != parser.get_default(flag):
                parser.error(f"--{flag} needs --fine_tune all or --compare")
        return
    if options.base_learning_rate == options.head_learning_rate == 0:
        parser.error("--base_learning_rate and --head_learning_rate are both 0: nothing is trained")
    if not options.base_learning_rate and {ALL, SCRATCH}.intersection(options.compare or ()):
        parser.error("--compare all and scratch need a --base_learning_rate above 0")


def _check_places(parser: Parser, settings: RunSettings) -> None:
    """Ends the program if an output lies in the photos' folder or among the stored vectors."""
    outputs, vectors = settings.outputs, settings.bottlenecks.folder
    written, folders = output_paths(settings), {"--bottleneck_dir": vectors}
    written |= format_folders(settings)
    folders["--summaries_dir"] = outputs.summaries_folder
    folders["--intermediate_output_graphs_dir"] = settings.head.intermediate_folder
    for flag, path in {**written, **folders}.items():
        if settings.photos.photo_table is None and _is_in(path, settings.photos.image_dir):
            parser.error(f"{flag} {path} is in --image_dir, where each folder is a class")
    for flag, path in written.items():
        if _is_in(path, vectors):
            parser.error(f"{flag} {path} is in --bottleneck_dir; choose another folder")


def _is_in(path: str, folder: str) -> bool:
    return is_within(os.path.realpath(path), os.path.realpath(folder))


def field(add: Callable[..., argparse.Action], kind: Any, name: str, **more: Any) -> None:
    """Adds the flag that fills a field of a class of settings; `add` is a group's add_argument.

    Default, type and range are the field's, unless `more` has others.
    """
    hint = get_type_hints(kind)[name]
    types = {hint, *get_args(hint)}  # of `int | None`: both
    default = next(each.default for each in fields(kind) if each.name == name)
    given: dict[str, Any] = {"required": True} if default is MISSING else {"default": default}
    if bool in types:
        given = {"action": "store_true"}
    for convert in types & {int, float}:
        low, high = getattr(kind, "RANGES", {}).get(name, (-math.inf, math.inf))
        given["type"] = number(convert, low, high)
    add(f"--{flags_of(kind)[name]}", **(given | more))


def build_parser(description: str | None = None) -> Parser:
    """Returns the parser of all flags, in groups; the classic's keep their names and defaults."""
    parser = Parser(prog=typed("retrain"), description=description)
    for add in (_add_data, _add_network, _add_cluster, _add_training, _add_head, _add_fine_tuning):
        add(parser)
    for add in (_add_distortions, _add_outputs, _add_formats, _add_words):
        add(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("photos").add_argument
    photos = partial(field, add, PhotoSettings)
    split = partial(field, add, SplitOptions)
    photos(
        "image_dir",
        default=None,
        help="folder with one sub-folder of photos per class, or with train, val and test "
        "folders that hold such sub-folders; or a zip or tar (.zip, .tar, .tgz, .tar.bz2, .tar.xz, "
        ".tar.zst) of such a folder, or its URL; or the URL of such a folder in object storage "
        "(s3://, gs:// and so on; needs requirements-remote.txt)",
    )
    photos(
        "photo_table",
        metavar="FILE",
        help="instead of folders, a CSV, TSV or JSON Lines table with the columns path, label "
        "and optionally split (train, val, test); - is standard input. Paths are relative to "
        "--image_dir if you give it, else to the folder of the table",
    )
    add(
        "--exclude",
        metavar="FILE",
        help="leave out the photos in this file: a list with one path per line (# begins a "
        "comment), or a label_audit.tsv",
    )
    split("testing", help="percentage of the photos to hold out for the final test")
    split("validation", help="percentage of the photos to hold out for evaluations while training")
    split(
        "by",
        choices=WAYS,
        help="what decides the split of a photo. folders: the split folders (train, val, test) "
        "that hold the class folders, or the column split of a table; content: its bytes, so "
        "that moving or renaming it changes nothing; path: its path, as in the classic "
        "retrain.py; auto: folders if there are any, else content",
    )
    split(
        "stratified",
        help="split each class by exactly the percentages, still by the bytes of the photos. "
        "Photos that you add later may then move others to another split",
    )
    photos("recursive", help="also take photos from folders below the class folders")
    photos("label_from", choices=LABELS_FROM, help=LABEL_FROM)
    photos(
        "classes",
        type=_classes,
        default=None,
        metavar="A,B,...|FILE",
        help="take only these classes, and give the labels this order (default: all, sorted). A "
        "file lists one on each line",
    )
    photos(
        "raw",
        choices=RAW_WAYS,
        help="of a raw file of a camera, take the preview in it, or develop what its sensor saw; "
        "the graph keeps this for label_image.py",
    )
    photos("max_pixels", help="leave out larger images without decoding them")
    photos("max_bad_fraction", help="end the run if a larger share of the images cannot be read")


def _classes(text: str) -> tuple[str, ...]:
    """Parses a flag: labels with commas between, or a file with one on each line."""
    if not os.path.isfile(text):
        if "," not in text:
            reason = "is neither a file nor a list of classes with commas between"
            raise argparse.ArgumentTypeError(f"{text} {reason}")
        names = [name.strip() for name in text.split(",")]
    else:
        try:
            names = read_lines(text, text, MOST_LIST_BYTES)
        except TextError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    if classes := tuple(name for name in names if name.strip()):
        return classes
    raise argparse.ArgumentTypeError(f"{text} names no class")


def _network(name: str) -> str:
    """Parses a flag: the name of a known network, or of two with JOINT between."""
    try:
        names = [find(part).name for part in name.split(JOINT)]
    except NetworkError as error:
        raise argparse.ArgumentTypeError(in_flags(str(error))) from error
    if SAVED_MODEL in names and len(names) > 1:
        raise argparse.ArgumentTypeError(f"{SAVED_MODEL} cannot be one of two networks")
    if len(names) > 2 or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{name} is not one network or two different ones")
    return JOINT.join(names)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    network = partial(field, add, NetworkSettings)
    choice = partial(field, add, Choice)
    vectors = partial(field, add, BottleneckSettings)
    network(
        "architecture",
        type=_network,
        metavar="NAME",
        help=f"base network: {in_flags(describe_names())}. "
        f"NAME{JOINT}NAME takes two together, which is often more accurate and takes longer. "
        f"Default: {DEFAULT} if it is in --model_dir or can be downloaded, else {EMBEDDED}, which "
        "comes with the requirements",
    )
    network(
        "mirror_average",
        help="average the vectors of each image and of its mirror image, in training and in the "
        "exported graph; takes twice as long",
    )
    network("offline", help="use no network connection and download nothing")
    network(
        "model_dir",
        help="folder in which the tool looks for networks, and to which it downloads them",
    )
    network(
        "model_file",
        help="the frozen graph of the network, instead of one in --model_dir; or another file, "
        "where --architecture says so",
    )
    add_weights(add)
    choice(
        "layer",
        metavar="LAYER",
        help="layer whose output is the vector: any of a Keras network (fc1 or fc2 of VGG16; else "
        "averages of the last convolution), relu6 or relu7 of vgg16 (else relu6), or an output of "
        "a SavedModel (else its only one)",
    )
    choice(
        "height",
        type=POSITIVE,
        help="height of the images in pixels, for networks that take any size",
    )
    choice(
        "width",
        type=POSITIVE,
        help="width of the images in pixels, for networks that take any size",
    )
    choice("mean", help="for saved_model: number to subtract from pixel values of 0..255")
    choice("std", help="for saved_model: number by which to divide them then")
    choice("allow_unsafe_ops", help=ALLOW_UNSAFE_OPS)
    vectors("folder", help="folder of the cached vectors")
    vectors(
        "classic_folder",
        metavar="DIR",
        help="import the vectors in a --bottleneck_dir of the classic retrain.py that fit the "
        "photos and the network (in float32, whatever --precision is); you need this only once",
    )
    vectors(
        "import_file",
        metavar="FILE",
        help="import vectors that a run with --export_vectors wrote, with the same network and "
        "precision, for photos with the same bytes (needs requirements-remote.txt)",
    )
    in_bfloat16 = " and ".join(BEARS_BFLOAT16)
    network(
        "precision",
        choices=PRECISIONS,
        help=f"arithmetic of the base network; auto is bfloat16 for {in_bfloat16} where the "
        "processor has it, else float32",
    )
    network(
        "runtime",
        choices=RUNTIMES,
        help="what computes the vectors; auto is the faster one for the network on this machine, "
        "which the first run measures",
    )
    vectors(
        "batch_size",
        help="number of images that each core runs through the base network together; default: 8 "
        "(32 on a GPU). Another size changes the last digits of the vectors",
    )


def _address(text: str) -> str:
    """Parses a flag: the address of a Ray cluster."""
    if text in ("auto", "local") or re.fullmatch(r"(ray://)?[^/\s]+:\d{1,5}", text):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, local, [ray://]HOST:PORT, not {text}")


def _resources(text: str) -> tuple[int, float]:
    """Parses a flag: (CPUs, GPUs) from "CPUS" or "CPUS,GPUS"."""
    cpus, _, gpus = text.partition(",")
    try:
        return number(int, 1, MOST_CPUS)(cpus), number(float, 0, MOST_CPUS)(gpus or "0")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be CPUS or CPUS,GPUS, not {text}") from error


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many machines").add_argument
    ray = partial(field, add, Ray)
    add(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help="where to compute the vectors: on this machine, or in actors on a Ray cluster "
        "(needs requirements-ray.txt)",
    )
    ray(
        "address",
        type=_address,
        metavar="ADDRESS",
        help="the Ray cluster: auto (the one that RAY_ADDRESS names or that this machine belongs "
        "to), HOST:PORT of its head, ray://HOST:PORT from outside, or local, which starts a "
        "cluster on this machine and ends it",
    )
    ray(
        "actors",
        type=number(int, 1, MOST_ACTORS),
        metavar="N",
        help="number of actors that compute; default: as many as the cluster has room for",
    )
    add(
        "--ray_resources",
        type=_resources,
        metavar="CPUS[,GPUS]",
        help="CPUs and GPUs of each actor; default: one CPU. An actor computes as many batches "
        "at once as it has CPUs, or uses its GPUs",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    training = partial(field, add, TrainingOptions)
    training(
        "steps",
        help="number of training steps; for --optimizer lbfgs, the largest number of iterations",
    )
    rates = ", ".join(f"{rate:g} for {name}" for name, rate in RATES.items())
    training("learning_rate", help=f"step size of the optimizer; default: {rates}")
    whole = " -1 takes all"
    training(
        "train_batch_size", type=batch_size, help=f"number of images in a training step;{whole}"
    )
    training(
        "validation_batch_size",
        type=batch_size,
        help="number of images in an evaluation while training, drawn class by class as in the "
        f"classic;{whole}. Default: every validation image, once",
    )
    field(
        add,
        EvaluationSettings,
        "test_photos",
        type=batch_size,
        help=f"number of images in the final test;{whole}",
    )
    training("eval_step_interval", help="number of steps between evaluations")
    training("seed", help="seed of all random numbers; the same seed gives the same result")


def hidden_units(text: str) -> tuple[int, ...]:
    """Parses a flag: the sizes of hidden layers, positive whole numbers between commas."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        message = f"must be whole numbers, as 256 or 256,64, not {text}"
        raise argparse.ArgumentTypeError(message) from error
    if not all(1 <= size <= MOST_UNITS for size in sizes):
        raise argparse.ArgumentTypeError(f"must be numbers from 1 to {MOST_UNITS}, not {text}")
    if sum(map(math.prod, itertools.pairwise(sizes))) > MOST_WEIGHTS:
        raise argparse.ArgumentTypeError(f"{text} asks for more than {MOST_WEIGHTS:,} weights")
    return sizes


def _add_head(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("head").add_argument
    training = partial(field, add, TrainingOptions)
    add(
        "--head",
        choices=("classic", "auto"),
        default="classic",
        help="classic: train it step by step, as the other flags say; auto: fit a softmax layer "
        "to convergence for several strengths of --l2, and let the validation photos choose one",
    )
    field(
        add,
        HeadSettings,
        "final_fit",
        choices=FINAL_FITS,
        help="all: after the tests, train the exported layer on all photos, including those for "
        "validation and testing; training: export the layer that was tested",
    )
    training(
        "hidden_units",
        default=None,
        type=hidden_units,
        metavar="N[,N]",
        help="put hidden layers of these sizes, with ReLU, before the softmax layer",
    )
    training(
        "dropout", help="share of the hidden units to leave out at random in each training step"
    )
    training(
        "optimizer",
        choices=OPTIMIZERS,
        help="method that updates the weights; lbfgs takes all training photos at once, and runs "
        "to convergence",
    )
    training(
        "epochs",
        help="number of passes over all training photos, instead of --how_many_training_steps",
    )
    training(
        "l2",
        help="add this number times half the sum of the squared weights (not biases) to the loss",
    )
    training(
        "label_smoothing",
        help="share of each label to spread evenly over all classes in training",
    )
    training(
        "class_weights",
        choices=CLASS_WEIGHTS,
        help="balanced: each class counts the same, whatever its number of photos (a batch of a "
        "step draws a class first, as in the classic; otherwise weights do it); none: each photo "
        "counts the same. Default: balanced, but none with --train_batch_size -1, as in the "
        "classic",
    )
    training(
        "early_stopping",
        metavar="N",
        help="stop after N evaluations without a lower cross entropy on all validation photos, "
        "and keep the head with the lowest",
    )


def _methods(text: str) -> list[str]:
    """Parses a flag: names of METHODS between commas, each once."""
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(METHODS)}")
    if len(set(names)) < len(names) or names == [HEAD]:
        raise argparse.ArgumentTypeError(f"{text} names a method twice, or only {HEAD}")
    return names


def _layer(text: str) -> str:
    """Parses a flag: a text that may be the name of a layer."""
    if not text.strip("/ "):
        raise argparse.ArgumentTypeError("must be the name of a layer")
    return text


def _add_fine_tuning(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fine-tuning").add_argument
    tuning = partial(field, add, TuningOptions)
    add(
        "--fine_tune",
        choices=("none", "all"),
        default="none",
        help="all: also train the weights of the base network, starting from the trained head",
    )
    tuning(
        "base_rate",
        help="step size (Adam) for the weights of the network, as a share of their size; 0 "
        "leaves them unchanged",
    )
    tuning("head_rate", help="step size for the weights of the head while fine-tuning")
    tuning(
        "freeze_until",
        type=_layer,
        metavar="LAYER",
        help="leave this layer (such as mixed_8 or MobilenetV1/MobilenetV1/Conv2d_9) and all "
        "that it depends on unchanged",
    )
    tuning(
        "epochs",
        help="number of passes over the training photos, or fewer if the validation photos do no "
        "better",
    )
    tuning("batch_size", help="number of photos in a step")
    add(
        "--fine_tune_views",
        choices=("random", "plain"),
        default="random",
        help="random: each epoch sees the training photos mirrored and cropped at random, by "
        f"{RANDOM_VIEWS.random_crop} percent, or as the distortion flags say; plain: as they are",
    )
    add(
        "--compare",
        type=_methods,
        metavar="METHODS",
        help="train in several ways, print how well each does, and export the one that does best "
        "on the validation photos. Names with commas between: head (the head alone), two_rates "
        "(as the flags say), all (with --base_learning_rate for the head as well), scratch "
        "(two_rates from random weights)",
    )


def _add_distortions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("distortions of the training photos").add_argument
    distortions = partial(field, add, Distortions)
    distortions("flip_left_right", help="mirror each distorted view with probability 1/2")
    distortions(
        "random_crop",
        help="enlarge each view by this percentage, and crop it at random",
    )
    distortions("random_scale", help="enlarge each view at random, by at most this percentage")
    distortions(
        "random_brightness",
        help="brighten or darken each view at random, by at most this percentage",
    )
    distortions(
        "views",
        help="number of distorted versions of each training photo, if you ask for any distortion",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("outputs").add_argument
    outputs = partial(field, add, OutputSettings)
    vectors = partial(field, add, BottleneckSettings)
    head = partial(field, add, HeadSettings)
    evaluation = partial(field, add, EvaluationSettings)
    outputs(
        "graph",
        help="file for the retrained frozen graph; give each graph its own folder, since the files "
        "beside it have fixed names",
    )
    outputs(
        "labels",
        help="file for its labels, one per line; default: retrained_labels.txt beside the graph",
    )
    outputs(
        "label_audit",
        help="file for the table of photos that look mislabelled and of near-duplicates, '' for "
        "none; default: label_audit.tsv beside the graph",
    )
    add(
        "--report",
        help="file for the report on how good the model is; default: retrained_report.html "
        "beside the graph",
    )
    add("--no_report", action="store_true", help="write no report")
    outputs(
        "model_card",
        help="file for a page in Markdown to pass on with the model, '' for none; default: "
        "retrained_model_card.md beside the graph",
    )
    outputs(
        "metrics",
        help="file for the same figures as JSON; default: retrained_metrics.json beside the graph",
    )
    vectors(
        "export_file",
        metavar="FILE",
        help="write the vectors of the photos to a Parquet file, for other tools (needs "
        "requirements-remote.txt)",
    )
    outputs(
        "bundle",
        metavar="DIR",
        help="also put all that labels photos on another machine into a folder: the graph, its "
        "labels and metrics, and a LiteRT model of its network, with which label_image.py needs no "
        "TensorFlow there (see requirements-label.txt); an earlier bundle is replaced",
    )
    outputs("tensor_name", help="name of the output of the graph")
    outputs("summaries_folder", help="folder for the event files of TensorBoard")
    outputs(
        "projector_photos",
        type=number(int, 0, MOST_PROJECTED),
        help="number of photos whose vectors the projector of TensorBoard shows, test photos first",
    )
    head(
        "intermediate_steps",
        type=COUNT,
        help="number of steps between graphs that the run stores while training; 0 stores none",
    )
    head("intermediate_folder", help="folder for these graphs")
    evaluation(
        "least_accuracy",
        help="end with exit code 1, and replace no output, if the accuracy of the final test is "
        "lower (from 0 to 1, as test_accuracy)",
    )
    evaluation(
        "folds",
        metavar="K",
        help="cross-validate: divide all photos into K parts (2 to 20), and predict each part "
        "with a head trained on the others. Default: 5 if there are fewer than 200 test photos, "
        "else none",
    )
    evaluation(
        "least_cross_validated",
        help="end with exit code 1, and replace no output, if cross_validated_accuracy is lower "
        "or unknown",
    )


def _add_formats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("other formats").add_argument
    for converter in FORMATS:
        metavar = "DIR" if converter.is_folder else "FILE"
        add(f"--{converter.option}", metavar=metavar, help=converter.help)
        if converter.variants:
            add(
                f"--{converter.variant_option}",
                choices=("none", *converter.variants),
                default="none",
                help=converter.variant_help,
            )
    add(
        "--export_input",
        choices=TAKES,
        default=OutputSettings.export_input,
        help="what the SavedModel, TensorFlow Lite and ONNX files take: pixels that the caller has "
        "resized and scaled, or one image of any size, uint8 RGB, which the file resizes, scales "
        "and scores at the temperature",
    )


def _add_words(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("messages").add_argument
    add(
        "--print_misclassified_test_images",
        action="store_true",
        help="print the test photos that the new graph gets wrong",
    )
    add(
        "--logging_verbosity",
        choices=VERBOSITIES,
        default="INFO",
        help="lowest level of the messages on stderr",
    )
    add(
        "--quiet",
        dest="logging_verbosity",
        action="store_const",
        const="WARN",
        default=argparse.SUPPRESS,
        help="print only warnings and errors on stderr, as with --logging_verbosity WARN",
    )


def is_quiet(options: argparse.Namespace) -> bool:
    """Returns whether the flags hide progress bars."""
    return options.logging_verbosity not in ("DEBUG", "INFO")
