"""What is timed: arrays of the shapes that people constrain, in the state that a cell's label says."""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

with contextlib.suppress(ImportError):  # without it the cells of bfloat16 fail, and say so
    import ml_dtypes  # noqa: F401  gives NumPy the dtype

MAX_NORM = 3.0
VIOLATING = {"none": 0.0, "half": 0.5, "all": 1.0}
OUTSIDE, INSIDE = 2.0, 0.25  # norms of violators and of compliant groups, in bounds
LINE = 64


class Case(NamedTuple):
    """Arrays that one call constrains: `axes` None for the default ones, `total` for one group of all."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...] | None
    total: bool = False

    @property
    def label(self) -> str:
        if self.total:
            return f"{self.name}, total norm"
        if self.axes is None:
            return self.name
        return f"{self.name}, {'axis' if len(self.axes) == 1 else 'axes'} {', '.join(map(str, self.axes))}"

    def axes_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.axes or ((0,) if len(shape) == 2 else tuple(range(1, len(shape))))


class Cell(NamedTuple):
    """One state of a case's arrays; in place and into other memory are timed together."""

    case: Case
    dtype: str
    violating: str
    threads: int
    peers: bool
    quick: bool = False

    @property
    def label(self) -> str:
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        return f"{self.case.label}, {self.dtype}, {self.violating} violating{threads}"


def resnet50() -> Iterator[tuple[int, ...]]:
    """The 161 parameters of ResNet-50. Vectors stand as (n, 1), of which the default axes make one group."""

    def convolution(out: int, into: int, size: int) -> Iterator[tuple[int, ...]]:
        yield (out, into, size, size)
        yield from [(out, 1)] * 2  # the batch norm behind it

    yield from convolution(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, channels, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, channels, 1)
            channels = 4 * width
    yield from [(2048, 1000), (1000, 1)]


def gpt2() -> Iterator[tuple[int, ...]]:
    """The 148 parameters of a GPT-2 of 12 layers; vectors as above."""
    yield from [(50257, 768), (1024, 768)]
    for _ in range(12):
        yield from [(768, 1), (768, 1), (768, 2304), (2304, 1), (768, 768), (768, 1)]
        yield from [(768, 1), (768, 1), (768, 3072), (3072, 1), (3072, 768), (768, 1)]
    yield from [(768, 1), (768, 1)]


def array(name: str, shape: tuple[int, ...], *axes: int) -> Case:
    return Case(name, (shape,), axes)


LISTS = {"ResNet-50, 161 tensors": tuple(resnet50()), "GPT-2, 148 tensors": tuple(gpt2())}
CASES = (
    *(array(f"dense {n} x {m}", (n, m), a) for n, m in ((100, 200), (784, 800), (4096, 4096)) for a in (0, 1)),
    *(array("dense 8192 x 8192", (8192, 8192), axis) for axis in (0, 1)),
    array("conv 64 x 3 x 7 x 7", (64, 3, 7, 7), 1, 2, 3),
    array("conv 512 x 512 x 3 x 3", (512, 512, 3, 3), 1, 2, 3),
    array("embedding 50000 x 768", (50000, 768), 1),
    *(array("tall 1000000 x 8", (1_000_000, 8), axis) for axis in (0, 1)),
    *(array("wide 8 x 1000000", (8, 1_000_000), axis) for axis in (0, 1)),
    *(Case(name, shapes, None) for name, shapes in LISTS.items()),
    *(Case(name, shapes, None, total=True) for name, shapes in LISTS.items()),
)
NARROW = ("dense 784 x 800", "dense 4096 x 4096", "embedding 50000 x 768")  # also timed in float16 and bfloat16
THREADED = (*NARROW, "conv 512 x 512 x 3 x 3", "ResNet-50, 161 tensors")  # also timed on two threads
LARGEST = ("dense 8192 x 8192", "GPT-2, 148 tensors")  # peers take seconds for a call
QUICK = ("dense 100 x 200", "dense 784 x 800", "conv 512 x 512 x 3 x 3", "ResNet-50, 161 tensors")


def cells(quick: bool) -> Iterator[Cell]:
    """All that `make bench` times, or with `quick` what shows within a minute whether something broke.

    Peers do the same work whatever the state, so they are not there for every state.
    """
    for threads in (1, 2):
        for case in CASES:
            if quick and case.name not in QUICK:
                continue
            for dtype in dtypes(case, threads, quick):
                for violating in states(case, dtype, threads, quick):
                    peers = violating != "half" and (dtype == "float32" or case.name not in LARGEST)
                    yield Cell(case, dtype, violating, threads, peers, quick)


def dtypes(case: Case, threads: int, quick: bool) -> tuple[str, ...]:
    if quick:
        return ("float32",) if threads == 1 or case.name == QUICK[1] else ()
    if threads > 1:
        return ("float32",) if case.name in THREADED else ()
    return ("float32", "float64", "float16", "bfloat16") if case.name in NARROW else ("float32", "float64")


def states(case: Case, dtype: str, threads: int, quick: bool) -> tuple[str, ...]:
    narrow = dtype in ("float16", "bfloat16")
    return ("none", "all") if quick or narrow or threads > 1 or case.total or case.name in LARGEST else tuple(VIOLATING)


class Arrays(NamedTuple):
    """The arrays of a cell: `xs` to work on, `ys` to write to, and what `xs` were at first."""

    xs: list[np.ndarray]
    ys: list[np.ndarray]
    before: list[np.ndarray]
    axes: list[tuple[int, ...]]

    def restore(self) -> None:
        for x, before in zip(self.xs, self.before, strict=True):
            np.copyto(x, before)


def arrays(cell: Cell) -> Arrays:
    """Violators at twice the bound, at random places; the others at a quarter of it."""
    case, rng = cell.case, np.random.default_rng(0)
    xs, axes = [], [case.axes_of(shape) for shape in case.shapes]
    for shape, reduced in zip(case.shapes, axes, strict=True):
        x = empty(shape, cell.dtype)
        start = int(rng.integers(1000))
        values = np.resize(normals()[start:], shape)
        if case.total:
            x[...] = values
        else:
            norms = np.sqrt(np.einsum(values, [*range(x.ndim)], values, [*range(x.ndim)], kept(x.ndim, reduced)))
            norms = np.expand_dims(norms, reduced)
            violates = rng.permutation(norms.size).reshape(norms.shape) < round(VIOLATING[cell.violating] * norms.size)
            np.multiply(values, np.where(violates, OUTSIDE, INSIDE) * MAX_NORM / norms, out=x, casting="unsafe")
        xs.append(x)
    if case.total:
        # Of the whole list, in float64: einsum would add up a hundred million terms in the dtype.
        norm = np.sqrt(sum(float(np.vdot(x, x)) if x.dtype == np.float64 else squares(x) for x in xs))
        for x in xs:
            x *= x.dtype.type(MAX_NORM * (OUTSIDE if cell.violating == "all" else INSIDE) / norm)
    ys = [empty(x.shape, cell.dtype) for x in xs]
    before = [x.copy() for x in xs]
    for y in ys:
        y.fill(0)  # its pages are there before anything is timed
    return Arrays(xs, ys, before, axes)


def kept(ndim: int, reduced: tuple[int, ...]) -> list[int]:
    return [axis for axis in range(ndim) if axis not in reduced]


def squares(x: np.ndarray) -> float:
    flat = x.reshape(-1)
    step = 1 << 16
    return sum(float(np.vdot(part, part)) for part in np.split(flat, range(step, flat.size, step)))


@functools.cache
def normals() -> np.ndarray:
    """A million random numbers, which arrays repeat: drawing them all would take longer than timing."""
    return np.random.default_rng(4).standard_normal(1_000_003, dtype=np.float32)


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory that begins with a cache line, as the floors want it."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.empty(size + LINE, np.uint8)
    begin = -raw.ctypes.data % LINE
    return raw[begin : begin + size].view(kind).reshape(shape)
