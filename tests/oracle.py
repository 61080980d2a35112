"""The judge of every test: which laws does a result break? In exact arithmetic, from `normball.definition`.

Knows NumPy and the definition, and no implementation. `test_oracle.py` proves that each law here can be broken.
"""

import math
from fractions import Fraction

import numpy as np

from normball import definition

TIGHT_ULPS = 4


def groups_of(x, axes):
    """X as a list of groups, each a list of Python floats."""
    axes = tuple(axis % x.ndim for axis in axes)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    count = int(np.prod(moved.shape[: x.ndim - len(axes)], dtype=int))
    length = int(np.prod([x.shape[axis] for axis in axes], dtype=int))
    return [[float(v) for v in group] for group in moved.reshape(count, length)]


def exact_norm(values, ord=2):
    return definition.norm(definition.summarise(values, ord), ord)


def ulp(value, dtype):
    """The distance between neighbours of `dtype` at a Fraction, as a Fraction."""
    info = _finfo(dtype)
    if value == 0:
        return Fraction(2) ** (info.minexp - info.nmant)
    exponent = _floor_log2(abs(value))
    return Fraction(2) ** (max(exponent, info.minexp) - info.nmant)


def broken_laws(x, y, max_norm, axes, epsilon=1e-7, ord=2, band=0):
    """Names of the laws of design.md that y breaks as norm_constraint(x, max_norm, axes, epsilon, ord=ord).

    `band`: how many ulp under the bound a compliant group may be rescaled all the same.
    """
    broken = set()
    if y.dtype != x.dtype or y.shape != x.shape:
        return {"same kind"}
    kept = tuple(1 if axis in {a % x.ndim for a in axes} else n for axis, n in enumerate(x.shape))
    bounds = np.broadcast_to(np.asarray(max_norm, np.float64), kept).reshape(-1)
    smalls = np.broadcast_to(np.asarray(epsilon, np.float64), kept).reshape(-1)
    for values, results, c, e in zip(groups_of(x, axes), groups_of(y, axes), bounds, smalls, strict=True):
        broken |= _broken_by_group(values, results, float(c), float(e), ord, x.dtype, band)
    return broken


def broken_total_laws(xs, ys, max_norm, epsilon=1e-7, ord=2, band=0):
    """The same for total_norm_constraint: all arrays are one group, each tight in its own dtype."""
    if [(y.dtype, y.shape) for y in ys] != [(x.dtype, x.shape) for x in xs]:
        return {"same kind"}
    values = [float(v) for x in xs for v in x.reshape(-1)]
    results = [float(v) for y in ys for v in y.reshape(-1)]
    dtypes = [x.dtype for x in xs for _ in range(x.size)]
    return _broken_by_group(values, results, max_norm, epsilon, ord, dtypes, band)


def _broken_by_group(values, results, c, e, ord, dtype, band):
    if any(math.isnan(v) for v in values) or (any(math.isinf(v) for v in values) and c != math.inf):
        return set() if all(math.isnan(r) for r in results) else {"isolated"}
    if any(math.isinf(v) for v in values):
        return set() if _same_bits(values, results) else {"untouched"}
    if any(not math.isfinite(r) for r in results):
        return {"finite"}
    dtypes = dtype if isinstance(dtype, list) else [dtype] * len(values)
    norm = exact_norm(values, ord)
    if c == math.inf or norm <= Fraction(c):
        near = (
            c != math.inf and band and norm > Fraction(c) - band * max((ulp(Fraction(c), t) for t in dtypes), default=0)
        )
        if _same_bits(values, results):
            return set()
        if not near:
            return {"untouched"}
    broken = set()
    if exact_norm(results, ord) > Fraction(c):
        broken.add("bounded")
    factor = Fraction(0) if math.isinf(e) else Fraction(c) / (norm + Fraction(e))
    for value, result, own in zip(values, results, dtypes, strict=True):
        wanted = Fraction(value) * factor
        if abs(Fraction(result) - wanted) > TIGHT_ULPS * ulp(wanted, own):
            broken.add("tight")
        if math.copysign(1, value) != math.copysign(1, result):
            broken.add("signs")
    return broken


def same_bits(a, b):
    """Equal dtype, shape and bytes: NaN equals itself, -0.0 does not equal 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _same_bits(values, results):
    return all(v == r and math.copysign(1, v) == math.copysign(1, r) for v, r in zip(values, results, strict=True))


def _floor_log2(value):
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent - (Fraction(2) ** exponent > value)


def _finfo(dtype):
    if np.dtype(dtype).name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.finfo(dtype)
    return np.finfo(dtype)
