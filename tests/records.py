"""Records of made-up runs, for the tests of the report."""

from types import SimpleNamespace

import numpy as np

from retraining.evaluation.cross_validation import CrossValidation, estimate
from retraining.evaluation.learning_curve import SizePoint
from retraining.photos.dataset import Example
from retraining.report import record
from retraining.training import methods
from retraining.training.head import Evaluation
from retraining.training.loop import Step


def result_of(paths, targets, probabilities):
    """What verify.HeldOutResult offers, without TensorFlow."""
    targets, probabilities = np.array(targets, int), np.array(probabilities, "f4")
    right = probabilities.argmax(axis=1) == targets
    return SimpleNamespace(
        paths=list(paths),
        targets=targets,
        probabilities=probabilities,
        logits=np.log(np.maximum(probabilities, 1e-30)),
        correct=int(right.sum()),
        total=len(targets),
        accuracy=float(right.mean()) if len(targets) else float("nan"),
    )


def answers(targets, answered, classes, sure=0.8):
    """Probabilities [n, classes] with `sure` on what was answered, the rest spread evenly."""
    found = np.full((len(targets), classes), (1 - sure) / (classes - 1))
    found[np.arange(len(targets)), answered] = sure
    return found


def cross_validated(paths, targets, answered, classes, **changes):
    """A CrossValidation of photos that all have a prediction; it leads unless `changes` say no."""
    targets, logits = np.array(targets), np.log(answers(targets, answered, classes)).astype("f4")
    each = np.arange(len(targets))
    facts = {
        "result": estimate(logits, targets, each, each % 5),
        "folds": 5,
        "groups": len(targets),
        "paths": list(paths),
        "targets": targets,
        "logits": logits,
        "twins": frozenset(),
        "leads": True,
    }
    return CrossValidation(**(facts | changes))


COMPARISON = methods.describe(
    [
        methods.Attempt(methods.HEAD, None, None, Evaluation(0.7, 1.25, 9), 0.75, 1.0, 1.5),
        methods.Attempt(methods.ALL, None, None, Evaluation(0.8, 0.5, 9), 0.5, 0.875, 1102.0, 9, 6),
    ],
    methods.ALL,
)


def made_up(labels, paths, targets, answered, **changes):
    """A whole record; `changes` are fields of record.Outcome or of record.Setting."""
    result = result_of(paths, targets, answers(targets, answered, len(labels)))
    examples = {
        "training": [Example(f"t/{n}", label, "training", "") for n, label in enumerate(labels)],
        "validation": [],
        "testing": [
            Example(p, labels[t], "testing", "") for p, t in zip(paths, targets, strict=True)
        ],
    }
    steps = [Step(n, None, Evaluation(0.5, 1.0, 9), Evaluation(0.4, 1.1, 9)) for n in (0, 10, 19)]
    right = np.arange(40) % 4 > 0
    outcome = {
        "labels": labels,
        "examples": examples,
        "result": result,
        "course": steps,
        "sizes": [SizePoint(10, right), SizePoint(20, right), SizePoint(40, right)],
    }
    setting = {
        "network": {"name": "net", "sha1": "0" * 40, "precision": "float32", "input_size": [9, 9]},
        "options": {"image_dir": "photos", "seed": 3},
        "seconds": {"reading photos": 0.1, "training": 2.0},
    }
    for name, value in changes.items():
        (setting if name in record.Setting.__dataclass_fields__ else outcome)[name] = value
    return record.make_record(record.Setting(**setting), record.Outcome(**outcome))
