"""A results record -> TensorBoard. Never touches a graph."""

import time
from pathlib import Path

from retraining import RetrainingError
from retraining.quiet_tensorflow import import_tensorflow


class ReportError(RetrainingError):
    """The report cannot be written; says why."""


class TensorBoardLog:
    """Writes accuracy and cross entropy of training and validation as event files.

    Each run gets its own new folder below `summaries_dir`, so that nothing is ever deleted and
    TensorBoard shows runs side by side. Use as a context manager.
    """

    def __init__(self, summaries_dir):
        """Raises ReportError if the folder cannot be made."""
        tf = import_tensorflow()
        self.folder = _new_folder(Path(summaries_dir))
        self._summary = tf.Summary
        with tf.Graph().as_default():  # this writer needs no tensorboard, but no eager mode either
            self._writers = {
                part: tf.FileWriter(str(self.folder / part)) for part in ("train", "validation")
            }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for writer in self._writers.values():
            writer.close()

    def add(self, step):
        """Adds a train.Step that has evaluations."""
        for part, evaluation in (("train", step.training), ("validation", step.validation)):
            if not evaluation.count:
                continue
            summary = self._summary()
            summary.value.add(tag="accuracy", simple_value=evaluation.accuracy)
            summary.value.add(tag="cross_entropy", simple_value=evaluation.cross_entropy)
            self._writers[part].add_summary(summary, step.number)


def _new_folder(parent):
    """Makes a folder named after the time; two runs in one second get two."""
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    for name in (stamp, *(f"{stamp}_{n}" for n in range(2, 1000))):
        try:
            (parent / name).mkdir(parents=True)
            return parent / name
        except FileExistsError:
            continue
        except OSError as error:
            raise ReportError(f"cannot make a folder in {parent}: {error.strerror}") from error
    raise ReportError(f"{parent} is a file or full of folders; choose another --summaries_dir")
