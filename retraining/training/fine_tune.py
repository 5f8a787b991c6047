"""Trains a network's own weights together with the head, from photos: Adam, checkpoints, resume.

Batches are split into shards, one per thread, whose gradients are summed in order: on one machine
the same seed gives the same weights, also where a run was interrupted.
"""

import hashlib
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np

from retraining.bottlenecks.extract import in_order, thread_pool
from retraining.graphs.nodes import constant, nodes_by_name
from retraining.networks.network import BaseNetwork
from retraining.photos.reader import Distortions, ImageError, ImageReader
from retraining.training.head import Evaluation, Head, evaluation_of
from retraining.training.loop import Step, TrainingError
from retraining.training.loss import balancing_weights
from retraining.training.optimizers import ADAM_DECAYS, EPSILON
from retraining.training.tuning_graph import (
    OWN,
    SHARD,
    Batch,
    TuningGraph,
    find_weights,
    fold_network,
    head_of,
    head_weights,
    random_head,
    random_weights,
    weight_sizes,
    with_weights,
)

FORMAT = 2  # of the checkpoints; raised when the same settings lead to other weights
WARM_UP = 20  # steps at the start with smaller rates
PATIENCE = 1 / 2  # share of all epochs without a better validation after which training ends
FEWEST = 2  # and at least so many
RANDOM_VIEWS = Distortions(flip_left_right=True, random_crop=25)
PIXEL_MEMORY = 1 << 30  # bytes of decoded photos that are kept; the others are decoded each epoch
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TuningOptions:
    """How a network is fine-tuned; rates are Adam's step sizes.

    They are shares of the size of a channel's weights (`tuning_graph.weight_sizes`). With a
    `base_rate` of 0 the head alone is trained. `scratch` starts from random weights, of all layers.
    `freeze_until` names the last layer that stays as it is.
    """

    base_rate: float = 0.002
    head_rate: float = 0.01
    epochs: int = 15  # a few minutes for a small network and 1,000 photos on a processor
    batch_size: int = 32
    freeze_until: str | None = None
    scratch: bool = False
    precision: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Photos:
    """Photos of one split: dataset.Examples and the class number of each, int [n]."""

    examples: list
    truth: np.ndarray


@dataclass(frozen=True)
class Material:
    """What is tuned on what. `distortions` are those of the training photos, drawn anew in each
    epoch."""

    network: BaseNetwork
    head: Head
    training: Photos
    validation: Photos
    distortions: Distortions = field(default_factory=Distortions)
    max_pixels: int | None = None


# -- the state, and its file -----------------------------------------------------------------


@dataclass
class State:
    """All that training needs to go on after `epoch` epochs; arrays are float32, by name.

    `best` are the weights of `best_epoch`, the best on validation; 0 is before the first.
    """

    weights: dict
    means: dict  # running means of the gradients
    squares: dict  # and of their squares
    best: dict
    epoch: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    course: list = field(default_factory=list)  # (training, validation) Evaluation per epoch


PARTS = ("weights", "means", "squares", "best")


def state_bytes(state):
    """The State as a .npz file's content."""
    arrays = {f"{p}:{name}": v for p in PARTS for name, v in getattr(state, p).items()}
    about = {
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "seconds": state.seconds,
        "course": [[asdict(each) for each in pair] for pair in state.course],
    }
    content = io.BytesIO()
    np.savez(content, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    return content.getvalue()


def read_state(path, like):
    """The State in a file of `state_bytes`; None if there is none, or none with arrays `like` those
    of another State."""
    try:
        # NumPy leaves a damaged file open.
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            arrays = {p: {n: file[f"{p}:{n}"] for n in getattr(like, p)} for p in PARTS}
        about["course"] = [tuple(Evaluation(**e) for e in pair) for pair in about["course"]]
        state = State(**arrays, **about)
    except DAMAGED:
        return None
    same = all(
        array.shape == getattr(like, part)[name].shape and array.dtype == np.float32
        for part in PARTS
        for name, array in arrays[part].items()
    )
    return state if same else None


def options_text(options):
    """TuningOptions as the digest of a checkpoint spells them.

    Old checkpoints depend on every character; the names of the class and its fields may change.
    """
    return (
        f"TuningOptions(base_rate={options.base_rate!r}, head_rate={options.head_rate!r}, "
        f"epochs={options.epochs!r}, batch_size={options.batch_size!r}, "
        f"freeze_until={options.freeze_until!r}, scratch={options.scratch!r}, "
        f"precision={options.precision!r}, seed={options.seed!r})"
    )


def distortions_text(distortions):
    """Distortions likewise."""
    return (
        f"Distortions(flip_left_right={distortions.flip_left_right!r}, "
        f"random_crop={distortions.random_crop!r}, random_scale={distortions.random_scale!r}, "
        f"random_brightness={distortions.random_brightness!r}, views={distortions.views!r}, "
        f"seed={distortions.seed!r})"
    )


# -- the photos ------------------------------------------------------------------------------


class Pixels:
    """The input images of some Photos, kept once they are decoded while there is room.

    With distortions, what is kept is the photo as its views are cropped from it.
    """

    def __init__(self, photos, reader, distortions=None, memory=PIXEL_MEMORY):
        self._photos, self._reader, self._distortions = photos, reader, distortions
        self._left = memory  # bytes
        self._kept = {}

    def __len__(self):
        return len(self._photos.examples)

    def read(self, rows, epoch):
        """float32 [n, height, width, 3]: with distortions, other views in each epoch.

        Raises:
            TrainingError: a photo can no longer be read.
        """
        return np.stack([self._read(row, epoch) for row in rows])

    def _read(self, row, epoch):
        example, chosen = self._photos.examples[row], self._distortions
        try:
            if not chosen:
                return self._keep(row, lambda: self._reader.read(example.path, example.key)[0])
            seed = (chosen.seed << 32) + epoch
            if chosen.random_scale:  # each view is cropped from another size
                view = replace(chosen, views=1, seed=seed)
                return self._reader.read(example.path, example.key, view)[1]
            large = self._keep(
                row, lambda: self._reader.enlarged(example.path, example.key, chosen)
            )
            rng = np.random.default_rng([seed, int(example.key, 16)])
            return self._reader.view_of(large, chosen, rng)
        except ImageError as error:
            raise TrainingError(f"{example.path} {error}") from error

    def _keep(self, row, decode):
        if row not in self._kept:
            image = decode()
            if image.nbytes > self._left:
                return image
            self._kept[row] = image
            self._left -= image.nbytes
        return self._kept[row]


def shares_of(truth, classes):
    """How much each photo counts, float32 [n], mean 1: each class as much as any other.

    As in the head's own training, whose batches are drawn class-uniformly.
    """
    return balancing_weights(truth, classes)[truth]


# -- training --------------------------------------------------------------------------------


class Tuner:
    """Fine-tunes one Material with one TuningOptions; `run` does it, `result` is what came of it.

    Raises:
        GraphError: the layer of `freeze_until` does not exist.
        TrainingError: the network has nothing that can be trained.
    """

    def __init__(self, material, options):
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
        about = material.network.preprocessing
        limit = () if material.max_pixels is None else (material.max_pixels,)
        self._reader = ImageReader(about.size, about.mean, about.std, *limit)
        self._training = Pixels(material.training, self._reader, material.distortions)
        self._validation = Pixels(material.validation, self._reader)
        self._shares = shares_of(material.training.truth, len(material.head.bias))

    def _first_state(self):
        chosen, folded, head = self.options, self._folded, self.material.head
        layer = None if chosen.scratch else chosen.freeze_until
        kinds = find_weights(folded, layer) if chosen.base_rate else {}
        if chosen.scratch:
            weights = random_weights(folded, kinds, chosen.seed)
            head = random_head(head, chosen.seed)
        else:
            nodes = nodes_by_name(folded.graph_def)
            weights = {name: constant(nodes, name).copy() for name in kinds}
        weights |= {name: value.copy() for name, value in head_weights(head).items()}
        best = {name: value.copy() for name, value in weights.items()}
        means, squares = ({n: np.zeros_like(w) for n, w in weights.items()} for _ in range(2))
        return State(weights, means, squares, best)

    def digest(self):
        """Hex SHA-1 of all that the weights after an epoch depend on."""
        material = self.material
        facts = [repr(FORMAT), options_text(self.options), distortions_text(material.distortions)]
        facts += [repr(material.network.fingerprint(self.options.precision)), repr(SHARD)]
        for photos in (material.training, material.validation):
            facts += [repr([e.key for e in photos.examples]), repr(photos.truth.tolist())]
        digest = hashlib.sha1(f"[{', '.join(facts)}]".encode())
        for array in head_weights(material.head).values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def steps_left(self):
        """The number of steps of training from here, if nothing ends it early."""
        return self._batches() * (0 if self._is_over() else self.options.epochs - self.state.epoch)

    def _batches(self):
        return -(-len(self.material.training.truth) // self.options.batch_size)

    def _is_over(self):
        state, most = self.state, self.options.epochs
        epochs = range(1, state.epoch + 1)
        # Not counted from the start: the first epochs may undo some of what the head had learned.
        best = max(epochs, key=lambda epoch: merit(state.course[epoch][1]), default=0)
        watched = len(self.material.validation.truth) > 0
        tired = watched and state.epoch - best >= max(FEWEST, math.ceil(PATIENCE * most))
        return state.epoch >= most or tired

    def run(self, save: Callable[[bytes], None] | None = None):
        """Yields a train.Step after each step; at an epoch's end with evaluations of all of the
        epoch's batches and of all validation photos. `save` gets the state's bytes then.

        Training ends after `epochs` epochs, or a PATIENCE of them without a better validation.

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

    def _run_epoch(self, pool):
        """One pass over all training photos in an order that the seed and the epoch give."""
        state, truth = self.state, self.material.training.truth
        order = np.random.default_rng([self.options.seed, state.epoch]).permutation(len(truth))
        answers, size = [], self.options.batch_size
        first = state.epoch * self._batches()
        for batch in range(self._batches()):
            rows = order[batch * size : (batch + 1) * size]
            answers.append(self._step(pool, rows, first + batch))
            if batch < self._batches() - 1:  # `run` yields the last one, with evaluations
                yield Step(first + batch, head_of(state.weights))
        self._end_epoch(evaluation_of(np.concatenate(answers), truth[order]))

    def _step(self, pool, rows, number):
        """One step on a batch; the probabilities before it, float32 [n, classes]."""
        shards = [rows[start : start + SHARD] for start in range(0, len(rows), SHARD)]
        compute = partial(self._gradients, total=len(rows))
        probabilities, sums = [], None
        for answer, slopes in in_order(pool, compute, shards, ahead=len(shards)):
            probabilities.append(answer)
            if sums is None:
                sums = slopes
            else:
                for name, slope in slopes.items():
                    sums[name] += slope
        self._descend(sums, number)
        return np.concatenate(probabilities)

    def _gradients(self, rows, total):
        images = self._training.read(rows, self.state.epoch)
        truth = self.material.training.truth[rows].astype(np.int32)
        batch = Batch(images, truth, self._shares[rows] / np.float32(total))
        return self._graph.gradients(self.state.weights, batch)

    @np.errstate(over="ignore", invalid="ignore")  # `_end_epoch` looks for what is not finite
    def _descend(self, slopes, number):
        """Step `number` of Adam (Kingma and Ba 2015, arXiv:1412.6980), in place.

        The rates rise over the first steps and fall linearly, to 0 behind the last of all epochs.
        """
        state, (first, second) = self.state, ADAM_DECAYS
        left = min(1 - number / (self.options.epochs * self._batches()), (number + 1) / WARM_UP)
        left *= np.sqrt(1 - second ** (number + 1)) / (1 - first ** (number + 1))
        for name, slope in slopes.items():
            mean, square = state.means[name], state.squares[name]
            mean += (1 - first) * (slope - mean)
            square += (1 - second) * (slope * slope - square)
            rate = self.options.head_rate if name.startswith(OWN) else self.options.base_rate
            size = np.float32(rate * left) * self._sizes[name]
            state.weights[name] -= size * mean / (np.sqrt(square) + EPSILON)

    def _end_epoch(self, training):
        state = self.state
        if not all(np.isfinite(value).all() for value in state.weights.values()):
            raise TrainingError(
                f"fine-tuning went astray in epoch {state.epoch + 1}: the weights are no longer "
                f"finite; lower --base_learning_rate and --head_learning_rate"
            )
        state.epoch += 1
        state.course.append((training, self.evaluate()))
        best, last = (state.course[epoch][1] for epoch in (state.best_epoch, -1))
        if not last.count or merit(last) > merit(best):
            state.best_epoch = state.epoch
            state.best = {name: value.copy() for name, value in state.weights.items()}

    def evaluate(self):
        """The Evaluation of the weights as they are on all validation photos."""
        return evaluation_of(
            self._probabilities(self._validation, self.state.weights),
            self.material.validation.truth,
        )

    def best_probabilities(self, photos):
        """float32 [n, classes] for some Photos, by the best weights."""
        return self._probabilities(Pixels(photos, self._reader), self.state.best)

    def _probabilities(self, pixels, weights):
        classes, count = len(self.material.head.bias), len(pixels)

        def compute(start):
            images = pixels.read(range(start, min(start + SHARD, count)), 0)
            return self._graph.probabilities(weights, images)

        with thread_pool(self._threads) as pool:
            starts = range(0, count, SHARD)
            answers = list(in_order(pool, compute, starts, ahead=self._threads))
        return np.concatenate([np.zeros((0, classes), np.float32), *answers])

    def course(self):
        """The evaluated train.Steps up to the best weights, those before a resume among them."""
        batches = self._batches()
        return [
            Step(epoch * batches - 1, head_of(self.state.best), *evaluations)
            for epoch, evaluations in enumerate(self.state.course[: self.state.best_epoch + 1])
            if epoch
        ]

    def result(self):
        """(BaseNetwork, Head) of the best weights; a network that was not trained as it came."""
        best = self.state.best
        own = {name: value for name, value in best.items() if not name.startswith(OWN)}
        same = not own or (self.state.best_epoch == 0 and not self.options.scratch)
        network = self.material.network if same else with_weights(self._folded, own)
        return network, head_of(best)


NO_EVALUATION = Evaluation(math.nan, math.nan, 0)


def merit(evaluation):
    """What makes weights better: the validation photos' cross entropy, then accuracy.

    Of few photos the accuracy jumps by whole photos, while wrong answers may become surer.
    """
    return -evaluation.cross_entropy, evaluation.accuracy
