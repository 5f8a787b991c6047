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
from retraining.graphs.precision import processor
from retraining.graphs.run import Runner, Running
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

AUTO, TENSORFLOW, LITERT = RUNTIMES = ("auto", "tensorflow", "litert")
TIMED_SECONDS = 0.7  # of work, for each runtime
TIMED_IMAGES = 8  # in a batch


class RuntimeChoiceError(RetrainingError):
    """The runtime that the settings name cannot run this network. The text says why."""


@dataclass(frozen=True)
class RuntimeSettings:
    """Which runtime computes vectors; twins lie in the first of the `folders` that can be used."""

    runtime: str = TENSORFLOW
    folders: tuple[Path, ...] = ()


def open_runner(
    part: VectorPart, how: Running, settings: RuntimeSettings, few: bool = False
) -> Runner | LiteRunner:
    """Opens a network in LiteRT or TensorFlow; `few` is as in `open_lite`.

    Raises:
        RuntimeChoiceError: LiteRT is asked for and cannot run the network.
        GraphError: TensorFlow cannot run it.
    """
    lite = open_lite(part, how, settings, few)
    return lite or _open_tensorflow(part, how)


def _open_tensorflow(part: VectorPart, how: Running) -> Runner:
    return Runner(part.graph_def, part.input, part.bottleneck, how)


def open_lite(
    part: VectorPart, how: Running, settings: RuntimeSettings, few: bool = False
) -> LiteRunner | None:
    """Opens a network in LiteRT; returns None if TensorFlow is to run it.

    Measures once what `auto` means for many images. For `few`, the start counts: a twin that is at
    hand is faster, and one that is not would take longer to make than TensorFlow takes.

    Vectors of many images in bfloat16 are TensorFlow's, since LiteRT computes in float32. Where
    TensorFlow is not installed, LiteRT computes whatever there is a twin for.

    Raises:
        RuntimeChoiceError: LiteRT is asked for and cannot run the network.
    """
    alone = settings.runtime == AUTO and not is_installed()
    lowered = how.precision != "float32" and not few and not alone
    if settings.runtime == TENSORFLOW or lowered:
        return None
    try:
        digest = part.digest()
        twin = find_twin(digest, settings.folders)
        if not twin and settings.runtime == AUTO and (few or alone):
            return None
        if twin and few and settings.runtime == AUTO:
            return LiteRunner(twin, parallel=1, threads=os.cpu_count() or 1)
        twin = twin or make_twin(part, settings.folders)
        touch(twin)
        lite = LiteRunner(twin, how.cores)
    except (ConversionError, TwinError, ModuleNotFoundError) as error:
        if settings.runtime == LITERT:
            raise RuntimeChoiceError(f"LiteRT cannot run the network: {error}") from error
        log.debug("TensorFlow computes the vectors, since LiteRT cannot: %s", error)
        return None
    if alone or settings.runtime == LITERT:
        return lite
    choice_file = twin.with_name(f"{digest[:32]}-{_machine()}.json")
    choice = _read_choice(choice_file) or _measure(part, how, lite, choice_file)
    return lite if choice == LITERT else None


def _measure(part: VectorPart, how: Running, lite: LiteRunner, choice_file: Path) -> str:
    """Returns the name of the faster runtime, and remembers it."""
    runner = _open_tensorflow(part, how)
    images = np.resize(
        check_images(part.preprocessing), (TIMED_IMAGES, *part.preprocessing.size, 3)
    )
    speeds = {
        LITERT: images_per_second(lite, images),
        TENSORFLOW: images_per_second(runner, images),
    }
    choice = max(speeds, key=speeds.__getitem__)
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
