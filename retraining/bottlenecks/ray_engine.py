"""Computes vectors with actors on a Ray cluster: what Extractor does, on other machines.

Ray places the actors, hands them batches, restarts dead ones and repeats their calls. This module
prepares the batches and collects the answers. It uses plain actors, since Ray Data takes ten times
the driver's time for a batch (see docs/many-machines.md). Ray is an optional requirement, imported
when needed.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

from retraining.bottlenecks.extract import (
    GPU_BATCH_SIZE,
    ExtractionSettings,
    Extractor,
    Job,
    Reading,
)
from retraining.bottlenecks.ray_worker import (
    ENDED,
    READ,
    RUN,
    Attempts,
    Item,
    Result,
    UnreadableHereError,
    Work,
    Worker,
)
from retraining.bottlenecks.stream import BATCH_SIZE, Answer
from retraining.errors import RetrainingError
from retraining.graphs.tensorflow import muted_stderr
from retraining.networks.network import BaseNetwork
from retraining.photos.reader import ImageError
from retraining.photos.registry import absolute
from retraining.system.package import package_folder
from retraining.system.scratch import scratch_folder
from retraining.system.signals import signals_to
from retraining.system.text import counted

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCHES_PER_CALL = 8  # of the network, for each core of an actor: a few seconds of work
CALLS_PER_ACTOR = 2  # the current and the next, so that it never waits for the driver
REACH_SECONDS = 10.0  # to wait for a connection to a cluster's port
MOST_LOST = 20  # photos that end workers; if more, and over 1 % of all, workers are at fault
OBJECT_STORE = 256 << 20  # bytes of shared memory of a local Ray, beside those for the network


class RayEngineError(RetrainingError):
    """Ray is missing, its cluster is unreachable or unfit, or workers fail. Says what to do."""


@dataclass(frozen=True)
class Local:
    """Settings of the engine on this machine."""


@dataclass(frozen=True)
class Ray:
    """Settings of the engine on a Ray cluster.

    `address` is `local` (a cluster that the run starts here and ends), `auto` (the cluster that
    RAY_ADDRESS names or that this machine belongs to) or the address of a cluster. `actors` is
    their number (None: as many as fit); `cpus` and `gpus` are those of each.
    """

    address: str = "auto"
    actors: int | None = None
    cpus: int = 1
    gpus: float = 0

    @property
    def resources(self) -> str:
        """The resources of one actor, in words."""
        gpus = f" and {self.gpus:g} GPU{'' if self.gpus == 1 else 's'}"
        return counted(self.cpus, "CPU") + gpus * bool(self.gpus)


class RayExtractor(Extractor):
    """An Extractor whose `compute` and `read` use a Ray cluster.

    `start` and `run` still use this machine, for the final test.
    """

    worker = Worker  # the class of the actors

    def __init__(self, network: BaseNetwork, settings: ExtractionSettings, cluster: Ray) -> None:
        """Takes the network, how to compute, and the cluster."""
        super().__init__(network, settings)
        self._cluster = cluster

    def compute(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Answer]]:
        """Yields (job, float32 [keys, width] or ImageError) for each Job, as they are ready.

        Raises:
            RayEngineError: see its docstring.
        """
        jobs = list(jobs)
        images = max((len(job.keys) for job in jobs), default=1)
        yield from self._answers(RUN, jobs, images)

    def read(self, paths: Iterable[str]) -> Iterator[Reading]:
        """Yields a Reading for each path, as they are ready; raises errors as `compute` does."""
        for path, (key, vector) in self._answers(READ, list(paths), 1):
            yield Reading(path, key, vector)

    def _answers(self, kind: str, items: Sequence[Any], images: int) -> Iterator[tuple[Any, Any]]:
        """Yields (item, the Worker's answer); the network computes `images` for each item."""
        if not items:
            return
        with connected(self._cluster, self.network.graph_def.ByteSize()) as ray:
            nodes = _alive(ray)
            actors, shared = self._start_actors(ray)
            log.info(
                f"{counted(len(actors), 'worker')} with {self._cluster.resources} each on a Ray "
                f"cluster of {counted(len(nodes), 'node')}; they take some seconds to start"
            )
            size = self._images_per_call(len(items) * images // len(actors)) // images
            batches = _split(items, max(1, size))
            pool = ray.util.ActorPool(actors * CALLS_PER_ACTOR)
            for number, batch in enumerate(batches):
                pool.submit(_ask, (kind, number, [_absolute(item) for item in batch]))
            yield from _in_order_of_arrival(ray, pool, batches)
            if dead := nodes - _alive(ray):
                log.warning(
                    f"{len(dead)} of {counted(len(nodes), 'node')} of the Ray cluster died; the "
                    f"others did their work"
                )
            del shared  # kept until now: Ray forgets unreferenced objects, even if actors need them

    def _images_per_call(self, images: int) -> int:
        """Returns how many images to send at once to an actor that computes so many in all.

        This is a multiple of the network's batch, and small for few images, so that all actors end
        together.
        """
        on_device = GPU_BATCH_SIZE if self._cluster.gpus else BATCH_SIZE
        unit = self.settings.batch_size or on_device
        fair = images // (2 * CALLS_PER_ACTOR * unit)
        return unit * max(1, min(fair, BATCHES_PER_CALL * self._cluster.cpus))

    def _start_actors(self, ray: Any) -> tuple[list[Any], list[Any]]:
        """Returns (the actors, a list of what they share)."""
        cluster, count = self._cluster, self._count_actors(ray.nodes())
        restarting = {"max_restarts": -1, "max_task_retries": -1}  # Worker sets the limits
        attempts = ray.remote(num_cpus=0, **restarting)(Attempts).remote()
        cores = None if cluster.gpus else cluster.cpus
        work = ray.put(Work.of(self.network, replace(self.settings, cores=cores), count))
        worker = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, **restarting)(self.worker)
        return [worker.remote([work], attempts) for _ in range(count)], [work, attempts]

    def _count_actors(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Returns the number of actors: as set, or as many as fit."""
        cluster, room = self._cluster, sum(_room(node, self._cluster) for node in nodes)
        if not room and not cluster.actors:
            raise RayEngineError(
                f"no node of the Ray cluster has {cluster.resources}; see `Ray.cpus`"
            )
        if cluster.actors and cluster.actors > room:
            log.warning(
                f"the Ray cluster has room for {room} of {cluster.actors} actors with "
                f"{cluster.resources} each; the others wait until there is room"
            )
        return cluster.actors or room


def _alive(ray: Any) -> set[str]:
    """Returns the IDs of the cluster's live nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _room(node: Mapping[str, Any], cluster: Ray) -> int:
    """Returns how many actors fit on a node, as ray.nodes() describes it."""
    if not node["Alive"]:
        return 0
    has = node["Resources"]
    fits = has.get("CPU", 0) // cluster.cpus
    return int(min(fits, has.get("GPU", 0) // cluster.gpus) if cluster.gpus else fits)


def _split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _ask(actor: Any, call: tuple[str, int, list[Item]]) -> Any:
    return actor.answer.remote(*call)


def _absolute(item: Item) -> Item:
    """Returns a path or Job with absolute paths, since workers run in another folder."""
    if isinstance(item, str):
        return absolute(item)
    example = item.example
    return replace(item, example=replace(example, path=absolute(example.path)))


def _in_order_of_arrival(
    ray: Any, pool: Any, batches: Sequence[Sequence[Item]]
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, answer) for the batches that were submitted to a ray.util.ActorPool."""
    health = _Health()
    idle: Counter[Any] = Counter()
    while pool.has_next():
        number, answers = pool.get_next_unordered()
        while actor := pool.pop_idle():
            idle[actor] += 1
            if (
                idle[actor] == CALLS_PER_ACTOR
            ):  # frees resources in case another actor's node has died
                ray.kill(actor)
        for item, answer in zip(batches[number], answers, strict=True):
            health.check(item, answer)
            yield item, answer


class _Health:
    """Distinguishes unfit workers from bad photos."""

    def __init__(self) -> None:
        self._all, self._ended = 0, 0

    def check(self, item: Item, answer: Result) -> None:
        """Checks the answer to an item.

        Raises:
            RayEngineError: all answers so far show that the workers are at fault.
        """
        self._all += 1
        error = answer[1] if isinstance(answer, tuple) else answer
        if not isinstance(error, ImageError):
            return
        path = item if isinstance(item, str) else item.example.path
        if isinstance(error, UnreadableHereError) and _is_readable(path):
            raise RayEngineError(
                f"the Ray worker on {error.host} cannot read {path}, but this machine can; photos "
                f"must be under the same path on all nodes (a shared mount), or at a URL"
            )
        self._ended += str(error) == ENDED
        if self._ended > max(MOST_LOST, self._all / 100):
            raise RayEngineError(
                f"{self._ended} of {self._all} photos ended the Ray workers that read them, {path} "
                f"the last; if memory is short, start fewer on a node: raise the CPUs of "
                f"`Ray.cpus`"
            )


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def connected(cluster: Ray, network_bytes: int) -> Iterator[Any]:
    """Yields the module ray, connected to a cluster; disconnects at the end.

    Hides what Ray writes in the meantime, also to stdout.

    Raises:
        RayEngineError: Ray is missing, no cluster answers, or Ray fails within the context.
    """
    ray = _import_ray()
    address = _find(cluster.address)
    with (
        contextlib.redirect_stdout(_WithoutRay(sys.stdout)),
        _explained(ray, address),
        _folder() if address == "local" else contextlib.nullcontext() as folder,
    ):
        try:
            with _signals_as_they_are(), muted_stderr():
                _connect(ray, address, cluster, network_bytes, folder)
            yield ray
        finally:
            with (
                _undisturbed(),
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
            ):
                ray.shutdown()


def _folder() -> contextlib.AbstractContextManager[Path]:
    """Makes a temporary folder for the files of a Ray that is started here.

    Elsewhere the files would remain, and Ray would take them for those of this machine's cluster.
    Ignores TMPDIR, whose path may be too long for the names of sockets. Removes the folders of runs
    that were killed.
    """
    place = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.name == "posix" else None)
    return scratch_folder("ray-", Path(place) if place else None)


class _WithoutRay:
    """A stream that drops what Ray's own threads write, which is news of its workers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stream.write(text)


def _import_ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would send statistics to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise RayEngineError(
            "`BottleneckSettings.engine` ray needs Ray: pip install -r requirements-ray.txt"
        ) from error
    return ray


def _find(address: str) -> str:
    """Returns the cluster's address or `local`, after checking that a cluster answers there.

    Ray itself would try for minutes, and then end the program.

    Raises:
        RayEngineError: none does.
    """
    if address == "auto":
        from ray._private.utils import read_ray_address  # reads the file that `ray start` writes

        address = os.environ.get("RAY_ADDRESS") or read_ray_address()
    if not address:
        raise RayEngineError(
            "no Ray cluster runs on this machine; start one (`ray start --head`), name one with "
            "`Ray.address`, or use `Ray.address` local"
        )
    if address != "local":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise RayEngineError(
                f"no Ray cluster answers at {address} ({error}); check `Ray.address`, and that it "
                f"runs"
            ) from error
    return address


def _connect(ray: Any, address: str, cluster: Ray, network_bytes: int, folder: Path | None) -> None:
    """Calls ray.init. With `auto`, Ray finds the cluster itself, and uses its token, too."""
    settings: dict[str, Any] = {
        "address": cluster.address,
        "log_to_driver": False,
        "logging_level": "CRITICAL",
    }
    package = package_folder()
    settings["runtime_env"] = {"py_modules": [str(package)], "excludes": ["__pycache__"]}
    if address == "local":
        settings |= {"address": address, "_temp_dir": str(folder)}
        cores = os.cpu_count() or 1
        if cluster.cpus > cores:
            raise RayEngineError(f"this machine has no {cluster.resources}; see `Ray.cpus`")
        settings |= {
            "num_cpus": max(cores, (cluster.actors or 1) * cluster.cpus),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE + 4 * network_bytes,
        }
    try:
        ray.init(**settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "local":
            raise RayEngineError(
                f"Ray cannot be started here: {_reason(error)}; it writes to the home folder and "
                f"to {folder} (RAY_TMPDIR names another place; its path must be short)"
            ) from error
        raise RayEngineError(
            f"no connection to the Ray cluster at {address}: {_reason(error)}; it must have the "
            f"same versions of Ray and Python; if it asks for a token, set RAY_AUTH_MODE=token "
            f"(and copy ~/.ray/auth_token from its head)"
        ) from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Defers Ctrl-C and SIGTERM to the end: an interrupted shutdown of Ray ends the process."""
    arrived: list[int] = []
    with signals_to(lambda number, _: arrived.append(number)):
        yield
    if arrived:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Restores the handler that ray.init replaces, so that SIGTERM still ends a run tidily."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:  # by Ray's own handler
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _explained(ray: Any, address: str) -> Iterator[None]:
    """Turns Ray's errors into a RayEngineError of one line."""
    known = ray.exceptions
    try:
        yield
    except known.RayTaskError as error:
        told = isinstance(error.cause, RetrainingError)
        message = str(error.cause) if told else f"a Ray worker failed: {_reason(error.cause)}"
        raise RayEngineError(message) from error
    except (
        known.ActorDiedError
    ) as error:  # raised only if it cannot be started: others are restarted
        help_ = "see that requirements-ray.txt is installed on all its nodes"
        if "never ran" in str(error):  # Ray gives no other hint
            help_ = "RAY_AUTH_MODE (token, disabled) must be the same here and on all its nodes"
        raise RayEngineError(
            f"the Ray cluster at {address} starts no worker: {_reason(error)}; {help_}"
        ) from error
    except (known.RayError, OSError, RuntimeError, ValueError) as error:
        raise RayEngineError(
            f"the Ray cluster at {address} failed: {_reason(error)}; the vectors computed so far "
            f"are kept; run the same command again to continue"
        ) from error


def _reason(error: BaseException) -> str:
    """Returns an error's kind and the last line of its text, the most informative one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
