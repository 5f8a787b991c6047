"""The settings of a run: what a user chooses, one dataclass for each step.

The rooms own the settings of their own work (SplitOptions, Distortions, TrainingOptions ...);
RunSettings gathers them. All are frozen: nothing changes a setting once a run has begun.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retraining.bottlenecks.compute import BottleneckSettings
from retraining.errors import RetrainingError
from retraining.networks.pair import JOINT
from retraining.networks.recipes import Choice
from retraining.networks.registry import NETWORKS
from retraining.photos.decode import MAX_PIXELS
from retraining.photos.places import local
from retraining.photos.split import SplitOptions
from retraining.training.fine_tune import TuningOptions
from retraining.training.loop import TrainingOptions

PROJECTED = 100  # photos in TensorBoard's projector


class SettingsError(RetrainingError):
    """Settings that contradict each other, or are out of range."""


@dataclass(frozen=True)
class PhotoSettings:
    """Which photos a run takes, and how it splits them."""

    image_dir: str  # one sub-folder per class; a URL of such a place; taken without a `file://`
    recursive: bool = False  # take photos from folders below the class folders, too
    max_pixels: int = MAX_PIXELS  # larger images are left out
    excluded: tuple[str, ...] = ()  # paths of photos to leave out
    excluded_by: str | None = None  # the file that names them, for messages
    max_bad_fraction: float = 0.5  # share of unreadable images above which the run ends
    split: SplitOptions = field(default_factory=SplitOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_dir", local(os.fspath(self.image_dir)))
        if self.max_pixels < 1:
            raise SettingsError(f"max_pixels must be 1 or more, not {self.max_pixels}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise SettingsError(f"max_bad_fraction must be 0 to 1, not {self.max_bad_fraction}")


@dataclass(frozen=True)
class NetworkSettings:
    """Which base network a run uses, and how."""

    architecture: str | None = None  # a name, NAME+NAME, or None for the best there is
    model_dir: str = "models"
    model_file: str | None = None
    choice: Choice = field(default_factory=Choice)  # for networks that are made to order
    mirror_average: bool = False
    offline: bool = False
    precision: str = "auto"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the networks asked for; none where the best is to be taken."""
        return tuple(self.architecture.split(JOINT)) if self.architecture else ()

    def choice_for(self, name: str) -> Choice:
        """The recipes.Choice for one of `names`. Of two networks, it is for those made to order."""
        if name in NETWORKS and len(self.names) > 1:
            return Choice()
        return self.choice


@dataclass(frozen=True)
class HeadSettings:
    """How a run trains the head."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    search: bool = False  # fit it for several strengths of L2, and take the best
    intermediate_steps: int = 0  # steps between graphs that are stored on the way; 0: none
    intermediate_folder: str = "intermediate_graphs"


@dataclass(frozen=True)
class FineTuningSettings:
    """In which ways a run trains the base network, too; `methods` are names in training.methods."""

    methods: tuple[str, ...] = ()
    compare: bool = False  # tell how each does
    tuning: TuningOptions = field(default_factory=TuningOptions)
    random_views: bool = True  # see the training photos mirrored and cropped at random


@dataclass(frozen=True)
class EvaluationSettings:
    """How a run judges the model."""

    test_photos: int = -1  # at most; -1: as many as the final test takes
    least_accuracy: float | None = None  # below which nothing is written


@dataclass(frozen=True)
class OutputSettings:
    """What a run writes, and where; what has no path of its own lies beside the graph."""

    graph: str = "models/retrained_graph.pb"
    labels: str | None = None
    metrics: str | None = None
    report: str | None = None  # '' for none
    label_audit: str | None = None  # '' for none
    tensor_name: str = "final_result"
    summaries_folder: str = "retrain_logs"
    projector_photos: int = PROJECTED
    saved_model_folder: str | None = None
    tflite_file: str | None = None
    tflite_int8: bool = False
    onnx_file: str | None = None

    def __post_init__(self) -> None:
        for name, file in BESIDE_THE_GRAPH.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.beside(file))

    def beside(self, name: str) -> str:
        """The path of a file of that name beside the graph."""
        return os.path.join(os.path.dirname(self.graph), name)

    @property
    def bad_images(self) -> str:
        """Where the list of files that were left out goes."""
        return self.beside("bad_images.tsv")

    @property
    def comparison(self) -> str:
        """Where the table of compared methods goes."""
        return self.beside("comparison.tsv")


BESIDE_THE_GRAPH = {
    "labels": "retrained_labels.txt",
    "metrics": "retrained_metrics.json",
    "report": "retrained_report.html",
    "label_audit": "label_audit.tsv",
}


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run. `record` is what the graph and the metrics file say of them."""

    photos: PhotoSettings
    network: NetworkSettings = field(default_factory=NetworkSettings)
    bottlenecks: BottleneckSettings = field(default_factory=BottleneckSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    fine_tuning: FineTuningSettings = field(default_factory=FineTuningSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    outputs: OutputSettings = field(default_factory=OutputSettings)
    seed: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.record:
            object.__setattr__(self, "record", recorded(self))

    @property
    def output_files(self) -> dict[str, str]:
        """{what it is, as in OutputSettings or BottleneckSettings: path} of the files written."""
        outputs = self.outputs
        files = {"graph": outputs.graph, "labels": outputs.labels, "metrics": outputs.metrics}
        optional = {
            "export_file": self.bottlenecks.export_file,
            "report": outputs.report,
            "label_audit": outputs.label_audit,
            "tflite_file": outputs.tflite_file,
            "onnx_file": outputs.onnx_file,
            "comparison": outputs.comparison if self.fine_tuning.compare else None,
        }
        files |= {name: path for name, path in optional.items() if path}
        return {name: str(path) for name, path in files.items()} | {
            "bad_images": outputs.bad_images
        }


def recorded(settings: RunSettings) -> dict[str, Any]:
    """The settings as plain data for JSON: {step: {setting: value}}, and `image_dir` by itself."""
    plain = {key: value for key, value in asdict(settings).items() if key != "record"}
    return {"image_dir": settings.photos.image_dir, **plain}
