"""What runs in an actor of a Ray cluster: one network, which answers batches of photos.

Ray starts an actor that died again and repeats what it had begun, for ever. A photo that ends its
worker every time would go round without end. So workers that were started again count, in an actor
of its own, what they begin: a batch begun twice is taken apart, and a photo that even alone ends
its worker is given up.
"""

import importlib.metadata
import os
import socket
from collections import Counter
from dataclasses import dataclass, replace

from retraining.bottlenecks.extract import Extractor, Settings
from retraining.bottlenecks.prefill import key_of, read_and_run
from retraining.errors import RetrainingError
from retraining.graphs.precision import native_precision
from retraining.graphs.tensorflow import import_tensorflow
from retraining.networks.network import BaseNetwork
from retraining.photos.places import PlaceError
from retraining.photos.reader import ImageError

READ, RUN = "read", "run"  # what is asked of a worker: see `Worker.answer`
MOST_ALONE = 2  # times a photo alone may end its worker before it is given up
MOST_STARTS = 10  # times in a row, an actor, that the start of the network may end workers
PACKAGES = ("tensorflow", "numpy", "pillow")  # the same everywhere: pixels and sums depend on them
ENDED = "ends the process that reads it, every time"


class WorkerError(RetrainingError):
    """This worker cannot do the work; says why and what to do."""


class UnreadableHereError(ImageError):
    """The file cannot be read on this host."""

    def __init__(self, text, host):
        super().__init__(text, host)
        self.host = host

    def __str__(self):
        return self.args[0]


@dataclass(frozen=True)
class Work:
    """What every worker is given: the network, its GraphDef as bytes; how to compute; how many
    workers there are; and what the driver has that they must have, too."""

    network: BaseNetwork
    settings: Settings
    workers: int
    versions: dict[str, str]
    native: str  # graph.native_precision

    @classmethod
    def of(cls, network, settings, workers):
        """For a BaseNetwork as it is used here; its bytes are those of its file, or as many."""
        packed = replace(network, graph_def=network.graph_def.SerializeToString())
        return cls(packed, settings, workers, versions(), native_precision())

    def unpacked_network(self):
        """The BaseNetwork with its GraphDef."""
        graph_def = import_tensorflow().GraphDef.FromString(self.network.graph_def)
        return replace(self.network, graph_def=graph_def)


def versions():
    """{package: its version here} of those on which vectors depend."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class Attempts:
    """An actor that counts what workers begin: one that dies cannot tell."""

    def __init__(self):
        self._begun = Counter()

    def begin(self, name):
        """How many times `name` was begun, this one included."""
        self._begun[name] += 1
        return self._begun[name]

    def forget(self, name):
        """It has ended well."""
        self._begun.pop(name, None)


class Worker:
    """An actor. `work` is a list of one reference to Work, `attempts` the actor of that name."""

    def __init__(self, work, attempts):
        import ray

        self._work, self._attempts, self._extractor = work, attempts, None
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed

    def answer(self, kind, number, items):
        """(number, a list with an answer to each item) for batch `number` of this run.

        For READ, items are paths, and answers (SHA-1 of the file's bytes or None, float32 [width]
        or ImageError); for RUN, items are extract.Jobs, and answers float32 [keys, width] or
        ImageError.

        Raises:
            WorkerError: other packages than the driver's, the network's start ends workers, or a
                URL's place cannot be read from here.
            GraphError: TensorFlow cannot run the network.
        """
        attempt = self._begin(number)
        self._start()
        try:
            if attempt == 1:
                return number, self._compute(kind, items)
            return number, [self._compute_alone(kind, (number, i), x) for i, x in enumerate(items)]
        except PlaceError as error:
            raise WorkerError(f"the Ray worker on {host()} {error}") from error

    def _begin(self, name):
        import ray

        return ray.get(self._attempts.begin.remote(name)) if self._restarted else 1

    def _end(self, name):
        import ray

        if self._restarted:  # waited for, since what comes next may end this process
            ray.get(self._attempts.forget.remote(name))

    def _start(self):
        if self._extractor:
            return
        import ray

        work = ray.get(self._work[0])
        if self._begin("start") > MOST_STARTS * work.workers:
            raise WorkerError(
                f"starting the network ends the Ray workers, the last on {host()}; if they lack "
                f"memory, start fewer on a node: raise the CPUs of --ray_resources"
            )
        check_machine(work)
        self._extractor = Extractor(work.unpacked_network(), work.settings)
        self._extractor.start().result()
        self._end("start")

    def _compute(self, kind, items):
        if kind == RUN:
            return [_with_host(vectors) for _, vectors in self._extractor.run(items)]
        readings = read_and_run(items, *self._extractor.start().result())
        return [(reading.key, _with_host(reading.vector)) for reading in readings]

    def _compute_alone(self, kind, name, item):
        if self._begin(name) <= MOST_ALONE:
            (answer,) = self._compute(kind, [item])
            self._end(name)
            return answer
        error = ImageError(ENDED)
        return error if kind == RUN else (key_of(item), error)


def check_machine(work):
    """Refuses to compute what would not be the vectors that the driver computes.

    Raises:
        WorkerError: a package has another version here, or bfloat16 is not native here.
    """
    here = versions()
    for name, version in work.versions.items():
        if here[name] != version:
            raise WorkerError(
                f"{host()} of the Ray cluster has {name} {here[name]} and this machine {version}; "
                f"install the same requirements.txt on both"
            )
    if work.settings.precision == "bfloat16" and native_precision() != work.native:
        raise WorkerError(
            f"{host()} of the Ray cluster has no arithmetic in bfloat16 as this machine has; use "
            f"--precision float32"
        )


def _with_host(vectors):
    """An answer; if the file could not be read, with the name of this host."""
    if isinstance(vectors, ImageError) and str(vectors).startswith("cannot be read"):
        return UnreadableHereError(str(vectors), host())
    return vectors


def host():
    """This machine's name."""
    return f"{socket.gethostname()} (process {os.getpid()})"
