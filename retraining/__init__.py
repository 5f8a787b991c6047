"""Retrains image classifiers and labels images with them; see docs/python.md.

The names below are the public interface. Each is imported when it is first used, so that
`import retraining` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retraining.bottlenecks.compute import (
        BottleneckSettings as BottleneckSettings,
    )
    from retraining.bottlenecks.ray_engine import (
        Local as Local,
    )
    from retraining.bottlenecks.ray_engine import (
        Ray as Ray,
    )
    from retraining.errors import (
        RetrainingError as RetrainingError,
    )
    from retraining.labelling.classifier import (
        Classifier as Classifier,
    )
    from retraining.labelling.classifier import (
        Labels as Labels,
    )
    from retraining.labelling.classifier import (
        load_classifier as load_classifier,
    )
    from retraining.networks.recipes import (
        Choice as Choice,
    )
    from retraining.photos.reader import (
        Distortions as Distortions,
    )
    from retraining.photos.split import (
        SplitOptions as SplitOptions,
    )
    from retraining.run.retrain import (
        Results as Results,
    )
    from retraining.run.retrain import (
        retrain as retrain,
    )
    from retraining.run.settings import (
        EvaluationSettings as EvaluationSettings,
    )
    from retraining.run.settings import (
        FineTuningSettings as FineTuningSettings,
    )
    from retraining.run.settings import (
        HeadSettings as HeadSettings,
    )
    from retraining.run.settings import (
        NetworkSettings as NetworkSettings,
    )
    from retraining.run.settings import (
        OutputSettings as OutputSettings,
    )
    from retraining.run.settings import (
        PhotoSettings as PhotoSettings,
    )
    from retraining.run.settings import (
        RunSettings as RunSettings,
    )
    from retraining.system.observer import (
        Observer as Observer,
    )
    from retraining.training.fine_tune import (
        TuningOptions as TuningOptions,
    )
    from retraining.training.loop import (
        TrainingOptions as TrainingOptions,
    )

# NumPy's products here are small; spread over threads they wait for each other more than they
# gain (1.5 times slower on two cores). NumPy reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "1.0.0"

_HOMES = {
    "retraining.bottlenecks.compute": ("BottleneckSettings",),
    "retraining.bottlenecks.ray_engine": ("Local", "Ray"),
    "retraining.errors": ("RetrainingError",),
    "retraining.labelling.classifier": ("Classifier", "Labels", "load_classifier"),
    "retraining.networks.recipes": ("Choice",),
    "retraining.photos.reader": ("Distortions",),
    "retraining.photos.split": ("SplitOptions",),
    "retraining.run.retrain": ("Results", "retrain"),
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
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError("module 'retraining' has no attribute " + repr(name))
    return getattr(importlib.import_module(_HOME_OF[name]), name)
