"""PyMC's norm_constraint against normball's: the same graph, mode and PyTensor version, one process, interleaved.

    python benchmarks/compare.py [--quick] [--json FILE]

Every answer is checked before it is timed: exactly (normball.definition) on some columns, and against the peer's. The
ratio is the peer's time over ours, so more than 1 means that ours is faster: the median over rounds of the ratio within
a round, with its quartiles. A round times both, one right after the other and in turns first, so that whatever else
the machine does meets both alike. One thread.
"""

import os

# Read when the libraries are imported.
os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NORMBALL")})

import argparse
import functools
import itertools
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import normball
from normball import definition, kernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyMC's imports warn: ArviZ of its future, PyTensor of a missing BLAS
    import pymc
    import pytensor
    import pytensor.tensor as pt
    from pymc.variational.updates import norm_constraint as peer
    from pytensor.compile.mode import get_default_mode, get_mode

MAX_NORM = 3.0
EPSILON = 1e-7
SHAPES = ((100, 200), (784, 800), (4096, 4096))
QUICK_SHAPES = SHAPES[:2]
VIOLATING = {"all": 1.0, "half": 0.5, "none": 0.0}
COLUMNS_CHECKED = 4
SAMPLE_SECONDS = 2e-3  # calls shorter than this are timed several at a time, far above the clock's resolution
RULES = {"peer": peer, "ours": normball.norm_constraint}


class Case(NamedTuple):
    """What is measured: the same for both rules."""

    mode: str
    kind: str
    dtype: str
    shape: tuple[int, int]
    violating: str


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
def data(shape: tuple[int, int], dtype: str, violating: str) -> tuple[np.ndarray, np.ndarray]:
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


def check(case: Case, programs: dict[str, Program]) -> None:
    """Raise unless ours is right to the last bit on some columns, and close to the peer's everywhere."""
    w, s = data(case.shape, case.dtype, case.violating)
    ours, theirs = programs["ours"].result(), programs["peer"].result()
    if ours.dtype != case.dtype or theirs.dtype != case.dtype:
        raise AssertionError(f"{case}: dtypes {ours.dtype}, {theirs.dtype}")
    np.testing.assert_allclose(ours, theirs, rtol=1e-5 if case.dtype == "float32" else 1e-6, err_msg=str(case))
    before = w + s
    for column in np.random.default_rng(1).integers(case.shape[1], size=COLUMNS_CHECKED):
        check_column(before[:, column], ours[:, column])


def check_column(before: np.ndarray, after: np.ndarray) -> None:
    """Raise unless a compliant column kept its bits, and a violator is on the ball within 4 ulp and not above."""
    values = before.tolist()
    right = definition.constrain(values, MAX_NORM, EPSILON)
    if right == [Fraction(v) for v in values]:
        np.testing.assert_array_equal(after, before)
        return
    if definition.summarise(after.tolist()) > Fraction(MAX_NORM) ** 2:
        raise AssertionError("a column's norm is above its bound")
    for value, exact, ulp in zip(after.tolist(), right, np.spacing(np.abs(after)).tolist(), strict=True):
        if abs(Fraction(value) - exact) > 4 * Fraction(ulp):
            raise AssertionError(f"{value} is more than 4 ulp from {float(exact)}")


def prove_the_check_can_fail() -> None:
    """Raise unless `check_column` takes right columns and refuses wrong ones: else no time below means anything."""
    inside, outside = np.array([0.3, 0.4]), np.array([3.0, 4.0])
    onto = normball.norm_constraint(outside[:, None], MAX_NORM)[:, 0]
    check_column(inside, inside)
    check_column(outside, onto)
    wrong = [
        (inside, np.nextafter(inside, 1)),
        (outside, outside),
        (outside, onto * (1 - 2e-15)),
        (outside, onto / 0.9999),
    ]
    for before, after in wrong:
        try:
            check_column(before, after)
        except AssertionError:
            continue
        raise RuntimeError(f"the check took {after} for the answer to {before}")


def seconds(call: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, budget: float, rounds: int) -> dict[str, Any]:
    """Check, then time rounds for `budget` seconds; longer if they were few, but for slow calls three will do."""
    programs = {rule: build(rule, case.kind, case.dtype, case.mode) for rule in RULES}
    w, s = data(case.shape, case.dtype, case.violating)
    for program in programs.values():
        program.load(w, s)
    check(case, programs)
    once = {rule: seconds(program.call, 2) for rule, program in programs.items()}
    repeats = {rule: max(1, round(SAMPLE_SECONDS / once[rule])) for rule in RULES}
    times: dict[str, list[float]] = {rule: [] for rule in RULES}
    begin = time.perf_counter()
    for turn in itertools.count():
        for rule in sorted(RULES, reverse=bool(turn % 2)):
            times[rule].append(seconds(programs[rule].call, repeats[rule]))
        spent = time.perf_counter() - begin
        if spent > budget and turn + 1 >= (rounds if spent < 3 * budget else 3):
            break
    return summary(case, np.array(times["peer"]), np.array(times["ours"]))


def summary(case: Case, theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    low, middle, high = np.percentile(theirs / ours, [25, 50, 75])
    medians = {"peer_seconds": float(np.median(theirs)), "ours_seconds": float(np.median(ours))}
    ratios = {"ratio": float(middle), "ratio_quartiles": [float(low), float(high)]}
    return {**case._asdict(), **ratios, **medians, "rounds": len(ours)}


def cases(shapes: tuple, modes: list[str]) -> Iterator[Case]:
    kinds, dtypes = BUILDERS, ("float32", "float64")
    for mode, kind, dtype, shape, violating in itertools.product(modes, kinds, dtypes, shapes, VIOLATING):
        yield Case(mode, kind, dtype, shape, violating)


def default_mode() -> str:
    """The name of the mode that the version's default is, of those that are measured."""
    linker = type(get_default_mode().linker)
    return next((mode for mode in ("NUMBA", "CVM") if type(get_mode(mode).linker) is linker), "Mode")


def environment() -> dict[str, str]:
    return {
        "normball": normball.__version__,
        "kernel": kernels.constrain.__module__.rpartition(".")[-1],
        "pytensor": pytensor.__version__,
        "pymc": pymc.__version__,
        "python": platform.python_version(),
        "default mode": default_mode(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, one thread used",
    }


HEADER = "mode   graph     dtype          shape  violate   ratio   quartiles        peer       ours"


def line(row: dict[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"]))
    low, high = row["ratio_quartiles"]
    times = f"{readable(row['peer_seconds'])} {readable(row['ours_seconds'])}"
    labels = f"{row['mode']:6} {row['kind']:9} {row['dtype']:8} {shape:>11} {row['violating']:>8}"
    return f"{labels} {row['ratio']:7.2f}  {low:5.2f}-{high:<5.2f} {times}"


def readable(duration: float) -> str:
    return f"{duration * 1e3:7.2f} ms" if duration >= 1e-3 else f"{duration * 1e6:7.1f} us"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="the default mode and the two smaller shapes, under a minute"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    prove_the_check_can_fail()
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print("ratio = peer's time / ours, median and quartiles over rounds: more than 1 means that ours is faster\n")
    default = default_mode()
    modes = [default] if options.quick else list(dict.fromkeys((default, "NUMBA", "CVM")))
    shapes, budget = (QUICK_SHAPES, 0.7) if options.quick else (SHAPES, 1.2)
    print(HEADER)
    rows = []
    for case in cases(shapes, modes):
        rows.append(measure(case, budget, rounds=7))
        print(line(rows[-1]), flush=True)
    for kind in BUILDERS:
        slowest = min((row for row in rows if row["kind"] == kind), key=lambda row: row["ratio"])
        print(
            f"\nslowest {kind}: {slowest['ratio']:.2f} ({slowest['mode']}, {slowest['dtype']}, {slowest['shape']})",
            end="",
        )
    print()
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
