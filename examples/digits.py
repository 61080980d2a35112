"""Handwritten digits, trained free and under a max-norm constraint: `python examples/digits.py`.

The recipe of Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting": dropout,
a large learning rate that decays, high momentum, and no unit's incoming weights longer than `MAX_NORM`. The free runs
differ in that one number alone: it is a shared variable of the one compiled function, and infinity constrains nothing.
"""

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import digits_report
import numpy as np
import pytensor
import pytensor.tensor as pt
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from normball import compute_norms, norm_constraint, total_norm_constraint

RATES = (0.03, 0.1, 0.3)  # from an ordinary learning rate to a large one
SHOWN = RATES[-1]  # the rate that the picture follows through training
MAX_NORM = 3.0  # the paper: "typically 3 to 4"
BOUNDS = (math.inf, MAX_NORM)  # a free run, a constrained one
MOMENTUM = np.float32(0.95)  # the paper: 0.95 to 0.99
KEEP = (0.8, 0.5)  # share of the inputs that dropout lets into the hidden and the output layer
CLIP = 1.0  # total norm of a step's gradients, in the free and the constrained runs alike
BATCH = 64

KERNEL, STRIDE, FILTERS, HIDDEN = 4, 2, 32, 64
FEATURES = ((8 - KERNEL) // STRIDE + 1) ** 2 * FILTERS
SHAPES = {  # one row per filter, one column per dense unit: what `norm_constraint` takes without `norm_axes`
    "convolution": (FILTERS, 1, KERNEL, KERNEL),
    "hidden": (FEATURES, HIDDEN),
    "output": (HIDDEN, 10),
}


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

        patches, rate = pt.tensor3(dtype="float32"), pt.scalar(dtype="float32")
        targets, *masks = (pt.matrix(dtype="float32") for _ in range(3))
        loss = -(targets * pt.special.log_softmax(self._scores(patches, masks), axis=1)).sum(axis=1).mean()
        self.train = pytensor.function([patches, targets, *masks, rate], loss, updates=self._updates(loss, rate))
        self.scores = pytensor.function([patches], self._scores(patches))

    def _parameters(self) -> list:
        return [*self.weights.values(), *self.biases.values()]

    def _scores(self, patches, masks=(1, 1)):
        w, b = self.weights, self.biases
        filters = w["convolution"].reshape((FILTERS, KERNEL * KERNEL)).T
        features = relu(patches.reshape((-1, KERNEL * KERNEL)) @ filters + b["convolution"]).reshape((-1, FEATURES))
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

    def accuracy(self, data: tuple, parameters: dict[str, np.ndarray]) -> float:
        """Of the test half, in percent, with these weights."""
        for name in SHAPES:
            self.weights[name].set_value(parameters[f"{name}.weight"])
            self.biases[name].set_value(parameters[f"{name}.bias"])
        patches, digits = data[1]
        return 100 * float((self.scores(patches).argmax(axis=1) == digits).mean())


def relu(x):
    return pt.maximum(x, np.float32(0))


def units(shape: tuple[int, ...]) -> int:
    """How many units a layer has: the columns of a dense one, the filters of a convolution."""
    return shape[1] if len(shape) == 2 else shape[0]


def load() -> tuple[tuple, tuple]:
    """Images cut into the patches that a filter sees, and their digits: the halves are written by different people."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(images, (KERNEL, KERNEL), axis=(1, 2))
    patches = windows[:, ::STRIDE, ::STRIDE].reshape(len(images), -1, KERNEL * KERNEL)
    half = len(images) // 2
    return (patches[:half], digits.target[:half]), (patches[half:], digits.target[half:])


def train(network: Network, data: tuple, rate: float, max_norm: float, seed: int, epochs: int) -> Iterator:
    """One run from fresh weights: yields each epoch's mean loss, largest norms and test accuracy."""
    (patches, digits), (test_patches, test_digits) = data
    rng = np.random.default_rng(seed)  # the same weights, batches and dropout for every rate and bound
    network.reset(max_norm, rng)
    targets = np.eye(10, dtype="float32")[digits]
    for epoch in range(epochs):
        losses = []
        decayed = np.float32(rate * (1 - epoch / epochs))
        order = rng.permutation(len(targets))
        for batch in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            masks = [dropout(rng, (len(batch), n), keep) for n, keep in zip((FEATURES, HIDDEN), KEEP, strict=True)]
            losses.append(network.train(patches[batch], targets[batch], *masks, decayed))
        norms = [compute_norms(weight.get_value()).max() for weight in network.weights.values()]
        right = network.scores(test_patches).argmax(axis=1) == test_digits
        yield float(np.mean(losses)), norms, 100 * right.mean()


def dropout(rng: np.random.Generator, shape: tuple[int, int], keep: float) -> np.ndarray:
    """A mask from NumPy, so that every version of PyTensor sees the same; scaled so that testing needs none."""
    return (rng.random(shape, dtype="float32") < keep) / np.float32(keep)


def train_all(network: Network, data: tuple, seeds: int, epochs: int, console: Console) -> dict:
    """Every run, by (rate, max_norm, seed)."""
    plan = [(rate, bound, seed) for seed in range(seeds) for rate in RATES for bound in BOUNDS]
    runs = {}
    with digits_report.reporting(console, len(plan) * epochs) as report:
        for rate, bound, seed in plan:
            history = []
            for epoch, (loss, norms, accuracy) in enumerate(train(network, data, rate, bound, seed, epochs), 1):
                history.append((norms, accuracy))
                kind = "free" if bound == math.inf else "max-norm"
                report(f"seed {seed}, rate {rate}, {kind}, epoch {epoch}: loss {loss:.3f}, {accuracy:.1f} % right")
            runs[rate, bound, seed] = Run(*map(np.array, zip(*history, strict=True)), network.values())
    return runs


def over_seeds(runs: dict, field: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """A field of the free runs at this rate, and of the constrained ones; the first axis is the seed."""
    fields = ([getattr(run, field) for key, run in runs.items() if key[:2] == (rate, bound)] for bound in BOUNDS)
    return tuple(map(np.array, fields))


def save(path: Path, parameters: dict[str, np.ndarray]) -> None:
    """Write the weights with their bound, read both back and check them."""
    save_file(parameters, path, metadata={"max_norm": str(MAX_NORM)})
    with safe_open(path, "np") as file:
        bound = Fraction(file.metadata()["max_norm"])
        for name, written in parameters.items():
            values = file.get_tensor(name)
            if values.tobytes() != written.tobytes():
                raise RuntimeError(f"{path}: {name} did not come back as it was written")
            if name.endswith("weight") and digits_report.largest_norm(values) > bound:
                raise RuntimeError(f"{path}: {name} lies outside its bound of {bound}")


def normball(*arguments: str | Path) -> None:
    """What a person types into a shell."""
    command = ["normball", *map(str, arguments)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def constrain_afterwards(network: Network, data: tuple, free: dict[str, np.ndarray], folder: Path) -> None:
    """The weights of a free run as a file on disk, and what the command line makes of it."""
    before, after = folder / "free.safetensors", folder / "free-constrained.safetensors"
    save_file(free, before)
    choice = ("--layout", "pytensor", "--max-norm", f"{MAX_NORM:g}")
    normball("check", before, *choice, "--plot", folder / "free.png")
    normball("constrain", before, *choice, "-o", after, "--force", "--verify")
    normball("check", after, *choice, "--plot", folder / "free-constrained.html", "--fail-on-violation")
    found = [network.accuracy(data, parameters) for parameters in (free, load_file(after))]
    print("\nIt trained free and was constrained afterwards: {:.1f} % right before, {:.1f} % after".format(*found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs per learning rate, free and constrained (5)")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training half (40)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture and the weights (demo)")
    options = parser.parse_args()
    if min(options.seeds, options.epochs) < 1:
        parser.error("--seeds and --epochs must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()

    console.print("Compiling (a minute or two the first time, then cached) ...")
    started, data, network = time.monotonic(), load(), Network()
    next(train(network, data, SHOWN, MAX_NORM, seed=0, epochs=1))  # NUMBA mode compiles in the first call
    console.print(f"  {time.monotonic() - started:.0f} s. Then {2 * len(RATES) * options.seeds} short trainings:")
    with threadpool_limits(1, "blas"):  # on matrices this small, BLAS threads only wait for each other
        runs = train_all(network, data, options.seeds, options.epochs, console)

    norms, accuracy, parameters = (over_seeds(runs, field, SHOWN) for field in Run._fields)
    finals = {rate: [values[:, -1] for values in over_seeds(runs, "accuracy", rate)] for rate in RATES}
    console.print(digits_report.accuracy_table(finals, MAX_NORM))
    console.print(digits_report.norm_table(list(SHAPES), parameters, MAX_NORM, SHOWN))
    picture, weights = options.out / "norms.png", options.out / "digits.safetensors"
    digits_report.draw(picture, list(SHAPES), norms, accuracy, MAX_NORM, SHOWN)
    save(weights, runs[SHOWN, MAX_NORM, 0].parameters)
    constrain_afterwards(network, data, runs[SHOWN, math.inf, 0].parameters, options.out)
    print(f"\n{options.out / 'free.png'}: norms of the free weights of seed 0; free-constrained.html: those after")
    print(f"{picture}: norms and accuracy through training at learning rate {SHOWN:g}")
    print(f"{weights}: the constrained weights of seed 0, read back and checked against their bound")


if __name__ == "__main__":
    main()
