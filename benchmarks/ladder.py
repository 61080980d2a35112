"""How the kernels became fast: the steps of ladder.c, each checked, timed, and set against the floor. `make ladder`.

python benchmarks/ladder.py [TEXT]     # only ladders whose name has TEXT
"""

import ctypes
import functools
import sys
from typing import NamedTuple

import floors
import numpy as np
from cells import MAX_NORM, Arrays, Case, Cell, arrays
from check import check_array
from timing import Rival, again, interleave, median, pin, ratio, readable

import normball

SECONDS = 3.0
GROUPS_CHECKED = 20


class Step(NamedTuple):
    """A function of ladder.c; `native` compiled for this CPU; `exact` if its answers keep what we promise."""

    function: str
    words: str
    native: bool = True
    exact: bool = True


class Ladder(NamedTuple):
    """Steps of one kernel, on one array in one state."""

    name: str
    shape: tuple[int, int]
    axis: int
    dtype: str
    violating: str
    floor: str
    steps: tuple[Step, ...]


ROWS = (
    Step("rows_naive", "all sums, one float at a time; then all products", native=False, exact=False),
    Step("rows_double", "sums in double", native=False),
    Step("rows_lanes", "16 sums side by side: vectors", native=False),
    Step("rows_lanes", "compiled for this CPU's vectors"),
    Step("rows_one_pass", "a row is scaled while it is in the cache"),
    Step("rows_past_cache", "stores past the cache"),
)
COLUMNS = (
    Step("columns_naive", "a column at a time", native=False),
    Step("columns_streaming", "all columns side by side, row after row", native=False),
    Step("columns_streaming", "compiled for this CPU's vectors"),
    Step("columns_eight_rows", "eight rows at a time"),
)
LADDERS = (
    Ladder("rows, float32, from memory, into other memory", (4096, 4096), 1, "float32", "all", "copy", ROWS),
    Ladder(
        "columns, float32, from memory, into other memory",
        (4096, 4096),
        0,
        "float32",
        "all",
        "copy",
        (*COLUMNS, Step("columns_past_cache", "stores past the cache")),
    ),
    Ladder(
        "columns, float32, in the cache, in place, none violating",
        (784, 800),
        0,
        "float32",
        "none",
        "read",
        (*COLUMNS, Step("columns_float_first", "first in float: surely within the bound?")),
    ),
    Ladder(
        "rows, float64, in the cache, in place, none violating",
        (784, 800),
        1,
        "float64",
        "none",
        "read",
        (
            Step("doubles_naive", "one sum", native=False, exact=False),
            Step("doubles_lanes", "16 sums side by side: vectors", native=False, exact=False),
            Step("doubles_lanes", "compiled for this CPU's vectors", exact=False),
            Step("doubles_with_errors", "the errors of all roundings kept: as the promises need it"),
            Step("doubles_plain_first", "only where the plain sum cannot decide"),
        ),
    ),
)


@functools.cache
def library(native: bool) -> ctypes.CDLL:
    return floors.compiled("ladder.c", native)


def call(step: Step, x: np.ndarray, y: np.ndarray) -> None:
    """y = x with its violators on the ball."""
    getattr(library(step.native), step.function)(
        *map(ctypes.c_void_p, (y.ctypes.data, x.ctypes.data)), *map(ctypes.c_int64, x.shape), ctypes.c_double(MAX_NORM)
    )


def check(ladder: Ladder, step: Step) -> bool:
    """Whether the answers keep all promises, the hardest included; raise if they should and do not, or are far off."""
    right = True
    for x in (*state(ladder, "half").xs, *state(ladder, ladder.violating).xs, hardest(ladder)):
        y = np.empty_like(x)
        call(step, x, y)
        np.testing.assert_allclose(y, normball.norm_constraint(x, MAX_NORM, ladder.axis), rtol=1e-4)
        try:
            check_array(x, y, (ladder.axis,), MAX_NORM, GROUPS_CHECKED)
        except AssertionError:
            if step.exact:
                raise
            right = False
    return right


def state(ladder: Ladder, violating: str) -> Arrays:
    case = Case("ladder", (ladder.shape,), (ladder.axis,))
    return arrays(Cell(case, ladder.dtype, violating, threads=1, peers=False))


def hardest(ladder: Ladder) -> np.ndarray:
    """Norms within a rounding of their bound: about half of them above."""
    [x] = state(ladder, "all").xs
    norms = np.sqrt(np.square(x, dtype=np.float64).sum(axis=ladder.axis, keepdims=True))
    return (x * (MAX_NORM / norms)).astype(x.dtype)


def climb(ladder: Ladder) -> None:
    """Check each step, time all of them together with the floor and the library, and print."""
    print(f"\n{ladder.name}: {ladder.shape[0]} x {ladder.shape[1]}\n")
    answers = [check(ladder, step) for step in ladder.steps]
    data = state(ladder, ladder.violating)
    [x], [y] = data.xs, data.ys
    into = y if ladder.floor == "copy" else x
    rivals = [
        Rival(str(i), again(lambda step=step: call(step, x, into)), guest=not step.native)
        for i, step in enumerate(ladder.steps)
    ]
    ours = Rival("ours", again(lambda: normball.norm_constraint(x, MAX_NORM, ladder.axis, out=into)))
    times = interleave([*floors.rivals([x], [y], 1), *rivals, ours], SECONDS)
    floor = floors.best_copy(times) if ladder.floor == "copy" else times["read"]
    print(f"  {'':60} {'time':>8}  floors    gain  promises kept")
    before = None
    for i, (step, kept) in enumerate(zip(ladder.steps, answers, strict=True)):
        gain = f"{ratio(times[before], times[str(i)])['ratio']:6.2f}x" if before else " " * 7
        print(line(f"{i + 1}. {step.words}", times[str(i)], floor, gain, "yes" if kept else "no"))
        before = str(i)
    print(line("normball.norm_constraint", times["ours"], floor, " " * 7, "yes"))
    print(f"  {f'the floor: {ladder.floor}':60} {readable(median(floor)):>8}")


def line(words: str, times: np.ndarray, floor: np.ndarray, gain: str, kept: str) -> str:
    return f"  {words:60} {readable(median(times)):>8} {ratio(times, floor)['ratio']:7.2f} {gain}  {kept}"


def main() -> None:
    pin(1)
    for ladder in LADDERS:
        if all(text in ladder.name for text in sys.argv[1:]):
            climb(ladder)


if __name__ == "__main__":
    main()
