"""The constraint of float32, float16 and bfloat16 arrays of JAX, by plain sums in float64.

In float64 the squares of such entries are exact and out of reach of its limits, so one sum is enough, and where a
group lies on several devices, one collective. 64-bit mode is turned on for this thread while these few lines are
traced, and the dtypes of what goes in and comes out do not depend on it.

A float64 sum of n terms, in whatever order, errs by less than n 2**-53 of itself: a norm that is this close to its
bound counts as above it. Results are rounded towards zero, by a factor that is shorter than it need be by more than
that, so that none leaves its ball, and none changes again.

XLA on a CPU reads subnormal numbers as zero and flushes subnormal results. So entries and results are taken apart and
put together as integers. The sum need not: XLA sums 10 times as fast what it has not to take apart, and what it drops
matters only to norms below 2**-90. So it depends on the bound. Derivatives are plain arithmetic, which flushes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normball.backends import jax_rows as rows

_F64 = np.float64
_SMALL = 2.0**-90  # to a norm above this, 2**53 subnormal numbers make no difference that float64 could tell
# Fraction bits, exponent bias, the integers of the same width.
_LAYOUTS: dict[str, tuple[int, int, Any]] = {
    "float32": (23, 127, np.int32),
    "float16": (10, 15, np.int16),
    "bfloat16": (7, 127, np.int16),
}


def in_float64(function: Callable) -> Callable:
    """The function, traced in 64-bit mode, which no other thread sees."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.enable_x64(True):
            return function(*args)

    return traced


def as_stored(x: jax.Array) -> jax.Array:
    """Entries of bfloat16 as they will be stored, which XLA must not see through; others as they are.

    XLA computes in float32 what has the dtype bfloat16, and does not always round in between: an x converted could have
    bits that are not there any more when it is stored, and a norm under the bound when what is stored has one above it.
    To read it by its bits would do, too, and takes three times as long.
    """
    return lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x


def is_small(bound: np.ndarray) -> bool:
    """Whether subnormal entries may matter to the comparison with it."""
    return bool((bound < _SMALL).any())


def united(parts: Sequence[jax.Array], overs: Sequence[tuple[str, ...]], ord: float = 1) -> jax.Array:
    """The sum of all parts, or for order inf the largest, on this device and along the mesh axes that each lies over.

    One collective for each choice of mesh axes: what shares one is added up before it is sent.
    """
    add, send = (jnp.maximum, lax.pmax) if ord == np.inf else (jnp.add, lax.psum)
    own: dict[tuple[str, ...], jax.Array] = {}
    for part, over in zip(parts, overs, strict=True):
        own[over] = add(own[over], part) if over in own else part
    return functools.reduce(add, [send(part, over) if over else part for over, part in own.items()])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
@in_float64
def norms(
    xs: tuple, bound: jax.Array, axes: tuple[int, ...] | None, ord: float, small: bool | None, overs: tuple
) -> jax.Array:
    """The norms in float64, reduced axes kept as 1; of all entries of all arrays where `axes` is None.

    `small`: whether subnormal entries matter; None where only the bound's value will tell.
    `overs`: the mesh axes that the groups of each array go on over.
    """
    parts = [_total(x, bound, tuple(range(x.ndim)) if axes is None else axes, ord, small) for x in xs]
    if axes is None:
        parts = [part.reshape(()) for part in parts]
    whole = united(parts, overs, ord)
    return jnp.sqrt(whole) if ord == 2 else whole


@norms.defjvp
@in_float64
def _norms_jvp(
    axes: tuple[int, ...] | None, ord: float, small: bool | None, overs: tuple, primals: tuple, tangents: tuple
) -> tuple:
    """dn = u dv, with u = v / n for order 2; zero at zero."""
    xs, bound = primals
    norm = norms(xs, bound, axes, ord, small, overs)

    def rate(xs: tuple, norm: jax.Array, steps: tuple) -> jax.Array:
        def total(terms: Sequence[jax.Array]) -> jax.Array:
            return united([jnp.sum(t, axis=axes, keepdims=axes is not None) for t in terms], overs)

        ordinary = jnp.isfinite(norm) & (norm > 0)
        units = [_over(_finite(x), jnp.where(ordinary, norm, 1), ordinary) for x in xs]
        if ord != 2:
            units = [jnp.sign(lax.stop_gradient(u)) for u in units]
            if ord == np.inf:
                tops = [_size(x) == norm for x in xs]  # such norms are exact
                ties = total([jnp.where(top, 1.0, 0.0) for top in tops])
                units = [jnp.where(top, u / jnp.maximum(ties, 1), 0) for top, u in zip(tops, units, strict=True)]
        return total([(u * step.astype(np.float32)).astype(_F64) for u, step in zip(units, steps, strict=True)])

    return norm, _remade(rate)(xs, norm, tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
@in_float64
def rescaled(x: jax.Array, norm: jax.Array, bound: jax.Array, epsilon: jax.Array, length: int) -> jax.Array:
    """X where its groups' norms, of `length` entries each, are within the bound; else onto the ball."""
    fraction, bias, integer = _LAYOUTS[x.dtype.name]
    band = _band(length)
    c, e = _signed(bound), _signed(epsilon)
    complies = (norm <= c * (1 - band)) | (norm == 0) | (c == np.inf)
    spoilt = jnp.isnan(norm) | (jnp.isinf(norm) & (c != np.inf)) | ~(c >= 0) | ~(e >= 0)
    factor = jnp.where(complies | spoilt, 1, c / (norm + e) * (1 - 3 * band - 2.0**-50))
    nan = jnp.where(spoilt, ((2 * bias + 1) << fraction) | (1 << (fraction - 1)), 0).astype(integer)
    # Kept apart, or XLA on a CPU works these out anew for every entry.
    factor, nan = lax.optimization_barrier((factor, nan))
    bits = lax.bitcast_convert_type(x, integer)
    product = _size(x) * factor
    upper = lax.shift_right_logical(lax.bitcast_convert_type(product, np.int64), np.int64(52 - fraction))
    normal = upper - ((1023 - bias) << fraction)
    subnormal = (product * 2.0 ** (bias - 1 + fraction)).astype(np.int32)
    size = jnp.where(product < 2.0 ** (1 - bias), subnormal, normal.astype(np.int32)).astype(integer)
    result = jnp.where(factor < 1, size | (bits & np.iinfo(integer).min), bits) | nan
    return lax.bitcast_convert_type(result, x.dtype)


@rescaled.defjvp
@in_float64
def _rescaled_jvp(length: int, primals: tuple, tangents: tuple) -> tuple:
    """dy = s dv + v/(n + epsilon) (dc - s (dn + d epsilon)) for violators, with s = c/(n + epsilon)."""

    def rate(x: jax.Array, norm: jax.Array, bound: jax.Array, epsilon: jax.Array, steps: tuple) -> jax.Array:
        step, *others = steps
        norm_step, bound_step, epsilon_step = (other.astype(_F64) for other in others)
        c, e = bound.astype(_F64), epsilon.astype(_F64)
        spoilt = jnp.isnan(norm) | (jnp.isinf(norm) & (c != np.inf)) | ~(c >= 0) | ~(e >= 0)
        # In doubt a group counts as compliant here: at ties, too, the derivative is the identity.
        violates = (norm > c * (1 + _band(length))) & ~spoilt
        below = jnp.where(violates, norm + e, 1)
        shrink = jnp.where(violates, c, 0) / below
        outer = jnp.where(spoilt, np.nan, jnp.where(violates, shrink, 1)).astype(np.float32)
        push = jnp.where(violates, (bound_step - shrink * (norm_step + epsilon_step)) / below, 0)
        # Transposed, the second term is a sum of plain products in float64.
        pushed = rows.spread(lambda x, push: (_finite(x).astype(_F64) * push).astype(np.float32), x, push)
        return (outer * step.astype(np.float32) + pushed).astype(x.dtype)

    return rescaled(*primals, length), _remade(rate)(*primals, tangents)


def _band(length: int) -> float:
    """How far off a norm of so many entries may be, relative to itself, with some to spare; one entry's is exact."""
    return (length + 8) * 2.0**-53 if length > 1 else 0.0


def _remade(function: Callable) -> Callable:
    """A derivative keeps x and what there is one of for each group, but nothing else of the size of x."""
    return jax.checkpoint(function, prevent_cse=False)


def _total(x: jax.Array, bound: jax.Array, axes: tuple[int, ...], ord: float, small: bool | None) -> jax.Array:
    """Sums of squares or of sizes, or largest entries."""
    if ord == np.inf:
        size = jnp.max(_float32_bits(x), axis=axes, keepdims=True, initial=0) if axes else _float32_bits(x)
        return _size_of_bits(size)

    def power(size: jax.Array) -> jax.Array:
        return size * size if ord == 2 else abs(size)

    def exact(x: jax.Array) -> jax.Array:
        return rows.summed(lambda x: power(_size(x)), x, axes)

    def plain(x: jax.Array) -> jax.Array:
        return rows.summed(lambda x: power(x.astype(_F64)), as_stored(x), axes)

    if x.dtype == np.float16:
        return plain(x)
    if small is None and jax.device_count() > 1:  # XLA merges what many arrays send, but not out of branches
        return exact(x)
    if small is None:
        return lax.cond(jnp.any(_signed(bound) < _SMALL), exact, plain, x)
    return exact(x) if small else plain(x)


def _size(x: jax.Array) -> jax.Array:
    """|x| in float64, of subnormal numbers too."""
    return _size_of_bits(_float32_bits(x))


def _float32_bits(x: jax.Array) -> jax.Array:
    """The bits of |x| as a float32."""
    return lax.bitcast_convert_type(as_stored(x).astype(np.float32), np.int32) & 0x7FFFFFFF


def _size_of_bits(bits: jax.Array) -> jax.Array:
    subnormal = bits.astype(_F64) * 2.0**-149
    return jnp.where(bits < 1 << 23, subnormal, lax.bitcast_convert_type(bits, np.float32).astype(_F64))


def _signed(bound: jax.Array) -> jax.Array:
    """A bound in float64. Of a float64 bound that is subnormal nothing is left in any narrower dtype."""
    bound = jnp.asarray(bound)
    if bound.dtype == _F64:
        return bound
    negative = lax.bitcast_convert_type(bound.astype(np.float32), np.int32) < 0
    return jnp.where(negative, -_size(bound), _size(bound))


def _finite(x: jax.Array) -> jax.Array:
    """X with its largest numbers for inf, so that zero times it is zero; NaN stays."""
    largest = jnp.finfo(x.dtype).max
    return lax.max(lax.min(x, jnp.asarray(largest, x.dtype)), jnp.asarray(-largest, x.dtype))


def _over(x: jax.Array, norm: jax.Array, wanted: jax.Array) -> jax.Array:
    """X / norm in float32, zero where not wanted; in two steps, each within range."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(norm), np.int64)
    exponent = jnp.clip((bits >> 52) - 1023, -120, 120)
    power = lax.bitcast_convert_type((1023 - exponent) << 52, _F64)
    rest = jnp.where(wanted, 1 / (norm * power), 0)
    return (x.astype(np.float32) * power.astype(np.float32)) * rest.astype(np.float32)
