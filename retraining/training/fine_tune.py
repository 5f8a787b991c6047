"""Trains a network's own weights together with the head, with Adam and checkpoints.

Batches are split into shards, and threads compute the shards' gradients. Summing these in order
makes runs reproducible: on one machine the same seed gives the same weights, even if a run was
interrupted and resumed.
"""

import hashlib
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from retraining.bottlenecks.stream import in_order, thread_pool
from retraining.networks.network import BaseNetwork
from retraining.photos.dataset import Example
from retraining.photos.reader import Distortions, ImageError, ImageReader
from retraining.system.ranges import Range, check_ranges
from retraining.training.head import Evaluation, Head, evaluation_of
from retraining.training.loop import Step, TrainingError
from retraining.training.loss import balancing_weights
from retraining.training.optimizers import ADAM_DECAYS, EPSILON
from retraining.training.tuning_graph import (
    OWN,
    SHARD,
    Batch,
    TuningGraph,
    Weights,
    find_weights,
    fold_network,
    head_of,
    head_weights,
    random_head,
    random_weights,
    stored_weights,
    weight_sizes,
    with_weights,
)

FORMAT = 2  # of checkpoints; increases when the same settings lead to other weights
WARM_UP = 20  # steps at the start with smaller learning rates
PATIENCE = 1 / 2  # share of all epochs without a better validation result that ends training
FEWEST = 2  # and at least that many epochs
RANDOM_VIEWS = Distortions(flip_left_right=True, random_crop=25)
PIXEL_MEMORY = 1 << 30  # bytes of decoded photos to keep; each epoch decodes the others again
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TuningOptions:
    """How a network is fine-tuned.

    `base_rate` and `head_rate` are Adam's learning rates, relative to the size of the weights
    (`tuning_graph.weight_sizes`). A `base_rate` of 0 trains the head alone. `scratch` starts from
    random weights in all layers. `freeze_until` names the last layer that stays as it is.
    """

    base_rate: float = 0.002
    head_rate: float = 0.01
    epochs: int = 15  # take a few minutes for a small network and 1,000 photos on a CPU
    batch_size: int = 32
    freeze_until: str | None = None
    scratch: bool = False
    precision: str = "float32"
    seed: int = 0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "base_rate": (0, math.inf),
        "head_rate": (0, math.inf),
        "epochs": (1, 10_000),
        "batch_size": (1, 1024),
        "seed": (0, math.inf),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)


@dataclass(frozen=True)
class SplitPhotos:
    """Photos of one split, and the class index of each, int [n]."""

    examples: Sequence[Example]
    targets: NDArray[np.integer]


@dataclass(frozen=True)
class Material:
    """What to fine-tune, and on which photos.

    `distortions` apply to the training photos; each epoch draws them anew.
    """

    network: BaseNetwork
    head: Head
    training: SplitPhotos
    validation: SplitPhotos
    distortions: Distortions = field(default_factory=Distortions)
    max_pixels: int | None = None


@dataclass
class State:
    """All that training needs to resume after `epoch` epochs. Arrays are float32, by name.

    `best` are the weights after `best_epoch`, which has the best validation result; epoch 0 is
    before training.
    """

    weights: Weights
    means: Weights  # running means of the gradients
    squares: Weights  # running means of their squares
    best: Weights
    epoch: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    # The Evaluations on training and on validation photos, before the first epoch and after each.
    course: list[tuple[Evaluation, Evaluation]] = field(default_factory=list)


PARTS = ("weights", "means", "squares", "best")


def state_bytes(state: State) -> bytes:
    """Returns the State as the content of a .npz file."""
    arrays = {f"{p}:{name}": v for p in PARTS for name, v in getattr(state, p).items()}
    facts = {
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "seconds": state.seconds,
        "course": [[asdict(each) for each in pair] for pair in state.course],
    }
    content = io.BytesIO()
    np.savez(content, about=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    return content.getvalue()


def read_state(path: str | Path, like: State) -> State | None:
    """Reads a State from a file of `state_bytes`.

    Returns None if the file is missing or damaged, or if its arrays do not have the names and
    shapes of those in `like`.
    """
    try:
        # NumPy leaves a damaged file open.
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            facts: dict[str, Any] = json.loads(file["about"].tobytes())
            arrays = {p: {n: file[f"{p}:{n}"] for n in getattr(like, p)} for p in PARTS}
        facts["course"] = [tuple(Evaluation(**e) for e in pair) for pair in facts["course"]]
        weights, means, squares, best = (arrays[part] for part in PARTS)
        state = State(weights, means, squares, best, **facts)
    except DAMAGED:
        return None
    same = all(
        array.shape == getattr(like, part)[name].shape and array.dtype == np.float32
        for part in PARTS
        for name, array in arrays[part].items()
    )
    return state if same else None


def options_text(options: TuningOptions) -> str:
    """Spells out TuningOptions for the digest of a checkpoint.

    Old checkpoints depend on every character; the names of the class and its fields may change.
    """
    return (
        f"TuningOptions(base_rate={options.base_rate!r}, head_rate={options.head_rate!r}, "
        f"epochs={options.epochs!r}, batch_size={options.batch_size!r}, "
        f"freeze_until={options.freeze_until!r}, scratch={options.scratch!r}, "
        f"precision={options.precision!r}, seed={options.seed!r})"
    )


def distortions_text(distortions: Distortions) -> str:
    """Spells out Distortions for the digest of a checkpoint, as `options_text` does."""
    return (
        f"Distortions(flip_left_right={distortions.flip_left_right!r}, "
        f"random_crop={distortions.random_crop!r}, random_scale={distortions.random_scale!r}, "
        f"random_brightness={distortions.random_brightness!r}, views={distortions.views!r}, "
        f"seed={distortions.seed!r})"
    )


class Pixels:
    """Reads the input images of some Photos, and keeps decoded ones while there is room.

    With distortions, it keeps the larger images from which the views are cropped.
    """

    def __init__(
        self,
        photos: SplitPhotos,
        reader: ImageReader,
        distortions: Distortions | None = None,
        memory: int = PIXEL_MEMORY,
    ) -> None:
        self._photos, self._reader, self._distortions = photos, reader, distortions
        self._left = memory  # bytes
        self._kept: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._photos.examples)

    def read(self, rows: Iterable[int], epoch: int) -> NDArray[np.float32]:
        """Returns input images, float32 [n, height, width, 3].

        With distortions, each epoch gives other views.

        Raises:
            TrainingError: a photo can no longer be read.
        """
        return np.stack([self._read(row, epoch) for row in rows])

    def _read(self, row: int, epoch: int) -> NDArray[np.float32]:
        example, chosen = self._photos.examples[row], self._distortions
        try:
            if not chosen:
                return self._keep(row, lambda: self._reader.read(example.path, example.key)[0])
            seed = (chosen.seed << 32) + epoch
            if chosen.random_scale:  # each view is cropped from another size
                view = replace(chosen, views=1, seed=seed)
                image: NDArray[np.float32]
                _, image = self._reader.read(example.path, example.key, view)
                return image
            large = self._keep(
                row, lambda: self._reader.enlarged(example.path, example.key, chosen)
            )
            rng = np.random.default_rng([seed, int(example.key, 16)])
            return self._reader.view_of(large, chosen, rng)
        except ImageError as error:
            raise TrainingError(f"{example.path} {error}") from error

    def _keep(self, row: int, decode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        if row not in self._kept:
            image = decode()
            if image.nbytes > self._left:
                return image
            self._kept[row] = image
            self._left -= image.nbytes
        return self._kept[row]


def shares_of(targets: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """Returns the weight of each photo in the loss, float32 [n] with mean 1.

    The weights make all classes count equally, as class-uniform batches do when the head is
    trained alone.
    """
    shares: NDArray[np.float32] = balancing_weights(targets, classes)[targets]
    return shares


class Tuner:
    """Fine-tunes one Material: `run` trains, `result` returns the network and head with the best
    validation result.

    Raises:
        GraphError: the layer of `freeze_until` does not exist.
        TrainingError: the network has no weights to train.
    """

    def __init__(self, material: Material, options: TuningOptions) -> None:
        self.material, self.options = material, options
        self._folded = fold_network(material.network)
        self.state = self._first_state()
        cores = os.cpu_count() or 1
        shards = -(-options.batch_size // SHARD)
        self._threads = min(cores, shards)
        self._sizes = weight_sizes(self._folded, self.state.weights)
        self._graph = TuningGraph(
            self._folded, self.state.weights, options.precision, max(1, cores // shards)
        )
        limit = () if material.max_pixels is None else (material.max_pixels,)
        self._reader = ImageReader(material.network.preprocessing, *limit)
        self._training = Pixels(material.training, self._reader, material.distortions)
        self._validation = Pixels(material.validation, self._reader)
        self._shares = shares_of(material.training.targets, len(material.head.bias))

    def _first_state(self) -> State:
        chosen, folded, head = self.options, self._folded, self.material.head
        layer = None if chosen.scratch else chosen.freeze_until
        kinds = find_weights(folded, layer) if chosen.base_rate else {}
        if chosen.scratch:
            weights = random_weights(folded, kinds, chosen.seed)
            head = random_head(head, chosen.seed)
        else:
            weights = stored_weights(folded, kinds)
        weights |= {name: value.copy() for name, value in head_weights(head).items()}
        best = {name: value.copy() for name, value in weights.items()}
        means, squares = ({n: np.zeros_like(w) for n, w in weights.items()} for _ in range(2))
        return State(weights, means, squares, best)

    def digest(self) -> str:
        """Returns the hex SHA-1 of everything that the weights after an epoch depend on."""
        material = self.material
        facts = [repr(FORMAT), options_text(self.options), distortions_text(material.distortions)]
        facts += [repr(material.network.fingerprint(self.options.precision)), repr(SHARD)]
        for photos in (material.training, material.validation):
            facts += [repr([e.key for e in photos.examples]), repr(photos.targets.tolist())]
        digest = hashlib.sha1(f"[{', '.join(facts)}]".encode())
        for array in head_weights(material.head).values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def steps_left(self) -> int:
        """Returns the number of steps left, if training does not end early."""
        return self._batches() * (0 if self._is_over() else self.options.epochs - self.state.epoch)

    def _batches(self) -> int:
        return -(-len(self.material.training.targets) // self.options.batch_size)

    def _is_over(self) -> bool:
        state, most = self.state, self.options.epochs
        epochs = range(1, state.epoch + 1)
        # Epoch 0 does not count: the first epochs may undo some of what the head had learned.
        best = max(epochs, key=lambda epoch: merit(state.course[epoch][1]), default=0)
        watched = len(self.material.validation.targets) > 0
        tired = watched and state.epoch - best >= max(FEWEST, math.ceil(PATIENCE * most))
        return state.epoch >= most or tired

    def run(self, save: Callable[[bytes], None] | None = None) -> Iterator[Step]:
        """Trains, and yields a Step after each training step.

        At the end of an epoch, the Step has evaluations on the epoch's batches and on all
        validation photos, and `save` receives the bytes of the state.

        Training ends after `epochs` epochs, or once a share PATIENCE of them passes without a
        better validation result.

        Raises:
            TrainingError: weights became infinite or NaN, or a photo can no longer be read.
        """
        state = self.state
        if not state.course:
            state.course.append((NO_EVALUATION, self.evaluate()))
        with thread_pool(self._threads) as pool:
            while not self._is_over():
                started = time.perf_counter()
                yield from self._run_epoch(pool)
                state.seconds += time.perf_counter() - started
                if save:
                    save(state_bytes(state))
                yield Step(
                    state.epoch * self._batches() - 1, head_of(state.weights), *state.course[-1]
                )

    def _run_epoch(self, pool: ThreadPoolExecutor) -> Iterator[Step]:
        """Trains on all training photos once, in an order that depends on the seed and the epoch.

        Yields a Step for each batch but the last.
        """
        state, targets = self.state, self.material.training.targets
        order = np.random.default_rng([self.options.seed, state.epoch]).permutation(len(targets))
        answers, size = [], self.options.batch_size
        first = state.epoch * self._batches()
        for batch in range(self._batches()):
            rows = order[batch * size : (batch + 1) * size]
            answers.append(self._step(pool, rows, first + batch))
            if batch < self._batches() - 1:  # `run` yields the last one, with evaluations
                yield Step(first + batch, head_of(state.weights))
        self._end_epoch(evaluation_of(np.concatenate(answers), targets[order]))

    def _step(
        self, pool: ThreadPoolExecutor, rows: NDArray[np.integer], number: int
    ) -> NDArray[np.float32]:
        """Takes one step on a batch; returns the probabilities before it, float32 [n, classes]."""
        shards = [rows[start : start + SHARD] for start in range(0, len(rows), SHARD)]
        compute = partial(self._gradients, total=len(rows))
        probabilities: list[NDArray[np.float32]] = []
        sums: Weights = {}
        for answer, gradients in in_order(pool, compute, shards, ahead=len(shards)):
            probabilities.append(answer)
            if not sums:
                sums = gradients
            else:
                for name, gradient in gradients.items():
                    sums[name] += gradient
        self._descend(sums, number)
        return np.concatenate(probabilities)

    def _gradients(
        self, rows: NDArray[np.integer], total: int
    ) -> tuple[NDArray[np.float32], Weights]:
        images = self._training.read(rows, self.state.epoch)
        targets = self.material.training.targets[rows].astype(np.int32)
        batch = Batch(images, targets, self._shares[rows] / np.float32(total))
        return self._graph.gradients(self.state.weights, batch)

    @np.errstate(over="ignore", invalid="ignore")  # `_end_epoch` checks the weights
    def _descend(self, gradients: Mapping[str, NDArray[np.float32]], number: int) -> None:
        """Takes step `number` of Adam (Kingma and Ba 2015, arXiv:1412.6980), in place.

        The learning rates rise over the first steps, then fall linearly to 0 at the end of the last
        epoch.
        """
        state, (first, second) = self.state, ADAM_DECAYS
        left = min(1 - number / (self.options.epochs * self._batches()), (number + 1) / WARM_UP)
        left *= np.sqrt(1 - second ** (number + 1)) / (1 - first ** (number + 1))
        for name, gradient in gradients.items():
            mean, square = state.means[name], state.squares[name]
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            rate = self.options.head_rate if name.startswith(OWN) else self.options.base_rate
            size = np.float32(rate * left) * self._sizes[name]
            state.weights[name] -= size * mean / (np.sqrt(square) + EPSILON)

    def _end_epoch(self, training: Evaluation) -> None:
        state = self.state
        if not all(np.isfinite(value).all() for value in state.weights.values()):
            raise TrainingError(
                f"fine-tuning diverged in epoch {state.epoch + 1}: the weights are no longer "
                f"finite; lower `TuningOptions.base_rate` and `TuningOptions.head_rate`"
            )
        state.epoch += 1
        state.course.append((training, self.evaluate()))
        best, last = (state.course[epoch][1] for epoch in (state.best_epoch, -1))
        if not last.count or merit(last) > merit(best):
            state.best_epoch = state.epoch
            state.best = {name: value.copy() for name, value in state.weights.items()}

    def evaluate(self) -> Evaluation:
        """Evaluates the current weights on all validation photos."""
        return evaluation_of(
            self._probabilities(self._validation, self.state.weights),
            self.material.validation.targets,
        )

    def best_probabilities(self, photos: SplitPhotos) -> NDArray[np.float32]:
        """Returns the best weights' probabilities for some Photos, float32 [n, classes]."""
        return self._probabilities(Pixels(photos, self._reader), self.state.best)

    def _probabilities(self, pixels: Pixels, weights: Weights) -> NDArray[np.float32]:
        classes, count = len(self.material.head.bias), len(pixels)

        def compute(start: int) -> NDArray[np.float32]:
            images = pixels.read(range(start, min(start + SHARD, count)), 0)
            return self._graph.probabilities(weights, images)

        with thread_pool(self._threads) as pool:
            starts = range(0, count, SHARD)
            answers = list(in_order(pool, compute, starts, ahead=self._threads))
        return np.concatenate([np.zeros((0, classes), np.float32), *answers])

    def course(self) -> list[Step]:
        """Returns the Steps with evaluations up to the best weights, also those before a resume."""
        batches = self._batches()
        return [
            Step(epoch * batches - 1, head_of(self.state.best), *evaluations)
            for epoch, evaluations in enumerate(self.state.course[: self.state.best_epoch + 1])
            if epoch
        ]

    def result(self) -> tuple[BaseNetwork, Head]:
        """Returns the (BaseNetwork, Head) with the best weights.

        A network whose weights did not change is the original one.
        """
        best = self.state.best
        own = {name: value for name, value in best.items() if not name.startswith(OWN)}
        same = not own or (self.state.best_epoch == 0 and not self.options.scratch)
        network = self.material.network if same else with_weights(self._folded, own)
        return network, head_of(best)


NO_EVALUATION = Evaluation(math.nan, math.nan, 0)


def merit(evaluation: Evaluation) -> tuple[float, float]:
    """Returns the key by which a validation result is better: cross entropy, then accuracy.

    On few photos, accuracy changes by whole photos and does not show that wrong answers become
    surer.
    """
    return -evaluation.cross_entropy, evaluation.accuracy
