"""Two small networks trained by the suite's own gradients: X or O on drawn pictures, LeNet-5 on real digits.

A step is forward, ``cross_entropy_backward``, the layers' gradients from last to first, and SGD with
momentum.
Algorithms are named, not picked, so that equal seeds give equal numbers on one machine with equal threads,
whatever it has measured. Pooling comes before ReLU, which gives the same numbers, since the largest of a
window is the same element before and after, and four times fewer of them. The rate falls to 0 in equal
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import algos
from algos import layers
from bench import perf_counter

BATCH, MOMENTUM = 64, 0.9
BLOCK = 1 << 14  # weights that are changed while they lie in the cache
FORWARD, WEIGHTS = "winograd_f4", "direct_channels"  # the fastest for LeNet-5's second layer
PICTURE = 16  # rows and columns of an X or O


class Layer:
    """One step of a network: ``forward(x)``, then ``backward(grad)``, which returns the gradient of x."""

    weights: list[np.ndarray]
    gradients: list[np.ndarray]

    def __init__(self) -> None:
        self.weights, self.gradients = [], []

    def forward(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def backward(self, grad: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def _drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights that keep the size of what passes through them and a ReLU (He and others, arXiv:1502.01852)."""
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


class Convolution(Layer):
    """w: (O, C, K, K); ``first``: nobody needs the gradient of its input; ``threads``: as all layers have."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, ...], padding: int, threads: int,
        first: bool = False,
    ) -> None:  # fmt: skip
        self.weights = [_drawn(rng, *shape), np.zeros(shape[0], np.float32)]
        self.padding, self.threads, self.first = padding, threads, first
        # Of one channel each filter is one of pictures
        self.by = ("direct_pixels", "direct_pixels") if shape[1] == 1 else (FORWARD, WEIGHTS)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        options: dict[str, Any] = {"padding": self.padding, "threads": self.threads}
        w, bias = self.weights
        return algos.conv2d(x, w, bias, algorithm=self.by[0], **options)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        w = self.weights[0]
        options: dict[str, Any] = {"padding": self.padding, "threads": self.threads}
        dw = algos.conv2d_weight(self.x, w.shape, grad, algorithm=self.by[1], **options)
        self.gradients = [dw, algos.conv2d_bias(grad)]
        if self.first:
            return grad
        return algos.conv2d_input(self.x.shape, w, grad, algorithm=FORWARD, **options)


class PooledRelu(Layer):
    """The largest of windows of 2 x 2, partial ones among them, and what of it is above 0."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, self.pooled = x, layers.max_pool2d(x, 2, ceil_mode=True, threads=self.threads)
        return layers.relu(self.pooled, threads=self.threads)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        grad = layers.relu_backward(grad, self.pooled, threads=self.threads)
        return layers.max_pool2d_backward(grad, self.x, 2, ceil_mode=True, threads=self.threads)


class Dense(Layer):
    """Of everything in an image, with a ReLU before or not."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, threads: int, relu: bool) -> None:
        self.weights = [_drawn(rng, outputs, inputs), np.zeros(outputs, np.float32)]
        self.relu, self.threads = relu, threads

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        flat = x.reshape(len(x), -1)
        self.read = layers.relu(flat, threads=self.threads) if self.relu else flat
        return layers.linear(self.read, *self.weights, threads=self.threads)

    def backward(self, grad: np.ndarray) -> np.ndarray:
        dx, *self.gradients = layers.linear_backward(grad, self.read, *self.weights, threads=self.threads)
        if self.relu:
            dx = layers.relu_backward(dx, self.x.reshape(dx.shape), threads=self.threads)
        return dx.reshape(self.x.shape)


class Network:
    """Layers one after another, for scores of classes."""

    def __init__(self, parts: list[Layer]) -> None:
        self.layers = parts

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, classes) of pictures (N, 1, H, W)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def gradients(self, x: np.ndarray, target: np.ndarray) -> float:
        """The loss; the layers hold the gradients of their weights then."""
        scores = self.scores(x)
        grad = layers.cross_entropy_backward(np.float32(1), scores, target)
        for layer in reversed(self.layers):
            grad = layer.backward(grad)
        return float(layers.cross_entropy(scores, target))


def lenet5(rng: np.random.Generator, threads: int) -> Network:
    """That of the slides, for pictures of 28 x 28."""
    return Network([
        Convolution(rng, (20, 1, 5, 5), 2, threads, first=True), PooledRelu(threads),
        Convolution(rng, (50, 20, 5, 5), 2, threads), PooledRelu(threads),
        Dense(rng, 2450, 500, threads, relu=False), Dense(rng, 500, 10, threads, relu=True),
    ])  # fmt: skip


def xo(rng: np.random.Generator, threads: int) -> Network:
    """Three filters of 3 x 3, as the slides begin, then eight, for pictures of 16 x 16."""
    return Network([
        Convolution(rng, (3, 1, 3, 3), 1, threads, first=True), PooledRelu(threads),
        Convolution(rng, (8, 3, 3, 3), 1, threads), PooledRelu(threads),
        Dense(rng, 8 * 4 * 4, 2, threads, relu=False),
    ])  # fmt: skip


class Sgd:
    """Stochastic gradient descent with momentum: v = MOMENTUM v + gradient, weight -= rate v, in place."""

    def __init__(self, network: Network, rate: float) -> None:
        self.network, self.rate = network, rate
        self.speeds = [np.zeros_like(w) for layer in network.layers for w in layer.weights]

    def step(self, x: np.ndarray, target: np.ndarray) -> float:
        """The loss before the step."""
        loss = self.network.gradients(x, target)
        weights = [w for layer in self.network.layers for w in layer.weights]
        gradients = [g for layer in self.network.layers for g in layer.gradients]
        for whole in zip(weights, gradients, self.speeds, strict=True):
            flat = [array.reshape(-1) for array in whole]
            for first in range(0, flat[0].size, BLOCK):
                w, g, v = (array[first : first + BLOCK] for array in flat)
                v *= MOMENTUM
                v += g
                w -= v * np.float32(self.rate)
        return loss


# ---- pictures ----------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """x: (N, 1, H, W) float32, target: (N,), and those that are held back."""

    x: np.ndarray
    target: np.ndarray
    held_x: np.ndarray
    held_target: np.ndarray


def letters(rng: np.random.Generator, count: int = 4000, held: int = 500) -> Pictures:
    """X (0) and O (1) of any size and thickness, anywhere, 1 on -1, under noise."""
    target = rng.integers(0, 2, count + held)
    radius = rng.uniform(3, 6, (count + held, 1, 1))
    thick = rng.uniform(0.5, 1.2, radius.shape)
    room = PICTURE / 2 - 0.5
    down, along = (np.arange(PICTURE)[axes] - room - rng.uniform(-1, 1, radius.shape) * (room - radius)
                   for axes in (np.s_[None, :, None], np.s_[None, None, :]))  # fmt: skip
    inside = np.maximum(np.abs(down), np.abs(along)) < radius
    cross = inside & (np.abs(np.abs(down) - np.abs(along)) < 1.4 * thick)
    ring = np.abs(np.hypot(down, along) - radius + thick) < thick
    x = np.where(np.where(target[:, None, None] == 0, cross, ring), 1.0, -1.0)
    x = (x + rng.normal(0, 0.5, x.shape)).astype(np.float32)[:, None]
    return Pictures(x[:count], target[:count], x[count:], target[count:])


def digits(rng: np.random.Generator, held: int = 360) -> Pictures:
    """The 1797 handwritten digits that scikit-learn ships, 8 x 8, enlarged to 24 x 24 with a border of two.

    Raises
    ------
    ValueError
        Where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        advice = "LeNet-5 learns the digits of scikit-learn, which is not installed: pip install scikit-learn"
        raise ValueError(advice) from None
    found = load_digits()
    order = rng.permutation(len(found.images))
    images = np.kron(found.images[order] / 8 - 1, np.ones((1, 3, 3)))
    x = np.pad(images, [(0, 0), (2, 2), (2, 2)], constant_values=-1).astype(np.float32)[:, None]
    target = found.target[order].astype(np.int64)
    return Pictures(x[held:], target[held:], x[:held], target[:held])


# ---- training ----------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What there is to train: pictures and network of a seed, the classes' names, passes, the first rate.

    moved: by how many elements at most the pictures of a step are moved, which makes many of few.
    """

    pictures: Callable[[np.random.Generator], Pictures]
    network: Callable[[np.random.Generator, int], Network]
    classes: str
    epochs: int
    rate: float
    moved: int = 0


TASKS = {
    "xo": Task(letters, xo, "XO", 10, 0.02),
    "lenet": Task(digits, lenet5, "0123456789", 10, 0.02, moved=1),
}


@dataclass
class Training:
    """What a training was like.

    Attributes
    ----------
    losses : list of float
        Before each step.
    accuracies : list of float
        The share of the pictures held back that are told right, after each pass.
    step_s : float
        The median time of a step, without the first pass, which compiles.
    """

    network: Network
    pictures: Pictures
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    step_s: float = 0.0


def accuracy(network: Network, x: np.ndarray, target: np.ndarray) -> float:
    """The share of pictures whose largest score is that of their class."""
    return float((network.scores(x).argmax(1) == target).mean())


def train(task: Task, seed: int, epochs: int, threads: int) -> Iterator[Training]:
    """What it was like so far, after each pass over the pictures."""
    rng = np.random.default_rng(seed)
    pictures = task.pictures(rng)
    found = Training(task.network(rng, threads), pictures)
    sgd, times = Sgd(found.network, task.rate), []
    starts = range(0, len(pictures.x) - BATCH + 1, BATCH)
    for epoch in range(epochs):
        order = rng.permutation(len(pictures.x))
        for first in starts:
            some = order[first : first + BATCH]
            left = 1 - len(found.losses) / (epochs * len(starts))
            sgd.rate = task.rate * left
            x, target = pictures.x[some], pictures.target[some]
            if task.moved:
                x = np.roll(x, rng.integers(-task.moved, task.moved + 1, 2), (2, 3))
            start = perf_counter()
            found.losses.append(sgd.step(x, target))
            if epoch or epochs == 1:
                times.append(perf_counter() - start)
        found.accuracies.append(accuracy(found.network, pictures.held_x, pictures.held_target))
        found.step_s = float(np.median(times)) if times else 0.0
        yield found
