"""The constraint in operations that every library of the Array API standard has, as of 2022.12.

`xp` is the library's namespace. Sums and factors are kept in float64. Where x is float64, or the norms are what the
caller asked for, a sum has two words, an unevaluated high + low. No order of summation is relied on in the plain ones:
their error bound grows with the length. A group whose norm may be above its bound counts as above.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_ROUNDOFF = 2.0**-53
# Halving 2**40 terms rounds the low words 40 times, each by 40 roundoffs of a roundoff at most.
_WIDE_ERROR = 2.0**-92
# The factor and the product are rounded once each; what is left of the hundredth covers the norm's error in two words.
_MARGIN = 2.01 * _ROUNDOFF

# Digits, and the smallest number, of the dtypes that are narrower than float64.
_FORMATS = {"float32": (24, 2.0**-149), "float16": (11, 2.0**-24), "bfloat16": (8, 2.0**-133)}


class Norms(NamedTuple):
    """(high + low) * 2**exponent for each group, relatively wrong by at most `error`; reduced axes kept as 1."""

    high: Any
    low: Any
    exponent: Any
    error: Any


def namespace(x: Any) -> Any:
    """The standard's functions for x: array-api-compat's where it is installed, which mends what differs."""
    try:
        from array_api_compat import array_namespace
    except ImportError:
        return x.__array_namespace__()
    return array_namespace(x)


def quiet() -> Any:
    """No warnings from libraries on top of NumPy: numbers out of range are dealt with."""
    return np.errstate(all="ignore")


def dtype_name(x: Any) -> str:
    """The name of x's dtype, as NumPy spells it."""
    return getattr(x.dtype, "name", str(x.dtype)).rpartition(".")[2]


def as_float64(value: Any, x: Any, xp: Any = None) -> Any:
    """X itself, or a bound, as a float64 array of x's library, where x is."""
    reason = wide = None
    xp = namespace(x) if xp is None else xp
    try:
        if hasattr(value, "__array_namespace__") and not isinstance(value, (np.ndarray, np.generic)):
            wide = xp.astype(value, xp.float64)
        else:
            where = {"device": x.device} if hasattr(x, "device") else {}
            wide = xp.asarray(value, dtype=xp.float64, **where)
    except (AttributeError, TypeError, ValueError) as error:
        reason = error
    if wide is None or dtype_name(wide) != "float64":  # some libraries give float32 instead
        library = type(x).__module__.partition(".")[0]
        raise TypeError(
            f"arrays of {library} have no float64 here, which sums are kept in: turn it on, choose a device that has "
            "it (in MLX the CPU), or pass NumPy's"
        ) from reason
    return wide


def norms(xp: Any, x: Any, axes: Sequence[int], ord: float, wide: bool) -> Norms:
    """The norm of each group of x along the axes, by a sum in two words or a plain one."""
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    rows = _rows(xp, as_float64(x, x, xp), axes)
    length = rows.shape[-1]
    if not length:  # an empty group has the norm of a zero
        rows = xp.reshape(xp.zeros_like(xp.sum(rows, axis=-1)), (*rows.shape[:-1], 1))
    if not wide:  # squares of float32 and narrower are exact in float64, and out of reach of its limits
        high = _plain_norm(xp, rows, ord)
        low = exponent = xp.zeros_like(high)
        error = xp.full_like(high, (length + 4) * _ROUNDOFF)
    else:
        unit = _exponent(xp, xp.max(xp.abs(rows), axis=-1, keepdims=True))
        high, low = _wide_norm(xp, _scaled(xp, rows, -unit), ord)
        exponent, error = unit[..., 0], xp.full_like(high, _WIDE_ERROR)
    return Norms(*(xp.reshape(word, kept) for word in (high, low, exponent, error)))


def merged(xp: Any, norms: Norms, axes: Sequence[int], ord: float) -> Norms:
    """The norms of the norms along the axes."""
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(norms.high.shape))
    high, low, exponent, error = (_rows(xp, word, axes) for word in norms)
    least = xp.full_like(exponent, -4000.0)
    common = xp.max(xp.where(high > 0, exponent, least), axis=-1, keepdims=True)
    common = xp.where(common > -4000, common, xp.zeros_like(common))
    high, low = _scaled(xp, high, exponent - common), _scaled(xp, low, exponent - common)
    if ord == math.inf:
        high, low = xp.max(high, axis=-1), xp.zeros_like(high[..., 0])
    elif ord == 1:
        high, low = _folded(xp, high, low)
    else:
        square, rest = _product(high, high)
        high, low = _root(xp, *_folded(xp, square, rest + 2 * high * low))
    words = (high, low, common[..., 0], xp.max(error, axis=-1) + _WIDE_ERROR)
    return Norms(*(xp.reshape(word, kept) for word in words))


def value(xp: Any, norms: Norms) -> Any:
    """The norms as float64; inf beyond the largest."""
    return _scaled(xp, norms.high, norms.exponent)


def rescaled(xp: Any, x: Any, norms: Norms, max_norm: Any, epsilon: Any) -> Any:
    """X where its groups' norms are within max_norm, else onto the ball; the exact norm of what comes out is within.

    With d the error of the norms, complying means a norm of at most c / (1 + 2 d), so an exact norm of at most c. The
    factor is shorter by 4 d and the roundings: a second call, which errs by d again, finds every result compliant.
    """
    if not x.ndim:  # operations on 0-d arrays give NumPy's scalars, which are no arrays
        return xp.reshape(rescaled(xp, xp.reshape(x, (1,)), norms, max_norm, epsilon), ())
    high, low, exponent, error = norms
    own = _scaled(xp, max_norm, -exponent)  # the bound in the norm's unit, for comparing; 0 or inf decide as well
    free = xp.isinf(max_norm) & (max_norm > 0)
    complies = ((high - own) + low < -2 * error * high) | free
    spoilt = xp.isnan(high) | (xp.isinf(high) & ~free) | ~(max_norm >= 0) | ~(epsilon >= 0)
    complies = complies & ~spoilt
    factor, shift = _factor(xp, norms, max_norm, epsilon)
    one = xp.ones_like(factor)
    factor = xp.where(spoilt, one * math.nan, factor)
    if dtype_name(x) == "float64":
        result = _wide_product(xp, x, factor, shift, xp.where(max_norm < 2.0**-900, one, 0 * one))
    else:  # a factor below float64's range makes every result vanish in this dtype
        result = _narrow_product(xp, x, xp.where(complies, one, _scaled(xp, factor, shift)))
    return xp.where(complies | ((x == 0) & ~spoilt), x, result)  # zeros with their signs


def _wide_product(xp: Any, x: Any, factor: Any, shift: Any, tiny: Any) -> Any:
    """X * factor * 2**shift in float64.

    Results that become subnormal are rounded by up to half of the smallest number, whatever their size. Where the bound
    is `tiny`, 1 rather than 0, no margin covers that; there they are formed larger, and rounded towards zero.
    """
    product = _scaled(xp, x, shift + 600 * tiny) * factor
    lift = 1 + (2.0**600 - 1) * tiny
    result = product / lift
    size = xp.abs(result)
    less = result * ((size - 2.0**-1074) / size)  # with the sign of zeros
    return xp.where(size * lift > xp.abs(product), less, result)


def _narrow_product(xp: Any, x: Any, factor: Any) -> Any:
    """X * factor in x's dtype, which is narrower than float64; up to two ulp below it, and never above.

    Rounded to the nearest it gains at most 2**-digits of itself, which is taken off the factor; or half of the smallest
    number, which is taken off where the result is subnormal. What is left of (1 - 2**-digits) (1 + 2**-digits) covers
    libraries that convert to bfloat16 by way of float32, and so round twice.
    """
    digits, smallest = _FORMATS[dtype_name(x)]
    size = xp.abs(xp.astype(x, xp.float64)) * (factor * (1 - 2.0**-digits))
    # Less than half of it becomes a negative number that rounds to zero, hence the second abs.
    size = xp.where(size < smallest * 2.0 ** (digits - 1), xp.abs(size - smallest / 2), size)
    result = xp.astype(size, x.dtype)
    return xp.where(x < 0, -result, result)


def _rows(xp: Any, x: Any, axes: Sequence[int]) -> Any:
    """X with its groups along the last axis."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    length = math.prod(x.shape[axis] for axis in axes)
    return xp.reshape(xp.permute_dims(x, (*kept, *axes)), (*(x.shape[axis] for axis in kept), length))


def _plain_norm(xp: Any, rows: Any, ord: float) -> Any:
    """The norms along the last axis."""
    if ord == math.inf:
        return xp.max(xp.abs(rows), axis=-1)
    return xp.sum(xp.abs(rows), axis=-1) if ord == 1 else xp.sqrt(xp.sum(rows * rows, axis=-1))


def _wide_norm(xp: Any, rows: Any, ord: float) -> tuple[Any, Any]:
    """The norms along the last axis, in two words, of entries that are at most 2."""
    if ord == math.inf:
        return xp.max(xp.abs(rows), axis=-1), xp.zeros_like(rows[..., 0])
    if ord == 1:
        return _folded(xp, xp.abs(rows), xp.zeros_like(rows))
    return _root(xp, *_folded(xp, *_product(rows, rows)))


def _factor(xp: Any, norms: Norms, max_norm: Any, epsilon: Any) -> tuple[Any, Any]:
    """max_norm / (norm + epsilon), less the margin, as a number from 1 to 2 and the exponent of a power of two.

    Rounded once. In units of their own neither the bound nor the sum, nor an entry times the power, leaves the range.
    """
    high, low, exponent, error = norms
    own, unit = _exponent(xp, max_norm), _exponent(xp, epsilon)
    unit = xp.where((epsilon > 0) & (unit > exponent), unit, exponent)
    high, low = _scaled(xp, high, exponent - unit), _scaled(xp, low, exponent - unit)
    bound, epsilon = _scaled(xp, max_norm, -own), _scaled(xp, epsilon, -unit)
    sum_high, sum_low = _sum(high, epsilon)
    sum_low = sum_low + low
    quotient = bound / sum_high
    product, rounding = _product(quotient, sum_high)
    margin = 4 * error + _MARGIN
    rest = ((bound - product) - rounding - quotient * sum_low) / sum_high - margin * quotient
    # Where epsilon is inf, or the group is zero, the quotient is right as it is.
    factor = xp.where(xp.isfinite(rest), quotient + rest, quotient)
    last = _exponent(xp, factor)
    shift = xp.where(factor > 0, own - unit + last, xp.full_like(last, -2000.0))
    return _scaled(xp, factor, -last), shift


def _exponent(xp: Any, size: Any) -> Any:
    """A whole number k for each size: it is at most 2 * 2**k, and not much less. 0 for zero, inf and NaN."""
    ordinary = xp.isfinite(size) & (size > 0)
    return xp.floor(xp.log2(xp.where(ordinary, size, xp.ones_like(size))))


def _scaled(xp: Any, x: Any, exponent: Any) -> Any:
    """X * 2**exponent, to 2000 either way, in two steps: a power may be out of range where the result is not."""
    far = xp.full_like(exponent, 2000.0)
    exponent = xp.where(exponent > far, far, xp.where(exponent < -far, -far, exponent))
    half = xp.floor(exponent / 2)
    return x * _power(xp, half) * _power(xp, exponent - half)


def _power(xp: Any, exponent: Any) -> Any:
    """2.0**exponent for whole numbers from -1000 to 1000: exact, where a library's power need not be."""
    power = xp.pow(xp.full_like(exponent, 2.0), exponent)
    far = power * 1048577.0  # rounds it to 33 bits
    return far - (far - power)


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    """A + b and its rounding error (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """A * b and its rounding error (Dekker)."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Any) -> tuple[Any, Any]:
    """A as two numbers of 26 bits."""
    far = a * 134217729.0
    high = far - (far - a)
    return high, a - high


def _folded(xp: Any, high: Any, low: Any) -> tuple[Any, Any]:
    """The sum of two-word terms along the last axis, halving it again and again."""
    plain = xp.sum(high, axis=-1)
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        total, error = _sum(high[..., :half], high[..., half : 2 * half])
        rest = low[..., :half] + low[..., half : 2 * half] + error
        high = xp.concat([total, high[..., 2 * half :]], axis=-1)
        low = xp.concat([rest, low[..., 2 * half :]], axis=-1)
    total, error = _sum(high[..., 0], low[..., 0])
    finite = xp.isfinite(plain)
    return xp.where(finite, total, plain), xp.where(finite, error, xp.zeros_like(error))


def _root(xp: Any, high: Any, low: Any) -> tuple[Any, Any]:
    """The square root of high + low, in two words."""
    root = xp.sqrt(high)
    square, error = _product(root, root)
    correction = ((high - square) - error + low) / (2 * root)
    return _sum(root, xp.where((root > 0) & xp.isfinite(root), correction, xp.zeros_like(root)))
