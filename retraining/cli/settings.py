"""Turns the flags of retrain.py into settings: which flag fills which field."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.bottlenecks.ray_engine import Local, Ray
from retraining.export.registry import FORMATS
from retraining.labelling.resolve import Overrides
from retraining.networks.recipes import Choice
from retraining.photos.reader import Distortions
from retraining.photos.split import SplitOptions
from retraining.run.settings import (
    EvaluationSettings,
    FineTuningSettings,
    HeadSettings,
    NetworkSettings,
    OutputSettings,
    PhotoSettings,
    RunSettings,
)
from retraining.system.addresses import without_secrets
from retraining.training.fine_tune import TuningOptions
from retraining.training.loop import TrainingOptions
from retraining.training.methods import TWO_RATES

LOCAL, RAY = ENGINES = ("local", "ray")
ONE_CPU = (1, 0.0)  # CPUs and GPUs of a Ray actor

Settings = TypeVar("Settings")

# The flags of fields that are not named like their flag; None for a field without a flag.
FLAGS: Mapping[Any, Mapping[str, str | None]] = {
    PhotoSettings: {
        "max_pixels": "max_image_pixels",
        "excluded": "exclude",
        "excluded_by": "exclude",
        "split": None,
    },
    SplitOptions: {
        "validation": "validation_percentage",
        "testing": "testing_percentage",
        "by": "split_by",
    },
    NetworkSettings: {"choice": None},
    Choice: {
        "layer": "bottleneck_layer",
        "height": "input_height",
        "width": "input_width",
        "mean": "input_mean",
        "std": "input_std",
        "model_file": None,  # NetworkSettings has it
    },
    BottleneckSettings: {
        "folder": "bottleneck_dir",
        "classic_folder": "import_classic_bottlenecks",
        "import_file": "import_vectors",
        "export_file": "export_vectors",
        "distortions": None,
    },
    Ray: {
        "address": "ray_address",
        "actors": "ray_actors",
        "cpus": "ray_resources",
        "gpus": "ray_resources",
    },
    Distortions: {"views": "distorted_views"},
    HeadSettings: {
        "search": "head auto",
        "training": None,
        "intermediate_steps": "intermediate_store_frequency",
        "intermediate_folder": "intermediate_output_graphs_dir",
    },
    TrainingOptions: {"steps": "how_many_training_steps"},
    FineTuningSettings: {
        "methods": "fine_tune",
        "random_views": "fine_tune_views",
        "tuning": None,
    },
    TuningOptions: {
        "base_rate": "base_learning_rate",
        "head_rate": "head_learning_rate",
        "epochs": "fine_tune_epochs",
        "batch_size": "fine_tune_batch_size",
        "scratch": None,  # a method of --compare
        "precision": None,  # as resolved for the network
    },
    EvaluationSettings: {
        "test_photos": "test_batch_size",
        "least_accuracy": "assert_accuracy_at_least",
        "least_cross_validated": "assert_cross_validated_at_least",
    },
    OutputSettings: {
        "graph": "output_graph",
        "labels": "output_labels",
        "tensor_name": "final_tensor_name",
        "summaries_folder": "summaries_dir",
        "formats": None,  # a flag each
    },
    Overrides: {},  # of label_image.py
}


def flags_of(kind: Any) -> dict[str, str]:
    """Returns {field: flag without dashes} of the fields of a class that have a flag."""
    flags = {field.name: FLAGS[kind].get(field.name, field.name) for field in fields(kind)}
    return {name: flag for name, flag in flags.items() if flag}


def filled(kind: type[Settings], options: argparse.Namespace, **others: Any) -> Settings:
    """Returns settings: `others`, and for each other field with a flag, the value of the flag."""
    flags = flags_of(kind)
    return kind(**{n: getattr(options, flags[n]) for n in flags if n not in others}, **others)


def settings_of(options: argparse.Namespace) -> RunSettings:
    """Returns the RunSettings that flags ask for.

    Raises:
        SettingsError: they contradict each other.
    """
    training = filled(TrainingOptions, options, hidden_units=options.hidden_units or ())
    return RunSettings(
        photos=filled(
            PhotoSettings,
            options,
            excluded=tuple(options.listed),
            classes=options.classes or (),
            split=filled(SplitOptions, options),
        ),
        network=filled(NetworkSettings, options, choice=filled(Choice, options)),
        bottlenecks=filled(
            BottleneckSettings,
            options,
            engine=engine_of(options),
            distortions=filled(Distortions, options),
        ),
        head=filled(HeadSettings, options, training=training, search=options.head == "auto"),
        fine_tuning=FineTuningSettings(
            methods=tuple(options.compare or [TWO_RATES] * (options.fine_tune == "all")),
            compare=bool(options.compare),
            tuning=filled(TuningOptions, options),
            random_views=options.fine_tune_views == "random",
        ),
        evaluation=filled(EvaluationSettings, options),
        outputs=filled(
            OutputSettings,
            options,
            report="" if options.no_report else options.report,
            formats=formats_of(options),
        ),
        seed=options.seed,
        record=recorded(options),
    )


def recorded(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags as plain data for JSON; the address of photos loses its secrets."""
    values = {name: value for name, value in vars(options).items() if name != "listed"}
    return values | {"image_dir": without_secrets(options.image_dir)}


def formats_of(options: argparse.Namespace) -> dict[str, str]:
    """Returns {kind of Converter: path} of the formats that the flags ask for."""
    formats = {}
    for converter in FORMATS:
        if path := getattr(options, converter.option):
            choice = getattr(options, converter.variant_option, "none")
            formats[converter.variants.get(choice, converter).kind] = path
    return formats


def engine_of(options: argparse.Namespace) -> Local | Ray:
    """Returns the engine that the flags ask for."""
    if options.engine == LOCAL:
        return Local()
    cpus, gpus = options.ray_resources or ONE_CPU
    return filled(Ray, options, cpus=cpus, gpus=gpus)
