"""The norms of groups that are cut into pieces: the same steps as a backend's, on a region's groups side by side.

Two arithmetics, by dtype. Both decide each norm against the limit as in exact arithmetic; what float64 leaves in doubt
is read once more and summed in integers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from normball import kernels
from normball.checkpoint.pieces import Piece
from normball.kernels.fallback import Wide

DOUBT = 2.0**-46
# Norms of pieces are good to 2**-52, their sum in two words to 2**-50: a factor less by this never is too large.
MARGIN = 2.0**-46
KEPT = 2**21  # norms of pieces that are kept until they are rescaled; others are computed again

Decide = Callable[[np.ndarray], np.ndarray]  # the groups in doubt, as a mask -> which of these are above the limit


class Narrow:
    """float32 and narrower: squares of norms are in float64's range, so they add up as they are, in two words."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high, self.low = np.zeros(shape), np.zeros(shape)
        self._parts: dict[int, np.ndarray] = {}  # by the pieces' offsets
        self._room = KEPT

    @staticmethod
    def summarise(piece: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """The norms of a piece's part of each group."""
        return kernels.norms(piece, axes, 2, None, 1)

    def merge(self, piece: Piece, norms: np.ndarray) -> None:
        """A piece's norms among the region's."""
        where = piece.groups
        if norms.size <= self._room:
            self._parts[piece.offset] = norms
            self._room -= norms.size
        with np.errstate(all="ignore"):
            square, high = norms * norms, self.high[where]
            total = high + square
            part = total - high
            error = (high - (total - part)) + (square - part)
            self.high[where] = total
            self.low[where] += np.where(np.isfinite(total), error, 0)

    def settle(self, limit: float | None, decide: Decide) -> np.ndarray:
        """The norms; they compare with the limit as the exact ones do."""
        self.norms = np.sqrt(self.high + self.low)
        if limit is not None and limit < np.inf:
            doubtful = np.abs(self.norms - limit) <= DOUBT * limit
            if doubtful.any():
                self.norms[doubtful] = np.where(decide(doubtful), np.nextafter(limit, np.inf), limit)
        return self.norms

    def rescale(self, array: np.ndarray, axes: tuple[int, ...], piece: Piece, limit: float) -> None:
        """A piece times the factors of its groups, in place: as groups of their own, with their share of the bound."""
        norms = self.norms[piece.groups]
        over = norms > limit
        if not over.any():
            return
        own = self._parts.get(piece.offset)
        if own is None:
            own = self.summarise(array, axes)
        with np.errstate(all="ignore"):
            share = own * (limit / norms * (1 - MARGIN))
        kernels.constrain(array, array, axes, np.where(over, share, np.inf), 0.0, 2, 1)


class Wider:
    """float64: sums and factors in two words, by the kernels in NumPy."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        zero = np.zeros(shape)
        self.sums = Wide(zero, zero.copy(), zero.copy())

    @staticmethod
    def summarise(piece: np.ndarray, axes: tuple[int, ...]) -> Wide:
        """The sums of a piece's part of each group."""
        return kernels.fallback.summarise(piece, axes, 2)

    def merge(self, piece: Piece, sums: Wide) -> None:
        """A piece's sums among the region's."""
        where = piece.groups
        merged = kernels.fallback.merge([Wide(*(part[where] for part in self.sums)), sums], 2)
        for whole, part in zip(self.sums, merged, strict=True):
            whole[where] = part

    def settle(self, limit: float | None, decide: Decide) -> np.ndarray:
        """The norms; they compare with the limit as the exact ones do."""
        self.wide = kernels.fallback.norm(self.sums, 2)
        if limit is None or limit == np.inf:
            return kernels.fallback.to_float64(self.wide)
        doubtful = kernels.fallback.doubtful(self.wide, limit)
        if doubtful.any():
            self.wide = kernels.fallback.decided(self.wide, limit, doubtful, decide(doubtful))
        return kernels.fallback.beside(self.wide, limit)

    def rescale(self, array: np.ndarray, axes: tuple[int, ...], piece: Piece, limit: float) -> None:
        """A piece times the factors of its groups, in place."""
        norms = Wide(*(part[piece.groups] for part in self.wide))
        kernels.fallback.rescale(array, norms, axes, limit, 0.0, array)


def of(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """The sums of a region with groups of this shape."""
    return Wider(shape) if dtype == np.float64 else Narrow(shape)
