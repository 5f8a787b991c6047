"""Chooses what computes a network's vectors: TensorFlow or LiteRT, whichever is faster here."""

import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retraining.errors import RetrainingError
from retraining.graphs.litert import ConversionError, LiteRunner
from retraining.graphs.nodes import GraphError
from retraining.graphs.precision import processor
from retraining.graphs.run import Runner, Running
from retraining.graphs.runtimes import AUTO, LITERT, TENSORFLOW
from retraining.graphs.tensorflow import is_installed
from retraining.graphs.twin import (
    TwinError,
    VectorPart,
    check_images,
    find_twin,
    make_twin,
    touch,
)
from retraining.system.atomic import WriteError, write_files

log = logging.getLogger(__name__)

FEW = 8  # images up to which a start-up that takes longer than theirs does not pay off
MANY = 100  # images from which it pays off to make a twin and to measure
TIMED_SECONDS = 0.7  # of work, for each runtime
TIMED_IMAGES = 8  # in a batch
# TensorFlow takes twice the memory, so it must be faster by more than the noise of the measurement.
WORTH_ITS_MEMORY = 1.1


class RuntimeChoiceError(RetrainingError):
    """The runtime that the settings name cannot run this network. The text says why."""


@dataclass(frozen=True)
class RuntimeSettings:
    """Which runtime computes vectors; twins lie in the first of the `folders` that can be used."""

    runtime: str = TENSORFLOW
    folders: tuple[Path, ...] = ()


def open_runner(
    part: VectorPart, how: Running, settings: RuntimeSettings, count: int | None = None
) -> Runner | LiteRunner:
    """Opens a network in LiteRT or TensorFlow; `count` is as in `open_lite`.

    Raises:
        RuntimeChoiceError: LiteRT is asked for and cannot run the network.
        GraphError: TensorFlow cannot run it.
    """
    lite = open_lite(part, how, settings, count)
    return lite or _open_tensorflow(part, how)


def _open_tensorflow(part: VectorPart, how: Running) -> Runner:
    return Runner(part.graph_def, part.input, part.bottleneck, how)


def is_few(count: int | None) -> bool:
    """Returns whether a number of images is known and small."""
    return count is not None and count <= FEW


def open_lite(
    part: VectorPart, how: Running, settings: RuntimeSettings, count: int | None = None
) -> LiteRunner | None:
    """Opens a network in LiteRT; returns None if TensorFlow is to run it.

    `count` is the number of images, None if it is unknown and may be large. With `auto`, a few
    images are LiteRT's if there is a twin, since TensorFlow takes seconds to start. For many,
    what is faster is measured once, and a twin is made if necessary. Vectors of more than a few
    images in bfloat16 are TensorFlow's, since LiteRT computes in float32. Where TensorFlow is not
    installed, LiteRT computes whatever there is a twin for.

    Raises:
        RuntimeChoiceError: LiteRT is asked for and cannot run the network.
    """
    lowered = how.precision != "float32" and not is_few(count) and not _is_alone(settings)
    if settings.runtime == TENSORFLOW or lowered:
        return None
    try:
        return _opened(part, how, settings, count)
    except (ConversionError, TwinError, GraphError, ModuleNotFoundError) as error:
        if settings.runtime == LITERT:
            raise RuntimeChoiceError(f"LiteRT cannot run the network: {error}") from error
        log.debug("TensorFlow runs the network, since LiteRT cannot: %s", error)
        return None


def _is_alone(settings: RuntimeSettings) -> bool:
    """Returns whether LiteRT is all that there is to choose from."""
    return settings.runtime == AUTO and not is_installed()


def _opened(
    part: VectorPart, how: Running, settings: RuntimeSettings, count: int | None
) -> LiteRunner | None:
    digest = part.digest()
    twin = find_twin(digest, settings.folders)
    alone = _is_alone(settings)
    many = count is None or count >= MANY
    if twin is None:
        if settings.runtime == AUTO and (alone or not many):
            return None
        twin = make_twin(part, settings.folders)
    touch(twin)
    if is_few(count):
        return LiteRunner(twin, parallel=1, threads=how.cores or os.cpu_count() or 1)
    lite = LiteRunner(twin, how.cores)
    if alone or settings.runtime == LITERT:
        return lite
    choice_file = twin.with_name(f"{digest[:32]}-{_machine()}.json")
    choice = _read_choice(choice_file)
    if choice is None and many:
        choice = _measure(part, how, lite, choice_file)
    return None if choice == TENSORFLOW else lite


def _measure(part: VectorPart, how: Running, lite: LiteRunner, choice_file: Path) -> str:
    """Returns the name of the faster runtime, and remembers it; LiteRT if they are about equal."""
    runner = _open_tensorflow(part, how)
    images = np.resize(
        check_images(part.preprocessing), (TIMED_IMAGES, *part.preprocessing.size, 3)
    )
    speeds = {
        LITERT: images_per_second(lite, images),
        TENSORFLOW: images_per_second(runner, images),
    }
    choice = TENSORFLOW if speeds[TENSORFLOW] > WORTH_ITS_MEMORY * speeds[LITERT] else LITERT
    content = {"runtime": choice, "images_per_second": speeds}
    with contextlib.suppress(WriteError):
        write_files({choice_file: json.dumps(content).encode()})
    return choice


def images_per_second(runner: Runner | LiteRunner, images: NDArray[np.float32]) -> float:
    """Returns how many images a runner computes in a second, on as many threads as it bears."""
    batches: Sequence[NDArray[np.float32]] = [images] * runner.parallel
    done, seconds = 0, 0.0
    with ThreadPoolExecutor(runner.parallel) as threads:
        list(threads.map(runner.run, batches))  # the first call prepares
        start = time.perf_counter()
        while seconds < TIMED_SECONDS:
            list(threads.map(runner.run, batches))
            done += len(images) * runner.parallel
            seconds = time.perf_counter() - start
    return done / seconds


def _read_choice(path: Path) -> str | None:
    """Returns the runtime that was faster on this machine, or None if that is not known."""
    try:
        choice: Any = json.loads(path.read_bytes())["runtime"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice in (TENSORFLOW, LITERT) else None


def _machine() -> str:
    """Returns a short name for all that the speed of the runtimes depends on."""
    own = processor()
    facts: list[Any] = [own.get("model name", platform.processor()), own.get("flags")]
    facts += [platform.machine(), os.cpu_count()]
    facts += [_version(name) for name in ("tensorflow", "ai-edge-litert")]
    facts += [os.environ.get(name) for name in ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    from importlib import metadata  # which takes a while

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
