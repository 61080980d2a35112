"""PyMC's norm_constraint against normball's in PyTensor: the same graph, mode and version, in one process.

Also what the other cells need of PyMC: its update of shared variables.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from cells import MAX_NORM, VIOLATING, Arrays, Cell
from check import check_array, check_close
from timing import Rival, again, interleave, median, ratio

import normball

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyMC's imports warn: ArviZ of its future, PyTensor of a missing BLAS
    import pytensor
    import pytensor.tensor as pt
    from pymc.variational.updates import norm_constraint as peer
    from pymc.variational.updates import total_norm_constraint as peer_total
    from pytensor.compile.mode import get_default_mode, get_mode

SHAPES = ((100, 200), (784, 800), (4096, 4096))
QUICK_SHAPES = SHAPES[:2]
held: list = []
RULES = {"peer": peer, "ours": normball.norm_constraint}


class Graph(NamedTuple):
    """What is measured: the same for both rules."""

    mode: str
    kind: str
    dtype: str
    shape: tuple[int, int]
    violating: str

    @property
    def label(self) -> str:
        n, m = self.shape
        return f"PyTensor {self.mode}, {self.kind}, {n} x {m}, {self.dtype}, {self.violating} violating"


class Program(NamedTuple):
    """A compiled rule; `load` gives it x (or w and s), `call` runs it, `result` is what it computed."""

    load: Callable
    call: Callable
    result: Callable


@functools.cache
def build(rule: str, kind: str, dtype: str, mode: str) -> Program:
    """One compilation serves all shapes. floatX is the dtype, or the peer would not keep it."""
    with pytensor.config.change_flags(floatX=dtype):
        return BUILDERS[kind](RULES[rule], dtype, mode)


def build_function(rule: Callable, dtype: str, mode: str) -> Program:
    """y = f(x), as `pytensor.function` makes it: a fresh y for every call."""
    x = pt.matrix("x", dtype=dtype)
    compiled = pytensor.function([x], rule(x, MAX_NORM), mode=mode)
    held: list = [None]

    def load(w: np.ndarray, s: np.ndarray) -> None:
        held[0] = w + s

    return Program(load, lambda: compiled(held[0]), lambda: compiled(held[0]))


def build_update(rule: Callable, dtype: str, mode: str) -> Program:
    """w = f(w + s), both shared: a training step without its gradient."""
    w, s = (pytensor.shared(np.zeros((1, 1), dtype), name=name, shape=(None, None)) for name in "ws")
    compiled = pytensor.function([], updates=[(w, rule(w + s, MAX_NORM))], mode=mode)

    def load(start: np.ndarray, step: np.ndarray) -> None:
        w.set_value(start)
        s.set_value(step)

    def result() -> np.ndarray:
        compiled()
        return w.get_value()

    return Program(load, compiled, result)


BUILDERS = {"y=f(x)": build_function, "w=f(w+s)": build_update}


@functools.lru_cache(maxsize=1)
def weights_and_step(shape: tuple[int, int], dtype: str, violating: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights and a step such that the named share of columns violates in every call, however often w is updated.

    Violators step outwards by MAX_NORM / 2 every time; the others lie at MAX_NORM / 2 and hardly move.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape, dtype="float32").astype(dtype)
    w *= MAX_NORM / 2 / np.linalg.norm(w, axis=0)
    violates = rng.permutation(shape[1]) < VIOLATING[violating] * shape[1]
    w[:, violates] *= 2
    s = (w * np.where(violates, 0.5, 1e-9)).astype(dtype)
    return w, s


def measure(graph: Graph, budget: float) -> dict[str, Any]:
    """Check both programs, then time them."""
    programs = {rule: build(rule, graph.kind, graph.dtype, graph.mode) for rule in RULES}
    w, s = weights_and_step(graph.shape, graph.dtype, graph.violating)
    for program in programs.values():
        program.load(w, s)
    ours, theirs = programs["ours"].result(), programs["peer"].result()
    check_array(w + s, ours, (0,), MAX_NORM)
    check_close(ours, theirs, (0,), "PyMC")
    times = interleave([Rival(rule, again(program.call)) for rule, program in programs.items()], budget)
    seconds = {"peer_seconds": median(times["peer"]), "ours_seconds": median(times["ours"])}
    return {**graph._asdict(), **seconds, **ratio(times["peer"], times["ours"])}


def graphs(quick: bool) -> Iterator[Graph]:
    """All of them in the version's default mode, and in the other compiled one unless `quick`."""
    default = default_mode()
    modes = [default] if quick else list(dict.fromkeys((default, "NUMBA", "CVM")))
    kinds, dtypes, shapes = BUILDERS, ("float32", "float64"), QUICK_SHAPES if quick else SHAPES
    states = ("none", "all") if quick else VIOLATING
    for values in itertools.product(modes, kinds, dtypes, shapes, states):
        yield Graph(*values)


def default_mode() -> str:
    """The name of the mode that the version's default is, of those that are measured."""
    linker = type(get_default_mode().linker)
    return next((mode for mode in ("NUMBA", "CVM") if type(get_mode(mode).linker) is linker), "Mode")


def update_of(cell: Cell, data: Arrays) -> tuple[Callable, Callable]:
    """PyMC's own example, w = f(w) of shared variables, for all arrays of a cell in one function: call and result.

    The first call leaves every norm at its bound, and PyMC's formula does the same work on those.
    """
    kinds = tuple((x.ndim, axes) for x, axes in zip(data.before, data.axes, strict=True))
    shared, compiled = compiled_update(kinds, cell.dtype, cell.case.total)
    for variable, x in zip(shared, data.before, strict=True):
        variable.set_value(x)

    def result() -> list[np.ndarray]:
        compiled()
        return [variable.get_value(borrow=True) for variable in shared]

    return compiled, result


@functools.cache
def compiled_update(kinds: tuple, dtype: str, total: bool) -> tuple[list, Callable]:
    """One compilation for all shapes; `release` finds the shared variables in `held`."""
    with pytensor.config.change_flags(floatX=dtype):
        shared = [pytensor.shared(np.zeros((1,) * ndim, dtype), shape=(None,) * ndim) for ndim, _ in kinds]
        if total:
            constrained = peer_total(shared, MAX_NORM)
        else:
            constrained = [peer(w, MAX_NORM, norm_axes=axes) for w, (_, axes) in zip(shared, kinds, strict=True)]
        held.extend(shared)
        return shared, pytensor.function([], updates=list(zip(shared, constrained, strict=True)))


def release() -> None:
    """Give back the memory of the last cell, not what was compiled."""
    for variable in held:
        variable.set_value(np.zeros((1,) * variable.ndim, variable.dtype))
