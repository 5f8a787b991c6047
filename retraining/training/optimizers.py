"""Optimizers: those that take a step for each batch, and L-BFGS on all photos.

The optimizers by batches receive gradients, a list of float32 arrays shaped like the parameters,
and change the parameters in place. The caller multiplies the gradients by `scale` beforehand,
because that is cheaper where they are computed.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

MOMENTUM = 0.9  # makes a step count as much as ten without it
RMS_DECAY = 0.9  # as in the lecture
ADAM_DECAYS = (0.9, 0.999)  # of the paper, as is the next
EPSILON = 1e-8
CORRECTIONS = 10  # L-BFGS's memory, in steps
SAME_LOSS = 1e-7  # relative change of the loss that ends L-BFGS; float32 resolves no smaller one
FLAT = 1e-4  # largest gradient entry (per centred and scaled weight) that also ends L-BFGS
LBFGS = "lbfgs"

# Default learning rates, from the classic, the Adam paper and the RMSProp lecture.
RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 0.001, "rmsprop": 0.001}
OPTIMIZERS = (*RATES, LBFGS)

Arrays: TypeAlias = Sequence[NDArray[np.float32]]  # parameters, or gradients of their shapes


class Optimizer(Protocol):
    """Changes parameters in place, a step for each batch."""

    @property
    def scale(self) -> float:
        """The factor by which the caller multiplies the gradients before `update`."""

    def update(self, gradients: Arrays) -> None:
        """Takes a step; `gradients` are already multiplied by `scale`."""


def by_batches(name: str, parameters: Arrays, rate: float) -> Optimizer:
    """Returns the Optimizer of a name in RATES."""
    kinds: dict[str, Callable[[Arrays, float], Optimizer]]
    kinds = {"sgd": Descent, "momentum": Momentum, "adam": Adam, "rmsprop": RmsProp}
    return kinds[name](parameters, rate)


class Descent:
    """Plain gradient descent."""

    def __init__(self, parameters: Arrays, rate: float) -> None:
        self._parameters, self.scale = parameters, rate

    def update(self, gradients: Arrays) -> None:
        for now, change in zip(self._parameters, gradients, strict=True):
            now -= change


class Momentum:
    """Gradient descent with Polyak's (1964) heavy ball: speed = 0.9 speed + rate gradient."""

    def __init__(self, parameters: Arrays, rate: float) -> None:
        self._parameters, self.scale = parameters, rate
        self._speeds = [np.zeros_like(array) for array in parameters]

    def update(self, gradients: Arrays) -> None:
        for now, speed, change in zip(self._parameters, self._speeds, gradients, strict=True):
            speed *= MOMENTUM
            speed += change
            now -= speed


class RmsProp:
    """RMSProp: Tieleman and Hinton (2012), Neural Networks for Machine Learning, lecture 6.5."""

    scale = 1.0

    def __init__(self, parameters: Arrays, rate: float) -> None:
        self._parameters, self._rate = parameters, rate
        self._squares = [np.zeros_like(array) for array in parameters]

    def update(self, gradients: Arrays) -> None:
        for now, square, gradient in zip(self._parameters, self._squares, gradients, strict=True):
            square *= RMS_DECAY
            square += (1 - RMS_DECAY) * gradient * gradient
            now -= self._rate * gradient / (np.sqrt(square) + EPSILON)


class Adam:
    """Adam: Kingma and Ba (2015), arXiv:1412.6980, algorithm 1."""

    scale = 1.0

    def __init__(self, parameters: Arrays, rate: float) -> None:
        self._parameters, self._rate, self._count = parameters, rate, 0
        self._means = [np.zeros_like(array) for array in parameters]
        self._squares = [np.zeros_like(array) for array in parameters]

    def update(self, gradients: Arrays) -> None:
        self._count += 1
        first, second = ADAM_DECAYS
        # Both bias corrections in one factor, as at the end of section 2 of the paper.
        rate = self._rate * np.sqrt(1 - second**self._count) / (1 - first**self._count)
        state = zip(self._parameters, self._means, self._squares, gradients, strict=True)
        for now, mean, square, gradient in state:
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient * gradient - square)
            now -= np.float32(rate) * mean / (np.sqrt(square) + EPSILON)


def lbfgs(
    parameters: Arrays,
    loss_and_gradients: Callable[[], tuple[float, Arrays]],
    frame: "Frame",
    most: int,
    after: Callable[[int], None],
) -> int:
    """Minimises a loss over `parameters`, in place, with SciPy's L-BFGS-B (Byrd et al. 1995).

    Args:
        parameters: float32 arrays; the first two are weights [width, out] and bias [out].
        loss_and_gradients: returns (loss, gradients) at the parameters' current values.
        frame: the Frame of the vectors that the first layer receives.
        most: the largest number of iterations.
        after: called after each iteration with its number, from 0.

    Returns:
        The number of iterations.
    """
    from scipy.optimize import minimize

    def at(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        frame.write(point, parameters)
        loss, gradients = loss_and_gradients()
        return loss, frame.gradients(gradients)

    count = itertools.count()

    def record(point: NDArray[np.float64]) -> None:
        frame.write(point, parameters)
        after(next(count))

    limits = {"maxiter": most, "maxcor": CORRECTIONS, "ftol": SAME_LOSS, "gtol": FLAT}
    start = frame.read(parameters)
    result = minimize(at, start, jac=True, method="L-BFGS-B", callback=record, options=limits)
    frame.write(result.x, parameters)
    return int(result.nit)


class Frame:
    """Centred and scaled coordinates, in which L-BFGS needs fewer iterations for the same loss.

    The first layer's w x + b equals (s w) (x - m) / s + (b + w m). So L-BFGS works on s w and
    b + w m, while the vectors stay as they are.
    """

    @np.errstate(over="ignore", invalid="ignore")  # `train` checks that the weights stay finite
    def __init__(self, sample: NDArray[np.float32]) -> None:
        """Measures the mean and the scale of a sample of vectors, float32 [n, width]."""
        self._mean: NDArray[np.float64] = sample.mean(axis=0, dtype=np.float64)
        square = (sample.astype(np.float64) ** 2).mean() - (self._mean**2).mean()
        self.scale = float(np.sqrt(square)) if square > 0 else 1.0

    def read(self, parameters: Arrays) -> NDArray[np.float64]:
        """Returns the point, float64 [number of all weights], that represents `parameters`."""
        first, bias, *rest = (array.astype(np.float64) for array in parameters)
        arrays = [first * self.scale, bias + self._mean @ first, *rest]
        return np.concatenate([array.ravel() for array in arrays])

    def write(self, point: NDArray[np.float64], parameters: Arrays) -> None:
        """Writes the weights and biases that a point represents into `parameters`."""
        start = 0
        for array in parameters:
            array[...] = point[start : start + array.size].reshape(array.shape)
            start += array.size
        weights, bias = parameters[:2]
        first = point[: weights.size].reshape(weights.shape) / self.scale
        weights[...] = first
        bias[...] = point[weights.size : weights.size + bias.size] - self._mean @ first

    def gradients(self, gradients: Arrays) -> NDArray[np.float64]:
        """Converts gradients by the parameters into the gradient by the point, float64."""
        first, bias, *rest = (array.astype(np.float64) for array in gradients)
        arrays = [(first - np.outer(self._mean, bias)) / self.scale, bias, *rest]
        return np.concatenate([array.ravel() for array in arrays])
