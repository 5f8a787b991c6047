"""Runs one network in an actor of a Ray cluster, on batches of photos.

Ray restarts an actor that died and repeats its calls without limit. A photo that ends its worker
every time would do so for ever. So restarted workers count what they begin, in an actor that counts
for all. A worker splits a batch that was begun before into single photos, and gives up a photo that
ends its worker even alone.
"""

import importlib.metadata
import os
import socket
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retraining.bottlenecks.extract import ExtractionSettings, Extractor, Job
from retraining.bottlenecks.prefill import key_of
from retraining.bottlenecks.stream import Answer
from retraining.errors import RetrainingError
from retraining.graphs.messages import GraphDef
from retraining.graphs.precision import native_precision
from retraining.networks.network import BaseNetwork
from retraining.photos.reader import ImageError
from retraining.photos.source import SourceError
from retraining.system import addresses

READ, RUN = "read", "run"  # kinds of calls: see `Worker.answer`
MOST_ALONE = 2  # times that a photo alone may end its worker
MOST_STARTS = 10  # times in a row, for each actor, that starting the network may end workers
# Pixels and sums depend on them.
PACKAGES = ("tensorflow", "numpy", "pillow", "simplejpeg", "pi-heif")
ENDED = "ends the process that reads it, every time"

Item = str | Job  # a path to READ, or a Job to RUN
Result = tuple[str | None, Answer] | Answer  # of READ, of RUN


class WorkerError(RetrainingError):
    """This worker cannot do the work. The text says why and what to do."""


class UnreadableHereError(ImageError):
    """The file cannot be read on this host."""

    def __init__(self, text: str, host: str) -> None:
        super().__init__(text, host)
        self.host = host

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Work:
    """What all workers share."""

    network: BaseNetwork  # with its GraphDef as bytes
    settings: ExtractionSettings
    workers: int  # their number
    versions: dict[str, str]  # of the driver's packages, which must be theirs, too
    native: str  # the driver's native_precision, likewise
    logins: Mapping[str, str]  # for the addresses of photos, see system.addresses

    @classmethod
    def of(cls, network: BaseNetwork, settings: ExtractionSettings, workers: int) -> "Work":
        """Packs a BaseNetwork with the versions and the arithmetic of this machine."""
        content: Any = network.graph_def.SerializeToString()
        bare, native = replace(network, graph_def=content), native_precision()
        return cls(bare, settings, workers, versions(), native, addresses.logins())

    def unpacked_network(self) -> BaseNetwork:
        """Returns the BaseNetwork with its GraphDef."""
        content: Any = self.network.graph_def
        return replace(self.network, graph_def=GraphDef.FromString(content))


def versions() -> dict[str, str]:
    """Returns {package: its version here} of packages that vectors depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class Attempts:
    """An actor that counts what workers begin, since a worker that dies cannot tell."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, name: Hashable) -> int:
        """Returns how many times `name` was begun, including this time."""
        self._begun[name] += 1
        return self._begun[name]

    def forget(self, name: Hashable) -> None:
        """Forgets `name`, which has ended well."""
        self._begun.pop(name, None)


class Worker:
    """An actor. `work` is a list of one reference to Work, `attempts` the actor Attempts."""

    def __init__(self, work: Sequence[Any], attempts: Any) -> None:
        import ray

        self._work, self._attempts = work, attempts
        self._extractor: Extractor | None = None
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed

    def answer(self, kind: str, number: int, items: Sequence[Item]) -> tuple[int, list[Result]]:
        """Returns (number, a list with an answer to each item) for batch `number` of this run.

        For READ, items are paths, and answers (SHA-1 of the file's bytes or None, float32 [width]
        or ImageError). For RUN, items are Jobs, and answers float32 [keys, width] or ImageError.

        Raises:
            WorkerError: the packages are not the driver's, starting the network ends workers, or a
                photo source cannot be read from here.
            GraphError: TensorFlow cannot run the network.
        """
        attempt = self._begin(number)
        self._start()
        try:
            if attempt == 1:
                return number, self._compute(kind, items)
            return number, [self._compute_alone(kind, (number, i), x) for i, x in enumerate(items)]
        except SourceError as error:
            raise WorkerError(f"the Ray worker on {host()} {error}") from error

    def _begin(self, name: Hashable) -> int:
        import ray

        return int(ray.get(self._attempts.begin.remote(name))) if self._restarted else 1

    def _end(self, name: Hashable) -> None:
        import ray

        if self._restarted:  # wait, since the next step may end this process
            ray.get(self._attempts.forget.remote(name))

    def _start(self) -> None:
        if self._extractor:
            return
        import ray

        work = ray.get(self._work[0])
        if self._begin("start") > MOST_STARTS * work.workers:
            raise WorkerError(
                f"starting the network ends the Ray workers, the last on {host()}; if they lack "
                f"memory, start fewer on a node: raise the CPUs of `Ray.cpus`"
            )
        check_machine(work)
        addresses.remember(work.logins)
        self._extractor = Extractor(work.unpacked_network(), work.settings)
        self._extractor.started()
        self._end("start")

    def _compute(self, kind: str, items: Sequence[Any]) -> list[Result]:
        extractor = self._extractor
        assert extractor, "`_start` makes it"
        if kind == RUN:
            return [_with_host(vectors) for _, vectors in extractor.run(items)]
        return [(read.key, _with_host(read.vector)) for read in extractor.read(items)]

    def _compute_alone(self, kind: str, name: Hashable, item: Item) -> Result:
        if self._begin(name) <= MOST_ALONE:
            (answer,) = self._compute(kind, [item])
            self._end(name)
            return answer
        error = ImageError(ENDED)
        return (key_of(item), error) if isinstance(item, str) else error


def check_machine(work: Work) -> None:
    """Refuses to compute vectors that would differ from the driver's.

    Raises:
        WorkerError: a package has another version here, or bfloat16 is not native.
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
            f"`NetworkSettings.precision` float32"
        )


def _with_host(vectors: Answer) -> Answer:
    """Returns the answer; adds the name of this host if the file could not be read."""
    if isinstance(vectors, ImageError) and str(vectors).startswith("cannot be read"):
        return UnreadableHereError(str(vectors), host())
    return vectors


def host() -> str:
    """Returns this machine's name and the process."""
    return f"{socket.gethostname()} (process {os.getpid()})"
