"""Handwritten digits, trained free and under a max-norm constraint: `python examples/digits.py`.

The recipe of Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting": dropout,
a large learning rate that decays, high momentum, and no unit's incoming weights longer than `MAX_NORM`. The free runs
differ in that one number alone: it is a shared variable of the one compiled function, and infinity constrains nothing.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
import pytensor
import pytensor.tensor as pt
from rich import box, progress
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from normball import compute_norms, definition, norm_constraint, total_norm_constraint

RATES = (0.03, 0.1, 0.3)  # an ordinary learning rate, and two larger ones
SHOWN = 0.1  # the rate that the picture follows through training
MAX_NORM = 3.0  # the paper: "typically 3 to 4"
MOMENTUM = np.float32(0.95)  # the paper: 0.95 to 0.99
KEEP = (0.8, 0.5)  # share of the inputs that dropout lets into the hidden and the output layer
CLIP = 1.0  # total norm of a step's gradients, in the free and the constrained runs alike
BATCH = 64

KERNEL, STRIDE, FILTERS, HIDDEN = 4, 2, 32, 64
PLACES = [(row, column) for row in range(0, 8 - KERNEL + 1, STRIDE) for column in range(0, 8 - KERNEL + 1, STRIDE)]
PIXELS = np.array([[8 * (y + i) + x + j for i in range(KERNEL) for j in range(KERNEL)] for y, x in PLACES])
FEATURES = len(PLACES) * FILTERS
SHAPES = {  # one row per filter, one column per dense unit: what `norm_constraint` takes without `norm_axes`
    "convolution": (FILTERS, 1, KERNEL, KERNEL),
    "hidden": (FEATURES, HIDDEN),
    "output": (HIDDEN, 10),
}


class Data(NamedTuple):
    """Images as rows of 64 pixels, and their digits. The second half was written by other people than the first."""

    train: np.ndarray
    train_digits: np.ndarray
    test: np.ndarray
    test_digits: np.ndarray


class Run(NamedTuple):
    """What one training leaves behind: an entry per epoch, and the weights at the end."""

    norms: np.ndarray  # (epochs, layers): the largest incoming norm
    accuracy: np.ndarray  # (epochs,): of the test half, in percent
    parameters: dict[str, np.ndarray]


class Network:
    """A convolution and two dense layers, compiled once for every seed, learning rate and bound."""

    def __init__(self) -> None:
        self.weights = {name: pytensor.shared(np.zeros(shape, "float32"), name) for name, shape in SHAPES.items()}
        self.biases = {name: pytensor.shared(np.zeros(units(shape), "float32")) for name, shape in SHAPES.items()}
        self.max_norm = pytensor.shared(np.float32(MAX_NORM), "max_norm")
        self.velocities = [pytensor.shared(np.zeros_like(p.get_value())) for p in self._parameters()]

        images, targets, *masks = (pt.matrix(dtype="float32") for _ in range(4))
        rate = pt.scalar(dtype="float32")
        loss = -(targets * pt.special.log_softmax(self._scores(images, masks), axis=1)).sum(axis=1).mean()
        self.train = pytensor.function([images, targets, *masks, rate], loss, updates=self._updates(loss, rate))
        self.predict = pytensor.function([images], pt.argmax(self._scores(images), axis=1))

    def _parameters(self) -> list:
        return [*self.weights.values(), *self.biases.values()]

    def _scores(self, images, masks=(np.float32(1), np.float32(1))):
        w, b = self.weights, self.biases
        patches = images[:, PIXELS.ravel()].reshape((-1, KERNEL * KERNEL))
        filters = w["convolution"].reshape((FILTERS, KERNEL * KERNEL))
        features = relu(patches @ filters.T + b["convolution"]).reshape((-1, FEATURES))
        hidden = relu((features * masks[0]) @ w["hidden"] + b["hidden"])
        return (hidden * masks[1]) @ w["output"] + b["output"]

    def _updates(self, loss, rate) -> list:
        parameters = self._parameters()
        gradients = total_norm_constraint(pt.grad(loss, parameters), CLIP)
        updates = []
        for parameter, velocity, gradient in zip(parameters, self.velocities, gradients, strict=True):
            step = MOMENTUM * velocity - rate * gradient
            moved = parameter + step
            if parameter in self.weights.values():
                moved = norm_constraint(moved, self.max_norm)
            updates += [(velocity, step), (parameter, moved)]
        return updates

    def reset(self, max_norm: float, rng: np.random.Generator) -> None:
        """Fresh weights (He et al. 2015), and this run's bound."""
        self.max_norm.set_value(np.float32(max_norm))
        for variable in (*self.biases.values(), *self.velocities):
            variable.set_value(np.zeros_like(variable.get_value()))
        for name, shape in SHAPES.items():
            incoming = math.prod(shape) // units(shape)
            self.weights[name].set_value(rng.normal(0, math.sqrt(2 / incoming), shape).astype("float32"))

    def values(self) -> dict[str, np.ndarray]:
        weights = {f"{name}.weight": w.get_value() for name, w in self.weights.items()}
        return weights | {f"{name}.bias": b.get_value() for name, b in self.biases.items()}


def relu(x):
    return pt.maximum(x, np.float32(0))


def units(shape: tuple[int, ...]) -> int:
    """How many units a layer has: the columns of a dense one, the filters of a convolution."""
    return shape[1] if len(shape) == 2 else shape[0]


def load() -> Data:
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    half = len(images) // 2
    return Data(images[:half], digits.target[:half], images[half:], digits.target[half:])


def train(network: Network, data: Data, rate: float, max_norm: float, seed: int, epochs: int) -> Iterator:
    """One run from fresh weights: yields each epoch's mean loss, largest norms and test accuracy."""
    rng = np.random.default_rng(seed)  # the same weights, batches and dropout for every rate and bound
    network.reset(max_norm, rng)
    targets = np.eye(10, dtype="float32")[data.train_digits]
    for epoch in range(epochs):
        losses = []
        decayed = np.float32(rate * (1 - epoch / epochs))
        order = rng.permutation(len(targets))
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            masks = [dropout(rng, (len(batch), n), keep) for n, keep in zip((FEATURES, HIDDEN), KEEP, strict=True)]
            losses.append(network.train(data.train[batch], targets[batch], *masks, decayed))
        norms = [compute_norms(weight.get_value()).max() for weight in network.weights.values()]
        yield float(np.mean(losses)), norms, 100 * np.mean(network.predict(data.test) == data.test_digits)


def dropout(rng: np.random.Generator, shape: tuple[int, int], keep: float) -> np.ndarray:
    """A mask from NumPy, so that every version of PyTensor sees the same; scaled so that testing needs none."""
    return (rng.random(shape, dtype="float32") < keep) / np.float32(keep)


def train_all(network: Network, data: Data, seeds: int, epochs: int, console: Console) -> dict:
    """Every run, by (rate, max_norm, seed)."""
    plan = [(rate, bound, seed) for seed in range(seeds) for rate in RATES for bound in (math.inf, MAX_NORM)]
    runs = {}
    with reporting(console, len(plan) * epochs) as report:
        for rate, bound, seed in plan:
            history = []
            for epoch, (loss, norms, accuracy) in enumerate(train(network, data, rate, bound, seed, epochs), 1):
                history.append((norms, accuracy))
                kind = "free" if bound == math.inf else "max-norm"
                report(f"seed {seed}, rate {rate}, {kind}: epoch {epoch}, loss {loss:.3f}, accuracy {accuracy:.1f} %")
            runs[rate, bound, seed] = Run(*map(np.array, zip(*history, strict=True)), network.values())
    return runs
