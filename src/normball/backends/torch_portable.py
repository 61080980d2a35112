"""The constraint in plain PyTorch operations: for devices whose memory our kernels cannot read, and for sharded groups.

Nothing here waits for a device. Norms and factors are kept in float64; those of float64 tensors in two words, an
unevaluated sum high + low, so that a result is as good there. A norm within `_BAND` of its bound counts as above it:
such a group loses up to 2 ulp although it may have complied. No result leaves its ball, and none changes again.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A float64 sum of n exact squares, as PyTorch forms it, errs by less than 2**-46 of itself; the band is wider than
# that, and the factor shorter by more than both, so that a second call finds every result below the band.
_BAND = 2.0**-44
_NARROW_MARGIN = 2.0**-42
# For products that are rounded to the nearest float32, not towards zero.
_NEAREST_MARGIN = 2.0**-24 + 2.0**-30
# Two words err by 2**-100 or so. Two roundings follow them, the factor's and the product's, of 2**-53 each.
_WIDE_BAND = 2.0**-90
_WIDE_MARGIN = 2.01 * 2.0**-53

_INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


class Norms(NamedTuple):
    """(high + low) * 2**exponent for each group, reduced axes kept as 1: no norm of finite entries overflows."""

    high: Tensor
    low: Tensor
    exponent: Tensor

    def value(self) -> Tensor:
        """The norms as float64."""
        return _scaled(self.high, self.exponent)


def norms(x: Tensor, axes: Sequence[int], ord: float) -> Norms:
    """The norm of each group of x along the axes."""
    if x.dtype != torch.float64:
        high = _narrow_norm(x, axes, ord)
        return Norms(high, torch.zeros_like(high), torch.zeros_like(high, dtype=torch.int64))
    rows = _rows(x, axes)
    largest = rows.abs().amax(-1, keepdim=True) if rows.shape[-1] else rows.new_zeros((*rows.shape[:-1], 1))
    exponent = torch.where(torch.isfinite(largest), torch.frexp(largest).exponent, 0).to(torch.int64)
    high, low = _wide_norm(_scaled(rows, -exponent), ord)
    kept = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    return Norms(high.reshape(kept), low.reshape(kept), exponent.reshape(kept))


def merged(parts: Sequence[Norms], ord: float) -> Norms:
    """The norms of groups whose parts lie in several tensors, on the device of the first."""
    device = parts[0].high.device
    words = (torch.broadcast_tensors(*(word.to(device) for word in words)) for words in zip(*parts, strict=True))
    return merged_last(Norms(*(torch.stack(word, -1) for word in words)), ord)


def merged_last(norms: Norms, ord: float) -> Norms:
    """The norms of the norms along the last axis."""
    high, low, exponent = norms
    common = torch.where(high > 0, exponent, exponent.min()).amax(-1, keepdim=True)
    high, low = _scaled(high, exponent - common), _scaled(low, exponent - common)
    if ord == math.inf:
        return Norms(high.amax(-1), torch.zeros_like(high[..., 0]), common[..., 0])
    if ord == 1:
        return Norms(*_folded(high, low), common[..., 0])
    square, rest = _product(high, high)
    return Norms(*_root(*_folded(square, rest + 2 * high * low)), common[..., 0])


def rescaled(x: Tensor, norms: Norms, max_norm: Tensor, epsilon: Tensor) -> Tensor:
    """X where its groups' norms are within max_norm, else onto the ball; the exact norm of what comes out is within."""
    wide = x.dtype == torch.float64
    bound, small = max_norm.to(torch.float64), epsilon.to(torch.float64)
    high, low, exponent = norms
    own = _scaled(bound, -exponent)  # the bound in the norm's unit, for comparing; 0 or inf decide as well
    band = (_WIDE_BAND if wide else _BAND) * high
    complies = ((high - own) + low < -band) | (high == 0) | (bound == math.inf)
    lift = torch.zeros_like(bound, dtype=torch.int64)
    if wide:  # the factor's error is not seen where its parts are subnormal or overflow
        lift = torch.where(bound < 2.0**-900, 600, torch.where((bound > 2.0**900) & (bound < math.inf), -600, 0))
    factor = _factor(
        _scaled(bound, lift), high, low, _scaled(small, -exponent), _WIDE_MARGIN if wide else _NARROW_MARGIN
    )
    product = _scaled(x.to(torch.float64), -exponent) * factor
    result = torch.where(complies, x, _lowered(product, lift) if wide else _truncated(product, x.dtype))
    spoilt = torch.isnan(high) | (torch.isinf(high) & (bound != math.inf)) | ~(bound >= 0) | ~(small >= 0)
    return torch.where(spoilt, math.nan, result)


def rescale_(x: Tensor, norms: Norms, max_norm: Tensor, epsilon: Tensor) -> None:
    """`rescaled`, written over x; of float32 in a single step, without a copy of x."""
    # A bound in the memory of the host is looked at without waiting. Above 2**-100 the margin outweighs what 2**40
    # results that are rounded to subnormals may add; squares of these are all that lies between it and 2**-24.
    if x.dtype != torch.float32 or max_norm.device.type != "cpu" or not max_norm >= 2.0**-100:
        x.copy_(rescaled(x, norms, max_norm, epsilon))
        return
    high, _, exponent = norms
    own = _scaled(max_norm, -exponent)
    factor = _factor(own, high, norms.low, _scaled(epsilon, -exponent), _NEAREST_MARGIN)
    factor = torch.where((high - own < -_BAND * high) | (high == 0) | (max_norm == math.inf), 1.0, factor)
    spoilt = torch.isnan(high) | (torch.isinf(high) & (max_norm != math.inf)) | ~(epsilon >= 0)
    factor = torch.where(spoilt, math.nan, factor)
    if type(x) is Tensor and x.is_cpu and not factor.ndim:  # a float64 product takes 40 times as long there
        short = _truncated(factor, torch.float32)
        if short >= torch.finfo(torch.float32).tiny:
            x.mul_(short)
            return
    # A float64 factor with a dimension makes the product one of float64, rounded to float32 once.
    x.unsqueeze(0).mul_(factor.reshape(1, *factor.shape) if factor.ndim else factor.reshape([1] * (x.ndim + 1)))


def _narrow_norm(x: Tensor, axes: Sequence[int], ord: float) -> Tensor:
    """Squares of float32 and narrower are exact in float64, and out of reach of its limits."""
    if not axes:
        return x.abs().to(torch.float64)
    if x.numel() == 0:
        return x.new_zeros([1 if axis in axes else n for axis, n in enumerate(x.shape)], dtype=torch.float64)
    return torch.linalg.vector_norm(x, ord, tuple(axes), keepdim=True, dtype=torch.float64)


def _rows(x: Tensor, axes: Sequence[int]) -> Tensor:
    """X with its groups along the last axis."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    length = math.prod([x.shape[axis] for axis in axes])  # a list, for torch.compile
    return x.permute(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), length)


def _wide_norm(rows: Tensor, ord: float) -> tuple[Tensor, Tensor]:
    """The norms along the last axis, in two words, of entries that are at most 1."""
    if rows.shape[-1] == 0:
        return rows.new_zeros(rows.shape[:-1]), rows.new_zeros(rows.shape[:-1])
    if ord == math.inf:
        return rows.abs().amax(-1), rows.new_zeros(rows.shape[:-1])
    if ord == 1:
        return _folded(rows.abs(), torch.zeros_like(rows))
    return _root(*_folded(*_product(rows, rows)))


def _factor(bound: Tensor, high: Tensor, low: Tensor, epsilon: Tensor, margin: float) -> Tensor:
    """bound / (high + low + epsilon) * (1 - margin), rounded once."""
    sum_high, sum_low = _sum(high, epsilon)
    sum_low = sum_low + low
    quotient = bound / sum_high
    product, error = _product(quotient, sum_high)
    rest = ((bound - product) - error - quotient * sum_low) / sum_high - margin * quotient
    # Where the corrections are out of range the quotient is 0, inf or NaN, and right as it is.
    return torch.where(torch.isfinite(rest), quotient + rest, quotient)


def _truncated(product: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values as a narrower dtype, rounded towards zero."""
    nearest = product.to(dtype)
    beyond = nearest.to(torch.float64).abs() > product.abs()
    integers = nearest.view(_INTEGERS[dtype])
    return (integers - beyond.to(integers.dtype)).view(dtype)  # one towards zero, whatever the sign


def _lowered(product: Tensor, lift: Tensor) -> Tensor:
    """The product times 2**-lift; rounded towards zero where that makes it subnormal."""
    result = _scaled(product, -lift)
    beyond = _scaled(result, lift).abs() > product.abs()
    return (result.view(torch.int64) - beyond.to(torch.int64)).view(torch.float64)


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """X * 2**exponent, in two steps, for a power of two may be out of range where the result is not."""
    half = exponent.clamp(-2000, 2000) // 2
    return x * _power(half) * _power(exponent.clamp(-2000, 2000) - half)


def _power(exponent: Tensor) -> Tensor:
    """2.0**exponent, for exponents from -1022 to 1023."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A + b and its rounding error (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A * b and its rounding error (Dekker)."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    """A as two numbers of 26 bits."""
    far = a * 134217729.0
    high = far - (far - a)
    return high, a - high


def _folded(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two-word terms along the last axis, halving it again and again."""
    plain = high.sum(-1)
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        parts = [half, half, high.shape[-1] - 2 * half]
        (left, right, rest), (left_low, right_low, rest_low) = high.split(parts, -1), low.split(parts, -1)
        total, error = _sum(left, right)
        high = torch.cat([total, rest], -1)
        low = torch.cat([left_low + right_low + error, rest_low], -1)
    total, error = _sum(high[..., 0], low[..., 0])
    finite = torch.isfinite(plain)
    return torch.where(finite, total, plain), torch.where(finite, error, 0)


def _root(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of high + low, in two words."""
    root = torch.sqrt(high)
    square, error = _product(root, root)
    correction = ((high - square) - error + low) / (2 * root)
    return _sum(root, torch.where((root > 0) & torch.isfinite(root), correction, 0))
