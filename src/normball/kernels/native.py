"""The C kernels: the same functions as at the end of `fallback`, on the same arrays."""

from collections.abc import Sequence

import numpy as np

from normball.kernels import _native

DTYPES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}
ORDERS = {np.inf: 0, 1: 1, 2: 2}


def constrain(
    x: np.ndarray, out: np.ndarray, axes: tuple[int, ...], max_norm: np.ndarray, epsilon: np.ndarray, ord: float
) -> None:
    """Every group of x inside its ball, into `out`: x itself, or memory apart from it."""
    code = DTYPES[x.dtype.name]
    _native.constrain(_plain(x), _plain(out), code, ORDERS[ord], _mask(axes), max_norm, epsilon)


def constrain_total(
    xs: Sequence[np.ndarray], outs: Sequence[np.ndarray], max_norm: float, epsilon: float, ord: float
) -> np.ndarray:
    """All arrays as one group inside its ball; its norm before."""
    triples = tuple((_plain(x), _plain(out), DTYPES[x.dtype.name]) for x, out in zip(xs, outs, strict=True))
    return np.asarray(_native.constrain_total(triples, ORDERS[ord], max_norm, epsilon))


def norms(x: np.ndarray, axes: tuple[int, ...], ord: float) -> np.ndarray:
    """Each group's norm as float64, the reduced axes kept as 1."""
    result = np.empty(tuple(1 if axis in axes else length for axis, length in enumerate(x.shape)))
    _native.norms(_plain(x), result, DTYPES[x.dtype.name], ORDERS[ord], _mask(axes))
    return result


def _plain(x: np.ndarray) -> np.ndarray:
    """X as a dtype that the buffer protocol knows."""
    return x.view(np.uint16) if x.dtype.name == "bfloat16" else x


def _mask(axes: tuple[int, ...]) -> int:
    return sum(1 << axis for axis in axes)
