"""Norms of a tensor on disk, and the tensor inside its ball, in bounded memory: `norm_constraint`, piece by piece.

Every function takes the axes as numbers of the tensor's own shape, epsilon being 0. A region of one piece goes through
the kernels as it is; the sums of the others are merged (`sums.py`). Results do not depend on the number of threads.
"""

import math
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from normball import kernels
from normball.checkpoint import exact, sums
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.pieces import PIECE, Piece, Region, collapse, regions
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.tensors import FLOATS, Tensor
from normball.checkpoint.workers import Workers

Write = Callable[[int, memoryview], None]  # offset within the tensor, bytes

# NumPy has these alone; the rest are ml_dtypes'.
NUMPY = {"F64": "float64", "F32": "float32", "F16": "float16"}
ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


class View(NamedTuple):
    """A tensor as its bytes lie: its dtype, and its shape and norm axes with neighbours of one kind merged."""

    tensor: Tensor
    dtype: np.dtype
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def read(self, piece: Piece, workers: Workers, name: str = "") -> np.ndarray:
        """A piece of it, in this thread's buffer of that name."""
        buffer = workers.buffer(int(np.prod(piece.shape)) * self.dtype.itemsize, name)
        self.tensor.source.read_into(self.tensor.begin + piece.offset, memoryview(buffer))  # type: ignore[arg-type]
        array = buffer.view(self.dtype).reshape(piece.shape)
        if self.tensor.swapped:
            array.byteswap(inplace=True)
        return array if self.tensor.dtype in FLOATS else array.astype(np.float32)  # fp8

    def bytes_of(self, array: np.ndarray) -> memoryview:
        """A piece as it is written."""
        if self.tensor.swapped:
            array.byteswap(inplace=True)
        return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]

    def regions(self) -> Iterator[Region]:
        """None where there are no bytes."""
        return regions(self.shape, self.axes, self.dtype.itemsize) if self.tensor.nbytes else iter(())


def view(tensor: Tensor, axes: tuple[int, ...]) -> View:
    """How a tensor is read for these norm axes."""
    dtype = _dtype(tensor)
    if tensor.fortran:
        order = tensor.shape[::-1]
        return View(tensor, dtype, *collapse(order, [len(order) - 1 - axis for axis in axes]))
    return View(tensor, dtype, *collapse(tensor.shape, axes))


def measure(
    tensor: Tensor,
    axes: tuple[int, ...],
    limit: float | None,
    statistics: Statistics,
    workers: Workers,
    scale: float = 1.0,
) -> None:
    """Add the norms of a tensor's groups, times a companion's scale; they compare with the limit exactly."""
    bound = None if limit is None else limit / scale if scale else np.inf
    for norms in norms_of(view(tensor, axes), bound, workers):
        statistics.add(norms * scale if scale != 1 else norms, limit)


def norms_of(seen: View, limit: float | None, workers: Workers) -> Iterator[np.ndarray]:
    """The norms of every region, in order."""

    def whole_region(region: Region) -> np.ndarray:
        (piece,) = region.pieces
        array = seen.read(piece, workers)
        workers.progress(array.size * seen.dtype.itemsize)
        return kernels.norms(array, seen.axes, 2, limit, 1)

    for whole, run in _runs(seen.regions()):
        if whole:
            yield from workers.map(whole_region, run)
            continue
        for region in run:
            settled = _sums(seen, region, workers, workers.progress)
            yield settled.settle(limit, _decide(seen, region, limit, workers))


def groups_of(region: Region, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a region's norms."""
    return tuple(1 if axis in axes else stop - start for axis, (start, stop) in enumerate(region.ranges))


def constrain(
    tensor: Tensor, axes: tuple[int, ...], limit: float, write: Write, statistics: Statistics, workers: Workers
) -> None:
    """Every group inside its ball, handed to `write` from the threads, each byte once; the norms before are added.

    A group that holds NaN or inf is an error: what would be written is NaN.
    """
    seen = view(tensor, axes)

    def rescale_whole(region: Region) -> np.ndarray:
        (piece,) = region.pieces
        array = seen.read(piece, workers)
        norms = kernels.norms(array, seen.axes, 2, limit, 1)
        if (norms > limit).any():
            kernels.constrain(array, array, seen.axes, limit, 0.0, 2, 1)
        if np.isfinite(norms).all():
            deliver(piece, array)
        return norms

    def deliver(piece: Piece, array: np.ndarray) -> None:
        nbytes = array.nbytes
        write(piece.offset, seen.bytes_of(array))
        workers.progress(nbytes)

    for whole, run in _runs(seen.regions()):
        if whole:
            for norms in workers.map(rescale_whole, run):
                _add_finite(norms, limit, statistics, tensor)
            continue
        for region in run:
            settled = _sums(seen, region, workers)
            _add_finite(settled.settle(limit, _decide(seen, region, limit, workers)), limit, statistics, tensor)

            def rescale_piece(piece: Piece, settled: Any = settled) -> None:
                array = seen.read(piece, workers)
                settled.rescale(array, seen.axes, piece, limit)
                deliver(piece, array)

            for _ in workers.map(rescale_piece, region.pieces):
                pass


def copy(tensor: Tensor, write: Write, workers: Workers) -> None:
    """A tensor as it is, handed to `write`."""

    def one(start: int) -> None:
        buffer = memoryview(workers.buffer(min(PIECE, tensor.nbytes - start)))  # type: ignore[arg-type]
        tensor.source.read_into(tensor.begin + start, buffer)
        write(start, buffer)
        workers.progress(len(buffer))

    for _ in workers.map(one, range(0, tensor.nbytes, PIECE)):
        pass


def verify(before: Tensor, after: Tensor, axes: tuple[int, ...] | None, limit: float, workers: Workers) -> None:
    """Judge a result anew, without the kernels: every norm at most the limit, every compliant group byte for byte.

    Without axes all bytes are compared. CheckpointError where it is not so.
    """
    if axes is None:
        _verify_copy(before, after, workers)
        return
    old, new = view(before, axes), view(after, axes)

    def judge_whole(region: Region) -> bool:
        (piece,) = region.pieces
        first, second = old.read(piece, workers, "old"), new.read(piece, workers, "new")
        over = exact.exceed(_rows(first, old.axes), limit)
        return not exact.exceed(_rows(second, new.axes), limit).any() and _same(first, second, old.axes, ~over)

    for whole, run in _runs(old.regions()):
        if whole:
            fine = all(workers.map(judge_whole, run))
        else:
            fine = all(_verify_region(old, new, region, limit, workers) for region in run)
        if not fine:
            raise CheckpointError(
                f"{printable(before.name)}: the result read back does not hold the bound of {limit:g}"
            )


def _sums(seen: View, region: Region, workers: Workers, progress: Callable[[int], None] = lambda nbytes: None) -> Any:
    """The sums of a region's groups, all its pieces merged in their order."""
    merged = sums.of(seen.dtype, groups_of(region, seen.axes))

    def summarise(piece: Piece) -> tuple[Piece, Any]:
        array = seen.read(piece, workers)
        progress(array.size * seen.dtype.itemsize)
        return piece, merged.summarise(array, seen.axes)

    for piece, part in workers.map(summarise, region.pieces):
        merged.merge(piece, part)
    return merged


def _decide(seen: View, region: Region, limit: float | None, workers: Workers) -> sums.Decide:
    """Read a region again, to add the groups in doubt in integers."""

    def decide(doubtful: np.ndarray) -> np.ndarray:
        places = np.cumsum(doubtful.reshape(-1)).reshape(doubtful.shape) - 1  # of each of them in `totals`
        totals = [0] * int(doubtful.sum())

        def add(piece: Piece) -> tuple[np.ndarray, list[int]]:
            mask = doubtful[piece.groups]
            rows = _rows(seen.read(piece, workers), seen.axes)[mask.reshape(-1)]
            return places[piece.groups][mask], exact.sums_of_squares(rows)

        for chosen, parts in workers.map(add, (piece for piece in region.pieces if doubtful[piece.groups].any())):
            for index, part in zip(chosen, parts, strict=True):
                totals[index] += part
        return np.array([exact.exceeds(total, limit) for total in totals], bool)  # type: ignore[arg-type]

    return decide


def _verify_region(old: View, new: View, region: Region, limit: float, workers: Workers) -> bool:
    """A region of several pieces, judged as one of a single piece is."""
    over = _exceed(old, region, limit, workers)
    if _exceed(new, region, limit, workers).any():
        return False

    def compare(piece: Piece) -> bool:
        first, second = old.read(piece, workers, "old"), new.read(piece, workers, "new")
        return _same(first, second, old.axes, ~over[piece.groups].reshape(-1))

    return all(workers.map(compare, region.pieces))


def _exceed(seen: View, region: Region, limit: float, workers: Workers) -> np.ndarray:
    """Whether each group's norm is above the limit: by float64 where its error bound allows, else by integers."""
    totals = np.zeros(groups_of(region, seen.axes))

    def add(piece: Piece) -> tuple[Piece, np.ndarray]:
        array = seen.read(piece, workers).astype(np.float64)
        with np.errstate(all="ignore"):
            return piece, (array * array).sum(axis=seen.axes, keepdims=True)

    for piece, part in workers.map(add, region.pieces):
        with np.errstate(all="ignore"):
            totals[piece.groups] += part
    entries = math.prod(region.ranges[axis][1] - region.ranges[axis][0] for axis in seen.axes)
    over, doubtful = exact.compare(totals, entries + len(region.pieces), limit)
    if doubtful.any():
        over[doubtful] = _decide(seen, region, limit, workers)(doubtful)
    return over


def _verify_copy(before: Tensor, after: Tensor, workers: Workers) -> None:
    def same(start: int) -> bool:
        length = min(PIECE, before.nbytes - start)
        first, second = workers.buffer(length, "old"), workers.buffer(length, "new")
        before.source.read_into(before.begin + start, memoryview(first))  # type: ignore[arg-type]
        after.source.read_into(after.begin + start, memoryview(second))  # type: ignore[arg-type]
        return np.array_equal(first, second)

    if not all(workers.map(same, range(0, before.nbytes, PIECE))):
        raise CheckpointError(f"{printable(before.name)}: the result read back is not the input byte for byte")


def _runs(every: Iterator[Region]) -> Iterator[tuple[bool, Iterator[Region]]]:
    """Regions that follow each other and are one piece each, or not: the former go to the threads side by side."""
    return groupby(every, lambda region: len(region.pieces) == 1)


def _rows(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """A piece as (groups, entries)."""
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    groups = int(np.prod([array.shape[axis] for axis in kept]))
    return array.transpose(*kept, *axes).reshape(groups, -1)


def _same(first: np.ndarray, second: np.ndarray, axes: tuple[int, ...], groups: np.ndarray) -> bool:
    """Whether the chosen groups have the same bits in both."""
    bits = f"u{first.dtype.itemsize}"
    first_rows, second_rows = (_rows(array.view(bits), axes)[groups] for array in (first, second))
    return np.array_equal(first_rows, second_rows)


def _add_finite(norms: np.ndarray, limit: float, statistics: Statistics, tensor: Tensor) -> None:
    statistics.add(norms, limit)
    if statistics.nonfinite:
        raise CheckpointError(
            f"{printable(tensor.name)}: holds groups with NaN, inf or a norm beyond float64, which have no place in a "
            f"ball; leave it alone by a rule '{printable(tensor.name)}: skip', or mend it first"
        )


def _dtype(tensor: Tensor) -> np.dtype:
    if tensor.dtype in NUMPY:
        return np.dtype(NUMPY[tensor.dtype])
    try:
        return np.dtype(getattr(import_module("ml_dtypes"), ML_DTYPES[tensor.dtype]))
    except ImportError:
        raise CheckpointError(
            f"{printable(tensor.name)}: {tensor.dtype} needs ml_dtypes; pip install 'normball[cli]'"
        ) from None
