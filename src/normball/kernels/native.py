"""The C kernels: the same functions as `fallback` has for the backends, on the same arrays."""

import functools
from collections.abc import Sequence

import numpy as np

from normball.kernels import _native

DTYPES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}
ORDERS = {np.inf: 0, 1: 1, 2: 2}


def constrain(
    x: np.ndarray, out: np.ndarray, axes: tuple[int, ...], max_norm: np.ndarray, epsilon: np.ndarray, ord: float
) -> None:
    """Write x, every group inside its ball, into out, which may be x itself."""
    _native.constrain(_plain(x), _plain(out), _code(x.dtype), ORDERS[ord], _mask(axes), max_norm, epsilon)


def constrain_total(
    xs: Sequence[np.ndarray], outs: Sequence[np.ndarray], max_norm: np.ndarray, epsilon: np.ndarray, ord: float
) -> np.ndarray:
    """Write all arrays, as one group inside its ball, into outs; the norm before, as `norms` gives it."""
    triples = tuple((_plain(x), _plain(out), _code(x.dtype)) for x, out in zip(xs, outs, strict=True))
    return np.asarray(_native.constrain_total(triples, ORDERS[ord], float(max_norm), float(epsilon)))


def norms(x: np.ndarray, axes: tuple[int, ...], ord: float, max_norm: np.ndarray | None = None) -> np.ndarray:
    """Each group's norm as float64, at most one ulp off and exact where a float64 holds it, reduced axes kept as 1.

    Given a bound, the norms compare with it as the exact norms do.
    """
    result = np.empty(tuple(1 if axis in axes else length for axis, length in enumerate(x.shape)))
    _native.norms(_plain(x), result, _code(x.dtype), ORDERS[ord], _mask(axes), max_norm)
    return result


def _plain(x: np.ndarray) -> np.ndarray:
    """X as a dtype that the buffer protocol knows."""
    return x.view(np.uint16) if _code(x.dtype) == DTYPES["bfloat16"] else x


@functools.cache  # NumPy spells a dtype's name anew each time, for a microsecond
def _code(dtype: np.dtype) -> int:
    return DTYPES[dtype.name]


@functools.cache
def _mask(axes: tuple[int, ...]) -> int:
    return sum(1 << axis for axis in axes)
