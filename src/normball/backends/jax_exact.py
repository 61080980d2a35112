"""The constraint of float64 arrays of JAX, and of lists that hold some.

XLA on a CPU reads subnormal numbers as zero and flushes subnormal results, contracts a*b + c to one operation and
drops pairs of conversions. So magnitudes, scaling and the last rounding are integer operations on the bits, which
none of that touches: subnormal entries, bounds and results come out as on every other backend. Every product whose
rounding would matter is exact, its factors having been cut by bit masks.

Sums are exact: powers are cut into whole numbers of a power of two and those are added, in any order. Where the
whole of a sum fits, a norm is compared with its bound exactly. Elsewhere a group that is nearer to its bound than the
sum's error, far less than an ulp, is taken to lie on it: at most 4 ulp are taken off to make sure of the bound, without
epsilon, and its derivative is that of a compliant group. A result never leaves its ball.

Derivatives are those of the definition. They are ordinary floating-point code, so tangents that are subnormal are
flushed.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normball.backends.jax_narrow import as_stored, in_float64, united

# Up to this many entries a group is summed in one go; longer ones in blocks, whose sums are whole numbers and carry.
LONGEST = 4096
BLOCK = 1024
# Entries this much smaller than their group's largest count as this much smaller: their squares stay in range, and
# a sum is never less than the exact one, which matters where a norm is compared with its bound.
SMALLEST = {"float32": -60, "float64": -500}
_WORK = np.float64
_ROUNDOFF = 2.0**-53


class Wide(NamedTuple):
    """Largest entries or sums of powers: (high + low + rest) * 2**(exponent * ord), below the exact one by <= error."""

    high: jax.Array
    low: jax.Array
    rest: jax.Array
    error: jax.Array
    exponent: jax.Array


class _Format(NamedTuple):
    """How a float dtype is laid out."""

    fraction: int  # bits of fraction
    bias: int
    integer: type  # the integers of its width

    @property
    def infinity(self) -> int:
        return (2 * self.bias + 1) << self.fraction

    @property
    def digits(self) -> int:
        return (1 << self.fraction) - 1

    @property
    def half(self) -> int:
        """The bits of one half, but for its fraction."""
        return (self.bias - 1) << self.fraction

    @property
    def sign(self) -> int:
        return -(1 << (np.iinfo(self.integer).bits - 1))


_FORMATS = {
    "float64": _Format(52, 1023, np.int64),
    "float32": _Format(23, 127, np.int32),
    "float16": _Format(10, 15, np.int16),
    "bfloat16": _Format(7, 127, np.int16),
}


class _Plan(NamedTuple):
    """What becomes of each group, and what its derivative needs."""

    compliant: jax.Array  # or too close to its bound to tell
    ordinary: jax.Array  # neither compliant nor spoilt: a violator
    finite: jax.Array
    factor: jax.Array  # times 2**shift; inf keeps a group as it is, NaN spoils it
    shift: jax.Array  # whole numbers, but as floats
    exponent: jax.Array  # of the group's largest entry
    common: jax.Array  # exponent of norm + epsilon


def norms(xs: tuple, axes: tuple[int, ...] | None, ord: float, overs: tuple) -> jax.Array:
    """The norms in float64, reduced axes kept as 1; of all entries of all arrays where `axes` is None."""
    return constrained(xs, np.asarray(np.inf), np.asarray(0.0), axes, ord, overs)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
@in_float64
def constrained(
    xs: tuple, bound: jax.Array, epsilon: jax.Array, axes: tuple[int, ...] | None, ord: float, overs: tuple
) -> tuple:
    """The constrained arrays and their norms before. `axes` None: all entries of all arrays are one group.

    `overs`: the mesh axes that the groups of each array go on over.
    """
    summary, plan = _plan(xs, bound, epsilon, axes, ord, overs)
    return tuple(_rescale(x, plan) for x in xs), _norm_as_float(summary, ord)


@constrained.defjvp
@in_float64
def _constrained_jvp(axes: tuple[int, ...] | None, ord: float, overs: tuple, primals: tuple, tangents: tuple) -> tuple:
    """dy = s (dv - v/(n + epsilon) (dn + d epsilon)) + v/(n + epsilon) dc for violators, with s = c/(n + epsilon).

    In units of the group's largest entry, so that nothing overflows; differentiable itself.
    """
    xs, bound, epsilon = primals
    steps, bound_step, epsilon_step = tangents
    results = constrained(xs, bound, epsilon, axes, ord, overs)
    _, plan = _plan(lax.stop_gradient(xs), lax.stop_gradient(bound), lax.stop_gradient(epsilon), axes, ord, overs)
    steps = [step.astype(_WORK) for step in steps]
    bound, bound_step = bound.astype(_WORK), bound_step.astype(_WORK)
    epsilon, epsilon_step = epsilon.astype(_WORK), epsilon_step.astype(_WORK)
    scaled = [jnp.where(plan.finite, _scaled_value(x, plan), 0) for x in xs]

    def total(terms: list) -> jax.Array:
        return united([jnp.sum(term, axis=axes, keepdims=axes is not None) for term in terms], overs)

    if ord == 2:
        square = total([w * w for w in scaled])
        length = jnp.sqrt(jnp.where(square > 0, square, 1))
        direction = [w / length for w in scaled]
    else:
        direction = [jnp.sign(lax.stop_gradient(w)) for w in scaled]
        if ord == math.inf:
            top = [lax.stop_gradient(abs(w)) for w in scaled]
            peaks = [jnp.max(t, axis=axes, keepdims=axes is not None, initial=0) for t in top]
            peak = united(peaks, overs, ord)
            ties = total([jnp.where(t == peak, 1, 0).astype(_WORK) for t in top])
            share = 1 / jnp.maximum(ties, 1)
            direction = [jnp.where(t == peak, d * share, 0) for t, d in zip(top, direction, strict=True)]
        length = total([d * w for d, w in zip(direction, scaled, strict=True)])
    norm_step = total([d * step for d, step in zip(direction, steps, strict=True)])

    ratio = _power_of_two(plan.exponent - plan.common)
    safe_bound = jnp.where(plan.ordinary & (bound < jnp.inf), bound, 0)
    safe_epsilon = jnp.where(plan.ordinary & (epsilon < jnp.inf), epsilon, 0)
    denominator = length * ratio + _times_power(safe_epsilon, -plan.common)
    denominator = jnp.where(plan.ordinary & (denominator > 0), denominator, 1)
    shrink = jnp.where(epsilon < jnp.inf, _times_power(safe_bound, -plan.common) / denominator, 0)
    outer = jnp.where(plan.compliant, 1, jnp.where(plan.ordinary, shrink, jnp.nan))
    inner = jnp.where(plan.ordinary & (epsilon < jnp.inf), ratio / denominator, 0)
    pull = inner * shrink * (norm_step + epsilon_step)
    push = inner * bound_step
    moved = tuple(
        (outer * step + w * (push - pull)).astype(x.dtype) for step, w, x in zip(steps, scaled, xs, strict=True)
    )
    return results, (moved, norm_step)


@jax.custom_jvp
def _with_derivative_of(value: jax.Array, other: jax.Array) -> jax.Array:
    """The one's value with the other's derivative."""
    return value


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: tuple, tangents: tuple) -> tuple:
    return _with_derivative_of(*primals), tangents[1]


def _plan(
    xs: tuple, bound: jax.Array, epsilon: jax.Array, axes: tuple[int, ...] | None, ord: float, overs: tuple
) -> tuple[Wide, _Plan]:
    """The decision about every group, and the factor of those that violate."""
    parts = [_summarise(x, tuple(range(x.ndim)) if axes is None else axes, ord) for x in xs]
    if axes is None:
        parts = [Wide(*(part.reshape(()) for part in wide)) for wide in parts]
    summary = _united(parts, overs, ord)
    bound_size, bound_exponent = _mantissa(bound)
    bound_size = bound_size.astype(_WORK)
    epsilon_size, epsilon_exponent = _mantissa(epsilon)
    finite = jnp.isfinite(summary.high)
    valid = _is_bound(bound) & _is_bound(epsilon) & ~jnp.isnan(summary.high)
    unbounded = bound == jnp.inf
    excess, error = _excess(summary, bound_size, bound_exponent, ord)
    compliant = valid & ((finite & (excess + error <= 0)) | unbounded)
    # In doubt the group is as good as on its ball: only brought inside, whatever epsilon is.
    doubtful = valid & finite & ~compliant & (excess - error <= 0)
    ordinary = valid & finite & ~compliant

    first, second, _ = _norm_words(summary, ord)
    none = doubtful | (epsilon_exponent == _zero_exponent(epsilon))
    common = jnp.where(none, summary.exponent, jnp.maximum(summary.exponent, epsilon_exponent))
    ratio = _power_of_two(summary.exponent - common)
    addend = jnp.where(none, 0, epsilon_size.astype(_WORK) * _power_of_two(epsilon_exponent - common))
    start, error = _two_sum(first * ratio, addend)
    denominator = start + (error + second * ratio)
    coarse = _cut(start)
    fine = (start - coarse) + (error + second * ratio)
    # One division in two words. A cut quotient times a cut denominator is exact, however the compiler contracts it.
    quotient = _cut(bound_size / denominator)
    remainder = ((bound_size - quotient * coarse) - quotient * fine) / denominator
    # Float64 rounds the factor and the product to nearest; what is narrower is cut off, where less would do.
    doubt = summary.error / jnp.where(summary.high > 0, summary.high, 1)
    margin = 2.02 * _ROUNDOFF + (0.51 if ord == 2 else 1.01) * doubt
    factor = jnp.maximum(quotient + (remainder - margin * quotient), 0)
    # XLA on a CPU works out anew, for every entry, whatever of a group is cheaper than a division (measured: ten times
    # as long at 1000 x 1000). So what all entries need ends in one.
    unit = jnp.where(ordinary, 1, 0).astype(_WORK)
    factor = jnp.where(ordinary, factor, jnp.where(compliant, 1, 0)) / unit
    shift = (bound_exponent - common - jnp.where((epsilon == jnp.inf) & ~doubtful, 5000, 0)).astype(_WORK) / unit
    # A zero group has no scale of its own; one that overflows would make its second derivative NaN.
    exponent = jnp.where(summary.high > 0, summary.exponent, 0)
    return summary, _Plan(compliant | doubtful, ordinary & ~doubtful, finite, factor, shift, exponent, common)


def _excess(summary: Wide, bound: jax.Array, exponent: jax.Array, ord: float) -> tuple[jax.Array, jax.Array]:
    """How far the norms, squared for ord 2, lie above the bounds, and how wrong that may be; exact where close."""
    power = 2 if ord == 2 else 1
    unit = _power_of_two(power * jnp.clip(summary.exponent - exponent, -40, 2))
    high, low, rest, error = (word * unit for word in summary[:4])
    if power == 2:
        coarse = _cut(bound)
        fine = bound - coarse
        excess = ((((high - coarse * coarse) - 2 * coarse * fine) + low) - fine * fine) + rest
    else:
        excess = ((high - bound) + low) + rest
    return excess, 1.01 * error


def _rescale(x: jax.Array, plan: _Plan) -> jax.Array:
    """The groups as planned: their own bits, the product, or NaN."""
    layout = _FORMATS[x.dtype.name]
    bits = _bits(x)
    size, exponent = _mantissa(x)
    ordinary = jnp.isfinite(plan.factor)
    product = size.astype(plan.factor.dtype) * plan.factor
    shift = jnp.where(ordinary, plan.shift, 0).astype(np.int32)
    rescaled = _assemble(product, exponent + shift, x.dtype).astype(layout.integer)
    rescaled = rescaled | (bits & layout.integer(layout.sign))
    spoilt = layout.integer(layout.infinity | 1 << (layout.fraction - 1))
    chosen = jnp.where(ordinary, rescaled, jnp.where(jnp.isnan(plan.factor), spoilt, bits))
    return lax.bitcast_convert_type(chosen, x.dtype)


def _summarise(x: jax.Array, axes: tuple[int, ...], ord: float) -> Wide:
    """The exact words of a summary."""
    kept = _kept_shape(x.shape, axes)
    length = math.prod(x.shape[axis] for axis in axes)
    if x.size == 0:
        zero = jnp.zeros(kept, _WORK)
        return Wide(zero, zero, zero, zero, jnp.full(kept, -5000, np.int32))
    long = length > LONGEST and ord != math.inf
    inner, outer = axes, None
    if long:
        x, inner, outer = _in_blocks(x, axes, length), (2,), 1
    magnitude, logarithmic, layout, base = _logarithmic(x)
    peak = jnp.max(logarithmic, axis=inner if outer is None else (outer, *inner), keepdims=True)
    finite = peak < layout.infinity
    exponent = jnp.where(finite, (peak >> layout.fraction) - (layout.bias - 1), 0)
    offset = exponent << layout.fraction
    largest = lax.bitcast_convert_type(jnp.where(finite, peak - offset, peak), base).astype(_WORK)
    largest = jnp.where(peak >> layout.fraction > _zero_exponent_bits(layout), largest, 0)
    zero = jnp.zeros_like(largest)
    if ord == math.inf:
        high, low, rest, error = largest, zero, zero, zero
    else:
        tiny = (layout.bias + SMALLEST[base.name]) << layout.fraction
        scaled = lax.bitcast_convert_type(jnp.maximum(logarithmic, offset + tiny) - offset, base)
        scaled = jnp.where((magnitude == 0) | ~finite, 0, scaled)
        # Kept apart, or XLA on a CPU works out the maximum anew for every entry: 2 ms become 12 at 1000 x 1000.
        scaled = lax.optimization_barrier(scaled).astype(_WORK)
        narrow = x.dtype != _WORK
        parts, error, entries = _fixed_point(_powers(scaled, ord, narrow), scaled > 0, inner, outer, length, narrow)
        if ord == 2:
            # A lone entry has the norm it is: there no sum can be too long for its words.
            alone = entries <= 1
            coarse = _cut(largest)
            fine = largest - coarse
            squares = [coarse * coarse, 2 * coarse * fine, fine * fine, *([zero] * len(parts))]
            parts = [jnp.where(alone, square, part) for square, part in zip(squares, parts + [zero] * 3, strict=False)]
            error = jnp.where(alone, 0, error)
        high, low, rest, lost = _add_words(parts)
        error = error + lost
    wide = [jnp.where(finite, high, largest), *(jnp.where(finite, word, 0) for word in (low, rest, error))]
    return Wide(*(word.reshape(kept) for word in [*wide, exponent.astype(np.int32)]))


def _united(parts: Sequence[Wide], overs: Sequence[tuple[str, ...]], ord: float) -> Wide:
    """All parts merged, with those on other devices: one collective for each choice of mesh axes."""
    own: dict[tuple[str, ...], list[Wide]] = {}
    for part, over in zip(parts, overs, strict=True):
        own.setdefault(over, []).append(part)
    return _merge_all([_gathered(_merge_all(same, ord), over, ord) for over, same in own.items()], ord)


def _merge_all(summaries: Sequence[Wide], ord: float) -> Wide:
    return _merge(summaries, ord) if len(summaries) > 1 else summaries[0]


def _gathered(summary: Wide, over: tuple[str, ...], ord: float) -> Wide:
    """A summary merged with those of the devices along the mesh axes: by halves, in the same order on each.

    Every device adds its own to zeros: only of a sum does JAX know, in all its maps, that it is the same everywhere.
    """
    if not over:
        return summary
    own = _packed(summary)[:, None]
    mine = jnp.arange(math.prod(map(lax.axis_size, over))) == lax.axis_index(over)
    words = lax.psum(jnp.where(mine.reshape(-1, *[1] * summary.high.ndim), own, 0), over)
    while (count := words.shape[1]) > 1:
        half = count // 2
        merged = _merge([_unpacked(words[:, :half]), _unpacked(words[:, half : 2 * half])], ord)
        words = jnp.concatenate([_packed(merged), words[:, 2 * half :]], axis=1)
    return _unpacked(words[:, 0])


def _packed(summary: Wide) -> jax.Array:
    return jnp.stack([word.astype(np.float64) for word in summary])


def _unpacked(words: jax.Array) -> Wide:
    high, low, rest, error, exponent = words
    return Wide(high, low, rest, error, exponent.astype(np.int32))


def _merge(summaries: Sequence[Wide], ord: float) -> Wide:
    """The words of a merged summary."""
    exponent = functools.reduce(jnp.maximum, [part.exponent for part in summaries])
    spoilt = sum(jnp.where(jnp.isfinite(part.high), 0, part.high) for part in summaries)
    power = 2 if ord == 2 else 1
    parts, error = [], jnp.zeros_like(spoilt)
    for part in summaries:
        unit = _power_of_two(power * jnp.maximum(part.exponent - exponent, SMALLEST["float64"]))
        finite = jnp.isfinite(part.high)
        parts.append([jnp.where(finite, word * unit, 0) for word in part[:3]])
        error = error + jnp.where(finite, part.error * unit, 0)
    if ord == math.inf:
        high = functools.reduce(jnp.maximum, [part[0] for part in parts])
        low = rest = jnp.zeros_like(high)
    else:
        high, low, rest, lost = _add_words([part[word] for word in range(3) for part in parts])
        error = error + lost
    whole = jnp.isfinite(spoilt)
    words = [jnp.where(whole, high, spoilt), *(jnp.where(whole, word, 0) for word in (low, rest, error))]
    return Wide(*[*words, jnp.where(whole, exponent, 0)])


def _norm_words(summary: Wide, ord: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The norms in two words, the first cut short, and as one; times 2**exponent."""
    ordinary = (summary.high > 0) & jnp.isfinite(summary.high)
    high = jnp.where(ordinary, summary.high, 1)
    low, rest = (jnp.where(ordinary, word, 0) for word in (summary.low, summary.rest))
    if ord != 2:
        first = _cut(high)
        second = ((high - first) + low) + rest
    else:
        root = jnp.sqrt(high)
        first = _cut(root)
        second = (((high - first * first) + low) + rest) / (first + root)
    return first, second, jnp.where(ordinary, first + second, summary.high)


def _norm_as_float(summary: Wide, ord: float) -> jax.Array:
    """The norms as one float each; inf beyond the largest."""
    _, _, norms = _norm_words(summary, ord)
    ordinary = (norms > 0) & jnp.isfinite(norms)
    bits = _assemble(jnp.where(ordinary, norms, 1), summary.exponent, np.dtype(_WORK))
    return jnp.where(ordinary, lax.bitcast_convert_type(bits, _WORK), norms)


def _powers(scaled: jax.Array, ord: float, narrow: bool) -> list[jax.Array]:
    """Each entry, or the exact terms of its square, largest first."""
    if ord == 1:
        return [scaled]
    if narrow:
        return [scaled * scaled]
    coarse = _cut(scaled)
    fine = scaled - coarse
    return [coarse * coarse, 2 * coarse * fine, fine * fine]


def _fixed_point(
    terms: list[jax.Array], present: jax.Array, inner: tuple[int, ...], outer: int | None, length: int, narrow: bool
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The sum of terms in [0, 1] as exact parts, largest first; how far off it may be; how many are present.

    Whole multiples of 2**-first and of 2**-second add exactly; what is smaller adds in floating point.
    """
    count = length if outer is None else BLOCK
    # Whole numbers add up in float64 itself: it converts to integers one at a time on most processors.
    first = 52 - count.bit_length()

    def whole_and_rest(term: jax.Array, unit: int) -> tuple[jax.Array, jax.Array]:
        number = term * (2.0**unit)
        whole = jnp.floor(number)
        return whole, number - whole

    whole, rest = whole_and_rest(terms[0], first)
    limbs, units = [whole], [first]
    if not narrow:
        whole, rest = whole_and_rest(rest, 25)
        units.append(first + 25)
        if len(terms) == 3:
            other, other_rest = whole_and_rest(terms[1], units[-1])
            whole, rest = whole + other, (rest + other_rest) + terms[2] * (2.0 ** units[-1])
        limbs.append(whole)
    *limbs, rest, entries = _totals([*limbs, rest, present.astype(np.int32)], inner)
    limbs = [limb.astype(np.int64) for limb in limbs]
    slack = 1.01 * (count + 4) * _ROUNDOFF
    if outer is None:
        rest = rest * (2.0 ** -units[-1])
        return [*_as_parts(limbs, units), rest], slack * rest, entries
    # Blocks: what is left of each becomes a third limb, and what is left of that only counts as an error.
    last = 30
    number = rest * (2.0**last)
    whole = jnp.floor(number)
    uncertain = slack * number + 1.01 * (number - whole)
    units = [0, *units, units[-1] + last]
    limbs = _add_limbs([jnp.zeros_like(limbs[0]), *limbs, whole.astype(np.int64)], units, outer)
    # A tenth more, as this sum over blocks is rounded itself.
    error = 1.1 * jnp.sum(uncertain, axis=outer, keepdims=True) * (2.0 ** -units[-1])
    return _as_parts(limbs, units), error, jnp.sum(entries, axis=outer, keepdims=True, dtype=np.int32)


def _totals(terms: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Sums over the same axes in one pass: XLA on a CPU needs 3 to 40 times as long for separate ones."""
    kept = _kept_shape(terms[0].shape, axes)
    zeros = tuple(np.zeros((), term.dtype) for term in terms)
    totals = lax.reduce(tuple(terms), zeros, lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)), axes)
    return [total.reshape(kept) for total in totals]


def _add_limbs(limbs: list[jax.Array], units: list[int], axis: int) -> list[jax.Array]:
    """Sums over an axis of numbers written in limbs, each a whole multiple of 2**-unit, with carries."""

    def carry(limbs: list[jax.Array]) -> list[jax.Array]:
        limbs = list(limbs)
        for index in range(len(limbs) - 1, 0, -1):
            digits = units[index] - units[index - 1]
            limbs[index - 1] = limbs[index - 1] + (limbs[index] >> digits)
            limbs[index] = limbs[index] & ((1 << digits) - 1)
        return limbs

    chunk = 1 << (62 - max(b - a for a, b in itertools.pairwise(units)))
    limbs = carry(limbs)
    while limbs[0].shape[axis] > 1:
        size = min(chunk, limbs[0].shape[axis])
        limbs = carry([jnp.sum(_split_axis(limb, axis, size), axis=axis + 1, dtype=limb.dtype) for limb in limbs])
    return limbs


def _as_parts(limbs: list[jax.Array], units: list[int]) -> list[jax.Array]:
    """Whole multiples of 2**-unit as floats, two each, exactly."""
    parts = []
    for limb, unit in zip(limbs, units, strict=True):
        lower = limb & ((1 << 26) - 1)
        parts += [(limb - lower).astype(_WORK) * (2.0**-unit), lower.astype(_WORK) * (2.0**-unit)]
    return parts


def _add_words(parts: list[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The sum of parts in three words, and a bound of what was lost: zero where nothing was."""
    high = parts[0]
    low = rest = lost = jnp.zeros_like(high)
    for part in parts[1:]:
        high, error = _two_sum(high, part)
        low, error = _two_sum(low, error)
        rest, error = _two_sum(rest, error)
        lost = lost + abs(error)
    high, low = _two_sum(high, low)
    low, rest = _two_sum(low, rest)
    return high, low, rest, 2 * lost


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A + b and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _cut(x: jax.Array) -> jax.Array:
    """The upper half of the digits: the products of such numbers are exact."""
    layout = _FORMATS[x.dtype.name]
    keep = ~layout.integer((1 << (layout.fraction + 2) // 2) - 1)
    return lax.bitcast_convert_type(_bits(x) & keep, x.dtype)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, _FORMATS[x.dtype.name].integer)


def _logarithmic(x: jax.Array) -> tuple[jax.Array, jax.Array, _Format, np.dtype]:
    """Bits of |x|, in float32 if x is narrower; the same with subnormal numbers written as normal ones; the layout.

    The second form reads as an exponent, possibly negative, before a fraction, and orders as |x| does.
    """
    base = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    layout = _FORMATS[base.name]
    magnitude = _bits(as_stored(x).astype(base)) & layout.integer(layout.sign ^ -1)
    # A subnormal number is its digits times 2**(1 - bias - fraction).
    one = layout.integer((layout.bias + layout.fraction) << layout.fraction)
    digits = lax.bitcast_convert_type(magnitude | one, base) - 2.0**layout.fraction
    lifted = _bits(digits) - layout.integer((layout.bias + layout.fraction - 1) << layout.fraction)
    return magnitude, jnp.where(magnitude <= layout.digits, lifted, magnitude), layout, base


def _mantissa(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|x| as a mantissa in [1/2, 1) and an exponent; zero as one half and an exponent below all others."""
    _, logarithmic, layout, base = _logarithmic(x)
    size = lax.bitcast_convert_type((logarithmic & layout.digits) | layout.integer(layout.half), base)
    return size, ((logarithmic >> layout.fraction) - (layout.bias - 1)).astype(np.int32)


def _zero_exponent_bits(layout: _Format) -> int:
    return -(layout.bias + layout.fraction - 1)


def _zero_exponent(x: jax.Array) -> int:
    """The exponent that `_mantissa` gives a zero."""
    layout = _FORMATS["float64" if x.dtype == np.float64 else "float32"]
    return _zero_exponent_bits(layout) - (layout.bias - 1)


def _assemble(size: jax.Array, exponent: jax.Array, dtype: np.dtype) -> jax.Array:
    """Bits in dtype of size * 2**exponent, cut off towards zero, inf if too large; size: normal positive float64."""
    source, target = _FORMATS["float64"], _FORMATS[dtype.name]
    bits = _bits(size) >> (source.fraction - target.fraction)
    bits = bits - source.integer((source.bias - target.bias) << target.fraction)
    if target.integer != np.int64:
        bits = bits.astype(np.int32)
    exponent = jnp.clip(exponent, -2100 if target.integer == np.int64 else -200, None).astype(bits.dtype)
    field = (bits >> target.fraction) + exponent
    normal = bits + (exponent << target.fraction)
    digits = (bits & target.digits) | (1 << target.fraction)
    subnormal = digits >> jnp.clip(1 - field, 0, 31 if bits.dtype == np.int32 else 63)
    return jnp.where(field >= 2 * target.bias + 1, target.infinity, jnp.where(field >= 1, normal, subnormal))


def _scaled_value(x: jax.Array, plan: _Plan) -> jax.Array:
    """X in units of 2**exponent of its group: subnormal numbers too, with a derivative."""
    size, exponent = _mantissa(lax.stop_gradient(x))
    exact = size.astype(_WORK) * _power_of_two(exponent - plan.exponent)
    exact = jnp.where(_bits(x) < 0, -exact, exact)
    exact = jnp.where(exponent > _zero_exponent(x), exact, 0)
    return _with_derivative_of(exact, _times_power(x.astype(_WORK), -plan.exponent))


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2**exponent in float64, kept within the normal range."""
    field = jnp.clip(exponent, -1022, 1023).astype(np.int64) + 1023
    return lax.bitcast_convert_type(field << 52, _WORK)


def _times_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """X * 2**exponent in two steps, each within range if the result is."""
    half = exponent >> 1
    return (x * _power_of_two(half)) * _power_of_two(exponent - half)


def _is_bound(value: jax.Array) -> jax.Array:
    """Whether it is >= 0 and not NaN, without reading subnormal numbers as zero."""
    layout = _FORMATS[value.dtype.name]
    bits = _bits(value)
    return ((bits >= 0) & (bits <= layout.integer(layout.infinity))) | (bits == layout.integer(layout.sign))


def _in_blocks(x: jax.Array, axes: tuple[int, ...], length: int) -> jax.Array:
    """X as (before, blocks, BLOCK, after), padded with zeros: no copy where the axes lie together."""
    together = axes == tuple(range(axes[0], axes[-1] + 1))
    if not together:
        x = jnp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
        axes = tuple(range(x.ndim - len(axes), x.ndim))
    before = math.prod(x.shape[: axes[0]])
    return _split_axis(x.reshape(before, length, -1), 1, BLOCK)


def _split_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
    """One axis as two, the second of length `size`, padded with zeros."""
    length = x.shape[axis]
    pieces = -(-length // size)
    padding = [(0, pieces * size - length if index == axis else 0) for index in range(x.ndim)]
    if pieces * size != length:
        x = jnp.pad(x, padding)
    return x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :])


def _kept_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
