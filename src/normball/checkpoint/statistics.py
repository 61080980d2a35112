"""What is known of a tensor's norms, in bounded memory: their extremes, quantiles, and how many are over the bound."""

import sys

import numpy as np

KEPT = 2**20  # norms that are kept for exact quantiles; beyond that they are read off a histogram
FINE = 42  # bits of a float64 that the fine histogram drops: its bins are 0.1 % wide
COARSE = 48  # and the one for pictures: 16 bins an octave


class Statistics:
    """Norms, added block by block; `finish` ends that and frees the memory."""

    def __init__(self) -> None:
        self.groups = self.over = self.zero = self.nonfinite = 0
        self.minimum = self.median = self.p99 = self.maximum = float("nan")  # of the finite ones
        self.exact = True  # whether the quantiles are, or good to 0.1 %
        self.histogram: dict[int, int] = {}  # how many norms, by bin; `edges` says which norms
        self._kept: list[np.ndarray] = []
        self._waiting = 0
        self._fine: np.ndarray | None = None

    def add(self, norms: np.ndarray, limit: float | None) -> None:
        """More norms, which compare with the limit as the exact ones do."""
        norms = norms.reshape(-1)
        finite = norms[np.isfinite(norms)]
        self.groups += norms.size
        self.nonfinite += norms.size - finite.size
        self.zero += int(np.count_nonzero(finite == 0))
        if limit is not None:
            self.over += int(np.count_nonzero(finite > limit))
        if not finite.size:
            return
        self.minimum = float(np.fmin(self.minimum, finite.min()))
        self.maximum = float(np.fmax(self.maximum, finite.max()))
        self._kept.append(finite)
        self._waiting += finite.size
        if self._waiting > KEPT:
            self._bin()

    def finish(self) -> "Statistics":
        """Quantiles and the histogram, of all that was added."""
        if self._fine is not None:
            self._bin()
            bins = np.flatnonzero(self._fine)
            counts = self._fine[bins]
            self.exact = False
            self.median, self.p99 = (self._quantile(bins, counts, share) for share in (0.5, 0.99))
            coarse = bins >> (COARSE - FINE)
        elif self._kept:
            norms = np.concatenate(self._kept)
            self.median, self.p99 = map(float, np.quantile(norms, (0.5, 0.99)))
            coarse, counts = _bits(norms) >> COARSE, np.ones(len(norms), np.int64)
        else:
            return self
        places, inverse = np.unique(coarse, return_inverse=True)
        sums = np.zeros(len(places), np.int64)
        np.add.at(sums, inverse, counts)
        self.histogram = dict(zip(places.tolist(), sums.tolist(), strict=True))
        self._kept, self._fine = [], None
        return self

    @staticmethod
    def edges(place: int) -> tuple[float, float]:
        """The norms of a bin of `histogram`: from the first to below the second."""
        low, high = np.array([place << COARSE, (place + 1) << COARSE], np.int64).view(np.float64)
        return float(low), min(float(high), sys.float_info.max)

    def _bin(self) -> None:
        if self._fine is None:
            self._fine = np.zeros(2 ** (63 - FINE), np.int64)
        for norms in self._kept:
            self._fine += np.bincount(_bits(norms) >> FINE, minlength=len(self._fine))
        self._kept, self._waiting = [], 0

    def _quantile(self, bins: np.ndarray, counts: np.ndarray, share: float) -> float:
        """The norm in the middle of the bin that holds it, within the extremes."""
        place = bins[np.searchsorted(np.cumsum(counts), share * counts.sum())]
        low, high = np.array([place << FINE, (place + 1) << FINE], np.int64).view(np.float64)
        return float(np.clip((low + high) / 2, self.minimum, self.maximum))


def _bits(norms: np.ndarray) -> np.ndarray:
    """Non-negative float64 as integers, in the same order."""
    return np.abs(norms).view(np.int64)
