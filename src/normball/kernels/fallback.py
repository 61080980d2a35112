"""The loops over memory in plain NumPy: right to the last bit, on any array of any layout, without a compiler.

A group is scaled by a power of two so that its largest entry lies in [1/2, 1). Nothing overflows or underflows
after that, whatever the input. Powers are then summed in fixed point (64-bit integers, which add exactly), so the
sum is good to 2**-75 and does not depend on the order of the terms. `docs/numerics.md` has the proofs. NumPy works in
the calling thread, whatever `threads` says.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from normball import definition

# Entries looked at in one piece: temporaries stay in cache, and 2**18 fixed-point terms of 44 bits fit an int64.
BLOCK = 2**18
FIXED_POINT_BITS = 44
# Norms are good to 2**-75; a norm this close to its bound is decided in exact arithmetic instead.
DOUBT = 2.0**-70
UNIT_ROUNDOFF = 2.0**-53
# The factor's margins. float64: the factor and the product round to nearest, one unit each. Narrower dtypes: the
# product is truncated, so the margin only covers the float64 arithmetic of the factor itself.
FLOAT64_MARGIN = 2.01 * UNIT_ROUNDOFF
NARROW_MARGIN = 8 * UNIT_ROUNDOFF
# Below this bound float64 products may be subnormal, where rounding is absolute: no relative margin helps there.
TINY = 2.0**-900


class Wide(NamedTuple):
    """Float64 arrays standing for (high + low) * 2**exponent, low at most half an ulp of high.

    As the summary of an order-2 group, for (high + low) * 4**exponent.
    """

    high: np.ndarray
    low: np.ndarray
    exponent: np.ndarray


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
    norms_before = norm(summarise(x, axes, ord), ord)
    rescale(x, settle(norms_before, [x], axes, max_norm, ord), axes, max_norm, epsilon, out)


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
    for job in zip(xs, outs, axes, max_norms, epsilons, strict=True):
        constrain(*job, ord)


def constrain_total(
    xs: Sequence[np.ndarray],
    outs: Sequence[np.ndarray],
    max_norm: float | np.ndarray,
    epsilon: float | np.ndarray,
    ord: float,
    threads: int = 0,
) -> np.ndarray:
    """Write all arrays, as one group inside its ball, into outs; the norm before, as `norms` gives it."""
    parts = [summarise(x, tuple(range(x.ndim)), ord) for x in xs]
    total = norm(merge([Wide(*(part.reshape(1) for part in wide)) for wide in parts], ord), ord)
    settled = Wide(*(part.reshape(()) for part in settle(total, xs, None, max_norm, ord)))
    for x, out in zip(xs, outs, strict=True):
        rescale(x, settled, tuple(range(x.ndim)), max_norm, epsilon, out)
    return beside(settled, max_norm)


def norms(
    x: np.ndarray, axes: tuple[int, ...], ord: float, max_norm: float | np.ndarray | None = None, threads: int = 0
) -> np.ndarray:
    """Each group's norm as float64, at most one ulp off and exact where a float64 holds it, reduced axes kept as 1.

    Given a bound, the norms compare with it as the exact norms do.
    """
    wide = norm(summarise(x, axes, ord), ord)
    if max_norm is None:
        return to_float64(wide)
    return beside(settle(wide, [x], axes, max_norm, ord), max_norm)


def get_num_threads() -> int:
    """NumPy works in the calling thread."""
    return 1


def set_num_threads(n: int) -> None:
    """As good as nothing: any n allows for one thread."""


def summarise(x: np.ndarray, axes: tuple[int, ...], ord: float) -> Wide:
    """Each group's largest entry, or sum of powers, with the reduced axes kept as 1."""
    rows = _as_rows(x, axes)
    length = rows.shape[1]
    pieces = [np.empty((3, 0))]
    for start in _steps(len(rows), length):
        group_block = rows[start]
        parts = [
            _summarise_block(group_block[:, begin : begin + BLOCK], ord) for begin in range(0, max(length, 1), BLOCK)
        ]
        pieces.append(np.stack(merge(parts, ord)))
    kept = _kept_shape(x.shape, axes)
    return Wide(*(part.reshape(kept) for part in np.concatenate(pieces, axis=1)))


def merge(summaries: Sequence[Wide], ord: float) -> Wide:
    """The summary of groups from those of their parts."""
    merged = summaries[0]
    for part in summaries[1:]:
        if ord == np.inf:
            exponent = np.where(merged.exponent >= part.exponent, merged.exponent, part.exponent)
            high = np.maximum(
                _shift(merged.high, merged.exponent - exponent), _shift(part.high, part.exponent - exponent)
            )
            merged = Wide(high, np.zeros_like(high), exponent)
            continue
        # A part that is zero has no scale of its own: it must not drown the other's.
        exponent = np.where(
            merged.high == 0,
            part.exponent,
            np.where(part.high == 0, merged.exponent, np.maximum(merged.exponent, part.exponent)),
        )
        first = int(ord) * (merged.exponent - exponent)
        second = int(ord) * (part.exponent - exponent)
        high, error = _two_sum(_shift(merged.high, first), _shift(part.high, second))
        low = error + _shift(merged.low, first) + _shift(part.low, second)
        merged = Wide(*_two_sum(high, np.where(np.isfinite(high), low, 0)), exponent)
    return merged


def norm(summary: Wide, ord: float) -> Wide:
    """The norms, still as wide numbers."""
    if ord != 2:
        return summary
    with np.errstate(all="ignore"):
        root = np.sqrt(summary.high)
        square, error = _two_square(root)
        rest = (((summary.high - square) - error) + summary.low) / (2 * root)
        ordinary = (summary.high > 0) & np.isfinite(summary.high)
        return Wide(*_two_sum(root, np.where(ordinary, rest, 0)), summary.exponent)


def settle(
    norms: Wide, xs: Sequence[np.ndarray], axes: tuple[int, ...] | None, max_norm: float | np.ndarray, ord: float
) -> Wide:
    """The same norms, nudged where needed so that comparing them with `max_norm` is comparing exactly.

    `axes` None means that all entries of all arrays are one group.
    """
    if ord == np.inf:  # no sum, no rounding
        return norms
    uncertain = doubtful(norms, max_norm)
    if not uncertain.any():
        return norms
    bound = np.broadcast_to(max_norm, norms.high.shape)
    groups = [x.reshape(1, -1) for x in xs] if axes is None else [_as_rows(x, axes) for x in xs]
    above = []
    for index in zip(*np.nonzero(uncertain), strict=True):
        row = np.ravel_multi_index(index, uncertain.shape)
        values = [float(v) for group in groups for v in group[row]]
        above.append(definition.norm(definition.summarise(values, ord), ord) > bound[index])
    return decided(norms, max_norm, uncertain, np.array(above))


def doubtful(norms: Wide, max_norm: float | np.ndarray) -> np.ndarray:
    """Which norms lie too close to their bound to tell on which side of it."""
    with np.errstate(all="ignore"):
        close = np.abs(_excess(norms, np.asarray(max_norm))) <= DOUBT * norms.high
        return close & (norms.high > 0) & np.isfinite(norms.high)


def decided(norms: Wide, max_norm: float | np.ndarray, uncertain: np.ndarray, above: np.ndarray) -> Wide:
    """The same norms, the uncertain ones beside their bound: above it or on it, as `above` says of each of them."""
    high, low = norms.high.copy(), norms.low.copy()
    bound = np.broadcast_to(max_norm, high.shape)[uncertain]
    high[uncertain] = _shift(bound, -norms.exponent[uncertain])
    low[uncertain] = np.where(above, DOUBT * high[uncertain], 0.0)
    return Wide(high, low, norms.exponent)


def rescale(
    x: np.ndarray,
    norms: Wide,
    axes: tuple[int, ...],
    max_norm: float | np.ndarray,
    epsilon: float | np.ndarray,
    out: np.ndarray,
) -> None:
    """Write x into out: groups within their bound as they are, the others onto the ball, spoilt ones as NaN."""
    kept = _kept_shape(x.shape, axes)
    flat = Wide(*(np.broadcast_to(part, kept).reshape(-1) for part in norms))
    bound = np.broadcast_to(max_norm, kept).reshape(-1)
    small = np.broadcast_to(epsilon, kept).reshape(-1)
    with np.errstate(all="ignore"):
        valid = (bound >= 0) & (small >= 0) & ~np.isnan(flat.high)
        compliant = valid & ((_excess(flat, bound) <= 0) | (bound == np.inf))
        ordinary = valid & ~compliant & np.isfinite(flat.high)
    if out is not x:
        np.copyto(out, x)
    if compliant.all():
        return
    rows = _as_rows(x, axes)
    result = _as_rows(out, axes)
    result[~(compliant | ordinary)] = np.nan
    violators = np.nonzero(ordinary)[0]
    for step in _steps(len(violators), rows.shape[1]):
        chosen = violators[step]
        picked = Wide(*(part[chosen] for part in flat))
        result[chosen] = _onto_ball(rows[chosen], picked, bound[chosen], small[chosen])
    if not np.may_share_memory(result, out):
        np.copyto(_reduced_last(out, axes), result.reshape(_reduced_last(out, axes).shape))


def to_float64(norms: Wide) -> np.ndarray:
    """The norms as float64: at most one ulp off, exact where a float64 holds the norm, inf beyond the largest."""
    return _shift(norms.high, norms.exponent)


def beside(norms: Wide, bound: float | np.ndarray) -> np.ndarray:
    """Settled norms as float64 that compare with the bound as they did before they were rounded."""
    bound = np.asarray(bound)
    rounded = to_float64(norms)
    excess = _excess(norms, bound)
    rounded = np.where((excess > 0) & (rounded <= bound), np.nextafter(bound, np.inf), rounded)
    return np.where((excess <= 0) & (rounded > bound), bound, rounded)


def _summarise_block(rows: np.ndarray, ord: float) -> Wide:
    """Summaries of a (groups, entries) piece, at most BLOCK entries wide."""
    with np.errstate(all="ignore"):
        sizes = np.abs(rows.astype(np.float64))
        largest = sizes.max(axis=1, initial=0.0)
        finite = np.isfinite(largest)
        exponent = np.where(finite, np.frexp(largest)[1], 0).astype(np.float64)
        scaled = _shift(sizes, -exponent[:, None])
        scaled[~finite] = 0.0
        if ord == np.inf:
            high, low = scaled.max(axis=1, initial=0.0), np.zeros(len(rows))
        elif ord == 1:
            high, low = _fixed_point_sum(scaled)
        else:
            square, error = _two_square(scaled)
            high, low = _fixed_point_sum(square)
            high, low = _two_sum(high, low + error.sum(axis=1))
        return Wide(np.where(finite, high, largest), np.where(finite, low, 0.0), exponent)


def _fixed_point_sum(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the last axis of at most BLOCK terms in [0, 1], good to 2**-77: two 44-bit levels and the rest."""
    unit = 2.0**FIXED_POINT_BITS
    scaled = terms * unit
    whole = np.floor(scaled)
    coarse = whole.astype(np.int64).sum(axis=-1)
    scaled = (scaled - whole) * unit
    whole = np.floor(scaled)
    fine = whole.astype(np.int64).sum(axis=-1)
    rest = (scaled - whole).sum(axis=-1)
    high = coarse.astype(np.float64)
    low = (coarse - high.astype(np.int64)) + (fine + rest) / unit
    return _two_sum(high / unit, low / unit)


def _onto_ball(rows: np.ndarray, norms: Wide, bound: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """Violating (groups, entries) rows times bound / (norm + epsilon), never above the bound."""
    with np.errstate(all="ignore"):
        scaled_bound = _shift(bound, -norms.exponent)
        scaled_epsilon = _shift(epsilon, -norms.exponent)
        if rows.dtype != np.float64:
            factor = scaled_bound / (norms.high + scaled_epsilon) * (1 - NARROW_MARGIN)
            return _truncate(rows.astype(np.float64) * factor[:, None], rows.dtype)
        # float64 has no wider type to be truncated from, so the factor is worked out in two words and rounded once.
        result = rows * _float64_factor(scaled_bound, norms, scaled_epsilon)[:, None]
        extreme = (scaled_bound < TINY) | (bound < TINY) | (epsilon > 1 / TINY)
        if extreme.any():
            picked = Wide(*(part[extreme] for part in norms))
            result[extreme] = _carefully_onto_ball(rows[extreme], picked, bound[extreme], epsilon[extreme])
        return result


def _carefully_onto_ball(rows: np.ndarray, norms: Wide, bound: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """Float64 rows times a factor near 1 times a power of two: rounded, then truncated where it is subnormal."""
    mantissa, bound_exponent = np.frexp(bound)
    # The divisor at a scale where it is neither tiny nor huge, whichever of its terms is the larger.
    scale = np.where(epsilon > 0, np.maximum(norms.exponent, np.frexp(epsilon)[1]), norms.exponent)
    down = norms.exponent - scale
    divisor = Wide(_shift(norms.high, down), _shift(norms.low, down), scale)
    factor = _float64_factor(mantissa, divisor, _shift(epsilon, -scale))[:, None]
    lift = np.maximum(-norms.exponent, 0)[:, None]
    product = _shift(rows, lift) * factor
    shift = (bound_exponent - scale)[:, None] - lift
    rounded = _shift(product, shift)
    too_far = np.abs(_shift(rounded, -shift)) > np.abs(product)
    return np.where(too_far, np.nextafter(rounded, 0), rounded)


def _float64_factor(numerator: np.ndarray, norms: Wide, epsilon: np.ndarray) -> np.ndarray:
    """numerator / (norm + epsilon) times (1 - FLOAT64_MARGIN), rounded once."""
    high, error = _two_sum(norms.high, epsilon)
    low = error + norms.low
    quotient = numerator / high
    product, error = _two_product(quotient, high)
    correction = (((numerator - product) - error) - quotient * low) / high
    refined = quotient + (correction - FLOAT64_MARGIN * quotient)
    # An epsilon near or beyond the largest float64 breaks the splitting above, and nothing else does.
    return np.where(np.isfinite(refined), refined, quotient * (1 - NARROW_MARGIN))


def _truncate(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float64 values rounded towards zero to a narrower dtype."""
    rounded = exact.astype(dtype)
    too_far = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    return np.where(too_far, np.nextafter(rounded, np.zeros((), dtype)), rounded)


def _excess(norms: Wide, bound: np.ndarray) -> np.ndarray:
    """The sign of norm - bound, exactly, for norms as wide as they are."""
    with np.errstate(all="ignore"):
        return (norms.high - _shift(bound, -norms.exponent)) + norms.low


def _shift(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """X * 2**exponent, the exponent a float64 array of integers."""
    with np.errstate(all="ignore"):
        return np.ldexp(x, exponent.astype(np.int32))


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A + b and its rounding error (Knuth)."""
    with np.errstate(all="ignore"):
        total = a + b
        part = total - a
        return total, (a - (total - part)) + (b - part)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A * b and its rounding error (Dekker, Veltkamp)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _two_square(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A * a and its rounding error."""
    square = a * a
    high, low = _split(a)
    return square, ((high * high - square) + 2 * high * low) + low * low


def _split(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper 26 and the lower 27 bits."""
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


def _reduced_last(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))


def _as_rows(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """X as (groups, entries): a view where the layout allows one, else a copy."""
    length = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    groups = int(np.prod(_kept_shape(x.shape, axes), dtype=np.int64))
    return _reduced_last(x, axes).reshape(groups, length)


def _kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))


def _steps(groups: int, length: int) -> Iterator[slice]:
    """Slices over the groups, of about BLOCK entries each."""
    size = max(1, BLOCK // max(length, 1))
    return (slice(begin, begin + size) for begin in range(0, groups, size))
