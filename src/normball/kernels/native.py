"""The C kernels: the same functions as `fallback` has for the backends, on the same arrays.

`threads`: how many may work on a call; 0 for as many as the setting says.
"""

from collections.abc import Sequence

import numpy as np

from normball.kernels import _native

DTYPES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}
ORDERS = {np.inf: 0, 1: 1, 2: 2}


def constrain(
    x: np.ndarray,
    out: np.ndarray,
    axes: tuple[int, ...],
    max_norm: float | np.ndarray,
    epsilon: float | np.ndarray,
    ord: float,
    threads: int = 0,
) -> None:
    """Write x, every group inside its ball, into out, which may be x itself."""
    _native.constrain(ORDERS[ord], threads, x, out, _CODES[x.dtype], axes, max_norm, epsilon)


def constrain_each(
    xs: Sequence[np.ndarray],
    outs: Sequence[np.ndarray],
    axes: Sequence[tuple[int, ...]],
    max_norms: Sequence[float | np.ndarray],
    epsilons: Sequence[float | np.ndarray],
    ord: float,
    threads: int = 0,
) -> None:
    """Write every x, as `constrain` would, into its out; no out shares memory with another array of the list."""
    jobs: list = []
    for x, out, own_axes, max_norm, epsilon in zip(xs, outs, axes, max_norms, epsilons, strict=True):
        jobs += x, out, _CODES[x.dtype], own_axes, max_norm, epsilon
    _native.constrain(ORDERS[ord], threads, *jobs)


def constrain_total(
    xs: Sequence[np.ndarray],
    outs: Sequence[np.ndarray],
    max_norm: float | np.ndarray,
    epsilon: float | np.ndarray,
    ord: float,
    threads: int = 0,
) -> np.ndarray:
    """Write all arrays, as one group inside its ball, into outs; the norm before, as `norms` gives it."""
    jobs: list = []
    for x, out in zip(xs, outs, strict=True):
        jobs += x, out, _CODES[x.dtype]
    return np.array(_native.constrain_total(ORDERS[ord], threads, float(max_norm), float(epsilon), *jobs))


def norms(
    x: np.ndarray, axes: tuple[int, ...], ord: float, max_norm: float | np.ndarray | None = None, threads: int = 0
) -> np.ndarray:
    """Each group's norm as float64, at most one ulp off and exact where a float64 holds it, reduced axes kept as 1.

    Given a bound, the norms compare with it as the exact norms do.
    """
    result = np.empty([1 if axis in axes else length for axis, length in enumerate(x.shape)])
    _native.norms(ORDERS[ord], threads, x, result, _CODES[x.dtype], axes, max_norm)
    return result


def get_num_threads() -> int:
    """How many threads a call may use."""
    return _native.threads()


def set_num_threads(n: int) -> None:
    """Let calls use up to n threads from now on."""
    _native.set_threads(min(n, 2**31 - 1))


class _Codes(dict[np.dtype, int]):
    """The codes of dtypes, learnt on first sight: NumPy spells a dtype's name anew each time, for a microsecond."""

    def __missing__(self, dtype: np.dtype) -> int:
        self[dtype] = DTYPES[dtype.name]
        return self[dtype]


_CODES = _Codes()
