"""How a tensor is cut so that memory stays bounded, whatever its size and the size of its groups. Geometry alone.

A tensor is cut into regions, which hold whole groups: so each can be finished before the next. A region is read in
pieces, runs of bytes as they lie in the file. Most regions are one piece: it is read once, measured, rescaled while
in cache, and written. The others, groups longer than WHOLE, are read twice: once for the sums, once to be rescaled.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PIECE = 2**20  # bytes: what is read, judged and written while in cache
WHOLE = 2**23  # bytes: up to here a group is not cut
GROUPS = 2**18  # sums of one region that are kept at a time

Range = tuple[int, int]


class Region(NamedTuple):
    """A box of a tensor that holds whole groups: what of each axis belongs to it; and its pieces."""

    ranges: tuple[Range, ...]
    pieces: "Pieces"


class Piece(NamedTuple):
    """A run of bytes: where it begins in the tensor, its shape, and the place of its groups among the region's."""

    offset: int
    shape: tuple[int, ...]
    groups: tuple[slice, ...]


def collapse(shape: Sequence[int], axes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape and norm axes with neighbours of one kind merged, and axes of length 1 dropped."""
    lengths: list[int] = []
    reduced: list[bool] = []
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        if reduced and reduced[-1] == (axis in axes):
            lengths[-1] *= length
        else:
            lengths.append(length)
            reduced.append(axis in axes)
    return tuple(lengths), tuple(axis for axis, is_reduced in enumerate(reduced) if is_reduced)


def regions(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> Iterator[Region]:
    """The regions of a collapsed shape, in the file's order where their groups lie so."""
    for ranges in _boxes(shape, axes, itemsize, itemsize * math.prod(shape)):
        yield Region(ranges, Pieces(shape, axes, itemsize, ranges))


def _boxes(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int, nbytes: int) -> Iterator[tuple[Range, ...]]:
    whole = tuple((0, length) for length in shape)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    if not kept or nbytes <= PIECE:
        yield whole
        return
    if kept[0] == 0:
        each = nbytes // shape[0]
        if each > WHOLE:  # cut within each index
            inner = tuple(axis - 1 for axis in axes)
            for index in range(shape[0]):
                for ranges in _boxes(shape[1:], inner, itemsize, each):
                    yield ((index, index + 1), *ranges)
            return
        for start, stop in _steps(shape[0], max(1, PIECE // each)):
            yield ((start, stop), *whole[1:])
        return
    # A group's entries lie far apart, so many groups go side by side: as few boxes as GROUPS allows.
    choices = [[one] for one in whole]
    if nbytes > WHOLE:
        for place, axis in enumerate(kept):
            others = math.prod(shape[other] for other in kept[place + 1 :])
            choices[axis] = list(_steps(shape[axis], max(1, GROUPS // others)))
            if others <= GROUPS:
                break
    yield from itertools.product(*choices)


def _steps(length: int, step: int) -> Iterator[Range]:
    return ((start, min(start + step, length)) for start in range(0, length, step))


class Pieces:
    """The pieces of a region, made as they are asked for: there may be millions."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int, ranges: tuple[Range, ...]) -> None:
        self.shape, self.axes, self.ranges = shape, axes, ranges
        self.strides = [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        full = [ranges[axis] == (0, length) for axis, length in enumerate(shape)]
        nbytes = itemsize * math.prod(stop - start for start, stop in ranges)
        limit = WHOLE if nbytes <= WHOLE else PIECE
        # Bytes are contiguous from the last axis that is not taken whole; up to `limit` of them are a piece.
        self.cut = next(
            (axis for axis in range(len(shape)) if all(full[axis + 1 :]) and self.strides[axis] <= limit),
            len(shape) - 1,
        )
        self.step = max(1, limit // self.strides[self.cut]) if shape else 1

    def __len__(self) -> int:
        if not self.shape:
            return 1
        start, stop = self.ranges[self.cut]
        outer = math.prod(stop - start for start, stop in self.ranges[: self.cut])
        return outer * -(-(stop - start) // self.step)

    def __iter__(self) -> Iterator[Piece]:
        if not self.shape:
            yield Piece(0, (), ())
            return
        first, last = self.ranges[self.cut]
        inner = self.ranges[self.cut + 1 :]
        for outer in itertools.product(*(range(start, stop) for start, stop in self.ranges[: self.cut])):
            for start in range(first, last, self.step):
                own = [(index, index + 1) for index in outer]
                own += [(start, min(start + self.step, last)), *inner]
                offset = sum(stride * begin for stride, (begin, _) in zip(self.strides, own, strict=True))
                groups = tuple(
                    slice(0, 1) if axis in self.axes else slice(begin - base, end - base)
                    for axis, ((begin, end), (base, _)) in enumerate(zip(own, self.ranges, strict=True))
                )
                yield Piece(offset, tuple(end - begin for begin, end in own), groups)
