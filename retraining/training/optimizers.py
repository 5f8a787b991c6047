"""Ways to change a head's weights so that the loss falls: by batches, or by L-BFGS on all photos.

The steps by batches are given gradients, a list of arrays float32 like the parameters, and change
the parameters in place. `scale` is what gradients are to be multiplied by beforehand, which is
cheaper where they are made.
"""

import itertools

import numpy as np

MOMENTUM = 0.9  # makes a step count as much as ten without it
RMS_DECAY = 0.9  # as in the lecture
ADAM_DECAYS = (0.9, 0.999)  # of the paper, as is the next
EPSILON = 1e-8
CORRECTIONS = 10  # L-BFGS's memory, in steps
SAME_LOSS = 1e-7  # relative change of the loss that ends L-BFGS: float32 tells no smaller one
FLAT = 1e-4  # largest slope (per centred and scaled weight) that ends it as well
LBFGS = "lbfgs"

# The learning rates where none is asked for: the classic's, Adam's paper's, the lecture's.
RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 0.001, "rmsprop": 0.001}
OPTIMIZERS = (*RATES, LBFGS)


def by_batches(name, parameters, rate):
    """The optimizer (an object with `scale` and `update`) of a name in RATES."""
    kinds = {"sgd": Descent, "momentum": Momentum, "adam": Adam, "rmsprop": RmsProp}
    return kinds[name](parameters, rate)


class Descent:
    """Plain gradient descent."""

    def __init__(self, parameters, rate):
        self._parameters, self.scale = parameters, rate

    def update(self, gradients):
        for now, change in zip(self._parameters, gradients, strict=True):
            now -= change


class Momentum:
    """Descent with Polyak's (1964) heavy ball: speed = 0.9 speed + rate gradient."""

    def __init__(self, parameters, rate):
        self._parameters, self.scale = parameters, rate
        self._speeds = [np.zeros_like(array) for array in parameters]

    def update(self, gradients):
        for now, speed, change in zip(self._parameters, self._speeds, gradients, strict=True):
            speed *= MOMENTUM
            speed += change
            now -= speed


class RmsProp:
    """Tieleman and Hinton (2012), Neural Networks for Machine Learning, lecture 6.5."""

    scale = 1.0

    def __init__(self, parameters, rate):
        self._parameters, self._rate = parameters, rate
        self._squares = [np.zeros_like(array) for array in parameters]

    def update(self, gradients):
        for now, square, slope in zip(self._parameters, self._squares, gradients, strict=True):
            square *= RMS_DECAY
            square += (1 - RMS_DECAY) * slope * slope
            now -= self._rate * slope / (np.sqrt(square) + EPSILON)


class Adam:
    """Kingma and Ba (2015), arXiv:1412.6980, algorithm 1."""

    scale = 1.0

    def __init__(self, parameters, rate):
        self._parameters, self._rate, self._count = parameters, rate, 0
        self._means = [np.zeros_like(array) for array in parameters]
        self._squares = [np.zeros_like(array) for array in parameters]

    def update(self, gradients):
        self._count += 1
        first, second = ADAM_DECAYS
        # Both corrections of the start's bias in one number, as at the end of its section 2.
        rate = self._rate * np.sqrt(1 - second**self._count) / (1 - first**self._count)
        state = zip(self._parameters, self._means, self._squares, gradients, strict=True)
        for now, mean, square, slope in state:
            mean += (1 - first) * (slope - mean)
            square += (1 - second) * (slope * slope - square)
            now -= np.float32(rate) * mean / (np.sqrt(square) + EPSILON)


def lbfgs(parameters, loss_and_slopes, frame, most, after):
    """Minimises a loss over `parameters`, changed in place, by L-BFGS (Byrd et al. 1995, SciPy's).

    Args:
        parameters: arrays float32, the first of them [width, out] and its bias [out].
        loss_and_slopes: gives (loss, gradients like the parameters) at their present values.
        frame: a Frame of the vectors that the first layer is fed.
        most: iterations at most.
        after: called with the number, from 0, after each.

    Returns:
        The number of iterations.
    """
    from scipy.optimize import minimize

    def at(point):
        frame.write(point, parameters)
        loss, slopes = loss_and_slopes()
        return loss, frame.slopes(slopes)

    count = itertools.count()

    def each(point):
        frame.write(point, parameters)
        after(next(count))

    limits = {"maxiter": most, "maxcor": CORRECTIONS, "ftol": SAME_LOSS, "gtol": FLAT}
    start = frame.read(parameters)
    found = minimize(at, start, jac=True, method="L-BFGS-B", callback=each, options=limits)
    frame.write(found.x, parameters)
    return int(found.nit)


class Frame:
    """Centred and scaled coordinates, in which L-BFGS needs fewer iterations; the loss is the same.

    The first layer's w x + b is also (s w) (x - m) / s + (b + w m): the vectors stay as they are,
    and nothing is to be folded back.
    """

    @np.errstate(over="ignore", invalid="ignore")  # `train` looks for what is not finite
    def __init__(self, sample):
        """Of vectors float32 [n, width]; some of them will do."""
        self._mean = sample.mean(axis=0, dtype=np.float64)
        square = (sample.astype(np.float64) ** 2).mean() - (self._mean**2).mean()
        self.scale = float(np.sqrt(square)) if square > 0 else 1.0

    def read(self, parameters):
        """The point float64 [all parameters] that stands for `parameters`."""
        first, bias, *rest = (array.astype(np.float64) for array in parameters)
        arrays = [first * self.scale, bias + self._mean @ first, *rest]
        return np.concatenate([array.ravel() for array in arrays])

    def write(self, point, parameters):
        """Puts what a point stands for into `parameters`."""
        start = 0
        for array in parameters:
            array[...] = point[start : start + array.size].reshape(array.shape)
            start += array.size
        weights, bias = parameters[:2]
        first = point[: weights.size].reshape(weights.shape) / self.scale
        weights[...] = first
        bias[...] = point[weights.size : weights.size + bias.size] - self._mean @ first

    def slopes(self, gradients):
        """The gradient by the point, float64, of that by the parameters."""
        first, bias, *rest = (array.astype(np.float64) for array in gradients)
        arrays = [(first - np.outer(self._mean, bias)) / self.scale, bias, *rest]
        return np.concatenate([array.ravel() for array in arrays])
