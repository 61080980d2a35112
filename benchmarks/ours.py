"""normball's own calls, and the proof that each finds its arrays in the state that the cell's label says."""

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from cells import MAX_NORM, VIOLATING, Arrays, Cell
from check import EPSILON, check_array, check_group, exact_norm
from timing import UNLIMITED, Rival, nothing

import normball
from normball import kernels

IN_PLACE, OUT = "in place", "out="
# A violator is on its ball after a call, so the next call gets a smaller bound. The steps are far above a result's
# rounding, and the last bound is far above the norms of the compliant groups.
STEPS = {"float64": 0.998, "float32": 0.998, "float16": 0.98, "bfloat16": 0.9}
LAST_BOUND = 0.6


def bounds(cell: Cell) -> list[float]:
    """What successive calls in place get, so that the same groups violate every time."""
    step = STEPS[cell.dtype]
    calls = int(np.log(LAST_BOUND) / np.log(step))
    return [MAX_NORM * step**k for k in range(calls)]


def call_of(cell: Cell, data: Arrays) -> Callable[[list[np.ndarray], float], object]:
    """call(into, bound): the public call that this cell is about."""
    if cell.case.total:
        # There is no public way yet to say where the result goes.
        return lambda into, bound: kernels.constrain_total(data.xs, into, bound, EPSILON, 2)
    if cell.case.axes is None:
        return lambda into, bound: normball.norm_constraint(data.xs, bound, out=into)
    [x] = data.xs
    return lambda into, bound: normball.norm_constraint(x, bound, cell.case.axes, out=into[0])


def rivals(cell: Cell, data: Arrays) -> list[Rival]:
    """In place and into other memory, checked."""
    call = call_of(cell, data)
    same = cell.violating == "none"
    # Nothing violates: nothing is written, and the next call finds what this one found.
    reset, successive = (nothing, [MAX_NORM]) if same else (data.restore, bounds(cell))
    prove(cell, data, call, successive)

    def in_place(times: int) -> None:
        for bound in itertools.repeat(MAX_NORM, times) if same else successive[:times]:
            call(data.xs, bound)

    def out(times: int) -> None:
        for _ in range(times):
            call(data.ys, MAX_NORM)

    most = UNLIMITED if same else len(successive)
    return [Rival(IN_PLACE, in_place, reset, most), Rival(OUT, out, reset)]


def prove(cell: Cell, data: Arrays, call: Callable, successive: list[float]) -> None:
    """Raise unless the label is true of every call that is timed, and the answers are right.

    In place, the first call, the second and the last of a sample are made, each with its own bound: bounds fall by one
    and the same factor, so those between are like the second.
    """
    expect_violating(cell, data, MAX_NORM)
    call(data.ys, MAX_NORM)
    norm = exact_norm(*data.before) if cell.case.total else None
    check(cell, data, data.ys, norm)
    for number, bound in enumerate([*successive[:2], successive[-1]]):
        if number:
            expect_violating(cell, data, bound)
        call(data.xs, bound)
        if not number:
            check(cell, data, data.xs, norm)
    expect_state(cell, data)


def expect_state(cell: Cell, data: Arrays) -> None:
    """Raise unless timing has left the arrays as its label says: where nothing violates, with their first bits."""
    if cell.violating == "none":
        for x, before in zip(data.xs, data.before, strict=True):
            if not np.array_equal(x.view(np.uint8), before.view(np.uint8)):
                raise AssertionError("compliant arrays were written to")
    else:
        data.restore()
        expect_violating(cell, data, MAX_NORM)


def expect_violating(cell: Cell, data: Arrays, bound: float) -> None:
    """Raise unless the share of groups above the bound is what the cell says, by sums in float64."""
    if cell.case.total:
        total = sum(sums_of_squares(x, tuple(range(x.ndim))).item() for x in data.xs)
        violating, groups = int(np.sqrt(total) > bound), 1
    else:
        above = [np.sqrt(sums_of_squares(x, axes)) > bound for x, axes in zip(data.xs, data.axes, strict=True)]
        violating, groups = sum(int(a.sum()) for a in above), sum(a.size for a in above)
    share = VIOLATING[cell.violating]
    slack = len(data.xs) / 2 if share == 0.5 else 0  # half of an odd number
    if abs(violating - share * groups) > slack:
        raise AssertionError(f"{violating} of {groups} groups violate {bound}, and {cell.violating} should")


def sums_of_squares(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """In float64, some of the first axis at a time: a second copy of the largest arrays would take long."""
    parts = []
    step = max(1, (1 << 19) * len(x) // x.size)
    for start in range(0, len(x), step):
        part = x[start : start + step].astype(np.float64)
        parts.append(np.square(part, out=part).sum(axis=axes, keepdims=True))
    whole = np.concatenate(parts)
    return whole.sum(axis=0, keepdims=True) if 0 in axes else whole


def check(cell: Cell, data: Arrays, after: list[np.ndarray], norm: Fraction | None) -> None:
    """Exactly: some groups of each array, or of a long list's first, largest and last; a total in all its entries."""
    if cell.case.total:
        check_group(data.before, after, MAX_NORM, norm)
        return
    sizes = [x.size for x in after]
    for k in sorted({0, int(np.argmax(sizes)), len(sizes) - 1}):
        check_array(data.before[k], after[k], data.axes[k], MAX_NORM)
