"""Retrains image classifiers and labels images with them; see docs/python.md.

The names below are the public interface. Each is imported when it is first used, so that
`import retraining` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING

from retraining.version import __version__

if TYPE_CHECKING:
    from retraining.bottlenecks.compute import BottleneckSettings
    from retraining.bottlenecks.ray_engine import Local, Ray
    from retraining.errors import RetrainingError
    from retraining.labelling.classifier import Classifier, Labels, load_classifier
    from retraining.networks.recipes import Choice
    from retraining.photos.reader import Distortions
    from retraining.photos.split import SplitOptions
    from retraining.run.delivery import Results
    from retraining.run.retrain import retrain
    from retraining.run.settings import (
        EvaluationSettings,
        FineTuningSettings,
        HeadSettings,
        NetworkSettings,
        OutputSettings,
        PhotoSettings,
        RunSettings,
    )
    from retraining.system.observer import Observer
    from retraining.training.fine_tune import TuningOptions
    from retraining.training.loop import TrainingOptions

# NumPy's products here are small; spread over threads they wait for each other more than they
# gain (1.5 times slower on two cores). NumPy reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_HOMES = {
    "retraining.bottlenecks.compute": ("BottleneckSettings",),
    "retraining.bottlenecks.ray_engine": ("Local", "Ray"),
    "retraining.errors": ("RetrainingError",),
    "retraining.labelling.classifier": ("Classifier", "Labels", "load_classifier"),
    "retraining.networks.recipes": ("Choice",),
    "retraining.photos.reader": ("Distortions",),
    "retraining.photos.split": ("SplitOptions",),
    "retraining.run.delivery": ("Results",),
    "retraining.run.retrain": ("retrain",),
    "retraining.run.settings": (
        "EvaluationSettings",
        "FineTuningSettings",
        "HeadSettings",
        "NetworkSettings",
        "OutputSettings",
        "PhotoSettings",
        "RunSettings",
    ),
    "retraining.system.observer": ("Observer",),
    "retraining.training.fine_tune": ("TuningOptions",),
    "retraining.training.loop": ("TrainingOptions",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "BottleneckSettings",
    "Choice",
    "Classifier",
    "Distortions",
    "EvaluationSettings",
    "FineTuningSettings",
    "HeadSettings",
    "Labels",
    "Local",
    "NetworkSettings",
    "Observer",
    "OutputSettings",
    "PhotoSettings",
    "Ray",
    "Results",
    "RetrainingError",
    "RunSettings",
    "SplitOptions",
    "TrainingOptions",
    "TuningOptions",
    "__version__",
    "load_classifier",
    "retrain",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError("module 'retraining' has no attribute " + repr(name))
    return getattr(importlib.import_module(_HOME_OF[name]), name)
