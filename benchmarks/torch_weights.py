"""Time the constraint on PyTorch weights, in place, beside what PyTorch's users do today:

    python benchmarks/torch_weights.py [--only TEXT] [--seconds S]

Ours and peers on the same memory, one thread, float32. Every answer is checked first, then all are timed one right
after the other in rounds; printed are medians over rounds of a peer's time over ours. `renorm_` is torch's own;
`formula` is Keras' and PyMC's, written into the weights; `compiled` is torch.compile of that formula.
"""

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "NORMBALL")})

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from cells import CASES, MAX_NORM, Arrays, Cell, arrays
from check import EPSILON
from ours import bounds, check, expect_state
from timing import Rival, interleave, median, nothing, pin, ratio, readable

import normball

NAMES = ("dense 100 x 200", "dense 784 x 800", "dense 4096 x 4096", "conv 512", "embedding", "ResNet-50", "GPT-2")


def formula(xs: Sequence[torch.Tensor], axes: Sequence[tuple[int, ...]], bound: Any) -> None:
    """min(n, c) / (n + epsilon), written into the weights."""
    for x, own in zip(xs, axes, strict=True):
        norms = torch.linalg.vector_norm(x, dim=own, keepdim=True)
        x.mul_(norms.clamp(max=bound) / (norms + EPSILON))


def compiled() -> Callable:
    """torch.compile of the formula, with the bound as a tensor, so that another one is no reason to compile again."""
    function = torch.compile(formula, dynamic=False)
    return lambda xs, axes, bound: function(xs, axes, torch.tensor(bound))


def renorm(xs: Sequence[torch.Tensor], axes: Sequence[tuple[int, ...]], bound: float) -> None:
    """What torch has: renorm_ wants the one axis that tells the groups apart."""
    for x, own in zip(xs, axes, strict=True):
        x.renorm_(2, next(axis for axis in range(x.ndim) if axis not in own), bound)


def ours(xs: list[torch.Tensor], axes: list[tuple[int, ...]], bound: float) -> None:
    """One call; of a list with one choice of axes, which all of a model's weights have here."""
    if len(xs) == 1:
        normball.norm_constraint(xs[0], bound, axes[0], EPSILON, out=xs[0])
    else:
        normball.norm_constraint(xs, bound, None, EPSILON, out=xs)


def rival(name: str, function: Callable, cell: Cell, data: Arrays) -> Rival:
    """A way to constrain the cell's weights in place; where they violate, each call of a sample finds them so."""
    xs = [torch.from_numpy(x) for x in data.xs]
    same = cell.violating == "none"
    successive = [MAX_NORM] if same else bounds(cell)

    def run(times: int) -> None:
        for k in range(times):
            function(xs, data.axes, successive[0 if same else k])

    return Rival(name, run, data.restore, 1 << 20 if same else len(successive), guest=name != "ours")


def check_peer(peer: Rival, data: Arrays) -> None:
    """Raise unless a peer ends near where ours does."""
    peer.reset()
    peer.run(1)
    found = [x.copy() for x in data.xs]
    data.restore()
    ours([torch.from_numpy(x) for x in data.xs], data.axes, MAX_NORM)
    for x, y in zip(found, data.xs, strict=True):
        if not np.allclose(x, y, rtol=2e-3, atol=1e-6):  # torch sums in float32
            raise AssertionError(f"{peer.name} is far from ours")
    data.restore()


def measure(cell: Cell, seconds: float) -> None:
    """Check, time and print one cell."""
    data = arrays(cell)
    torch._dynamo.reset()
    own = rival("ours", ours, cell, data)
    own.run(1)
    check(cell, data, data.xs, None)
    data.restore()
    ways = {"renorm_": renorm, "formula": formula, "compiled": compiled()}
    peers = [rival(name, way, cell, data) for name, way in ways.items()]
    for peer in peers:
        check_peer(peer, data)
    times = interleave([own, *peers], seconds)
    expect_state(cell, data) if cell.violating != "none" else nothing()
    shares = [f"{peer.name} {ratio(times[peer.name], times['ours'])['ratio']:5.2f}" for peer in peers]
    print(f"{cell.label:58} ours {readable(median(times['ours'])):>8}   " + "   ".join(shares), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose label holds this text")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each cell")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    pin(1)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("in place, one thread, float32: a peer's time / ours (above 1: ours is faster)")
    for case in CASES:
        if case.total or not case.name.startswith(NAMES):
            continue
        for violating in ("none", "half", "all"):
            cell = Cell(case, "float32", violating, 1, True)
            if options.only in cell.label:
                measure(cell, options.seconds)


if __name__ == "__main__":
    main()
