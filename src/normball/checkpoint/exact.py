"""Sums of squares without any rounding, many groups at a time: what decides where float64 can't, and what verifies.

An entry is m * 2**e with an integer m below 2**53. The digits of its square, of 27 bits, are added up by exponent, in
float64, which is exact for up to 2**26 of them; Python's integers put them together.
"""

from fractions import Fraction

import numpy as np

SCALE = 1130  # an entry times 2**SCALE is an integer, subnormal ones too
BLOCK = 2**22  # entries, or counters, looked at in one go
DIGIT = 27  # bits
MASK = 2**DIGIT - 1


def sums_of_squares(rows: np.ndarray) -> list[int]:
    """Of each row of finite numbers, the exact sum of squares times 4**SCALE."""
    total = [0] * len(rows)
    step = max(1, BLOCK // max(rows.shape[1], 1))
    for start in range(0, len(rows), step):
        for begin in range(0, rows.shape[1], BLOCK):
            block = rows[start : start + step, begin : begin + BLOCK]
            for index, part in enumerate(_block(block.astype(np.float64)), start):
                total[index] += part
    return total


def exceeds(sum_of_squares: int, limit: float) -> bool:
    """Whether the norm, as the root of such a sum, is above the limit."""
    square = Fraction(limit) ** 2 * 4**SCALE
    return sum_of_squares > square


def exceed(rows: np.ndarray, limit: float) -> np.ndarray:
    """Whether each row's norm is above the limit: by float64 where its error bound allows, else by integers."""
    with np.errstate(all="ignore"):
        wide = rows.astype(np.float64)
        sums = np.einsum("ij,ij->i", wide, wide)
    result, doubtful = compare(sums, rows.shape[1], limit)
    chosen = np.flatnonzero(doubtful)
    for index, total in zip(chosen, sums_of_squares(rows[chosen]), strict=True):
        result[index] = exceeds(total, limit)
    return result


def compare(sums: np.ndarray, terms: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether float64 sums of squares are above the limit's, and which of them are too close to tell.

    A float64 sum of N terms errs by less than (N + 2) units of 2**-53 of itself, whatever their order.
    """
    with np.errstate(all="ignore"):
        square = np.float64(limit) * np.float64(limit)
        in_range = (sums > 2.0**-900) & (sums < 2.0**900) & (2.0**-900 < square < 2.0**900)
        clear = in_range & (np.abs(sums - square) > (terms + 4) * 2.0**-53 * (sums + square))
    return sums > square, ~clear


def _block(rows: np.ndarray) -> list[int]:
    mantissa, exponent = np.frexp(rows)
    exponent -= 53
    integers = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
    lowest = int(exponent.min(initial=0))
    span = int(exponent.max(initial=0)) - lowest + 1
    high, low = integers >> DIGIT, integers & MASK
    middle = 2 * high * low
    digits = (high * high + (middle >> DIGIT), middle & MASK, low * low)  # times 2**54, 2**27, 1; each below 2**54
    result = [0] * len(rows)
    groups = max(1, BLOCK // span)
    for start in range(0, len(rows), groups):
        chosen = slice(start, start + groups)
        count = len(rows[chosen])
        keys = (np.arange(count)[:, None] * span + (exponent[chosen] - lowest)).reshape(-1)
        for shift, digit in zip((2 * DIGIT, DIGIT, 0), digits, strict=True):
            for place, part in ((DIGIT, digit[chosen] >> DIGIT), (0, digit[chosen] & MASK)):
                if not part.any():  # as of short mantissas
                    continue
                counted = np.bincount(keys, part.reshape(-1), count * span).reshape(count, span)
                for row, column in zip(*np.nonzero(counted), strict=True):
                    power = 2 * (int(column) + lowest + SCALE) + shift + place
                    result[start + int(row)] += int(counted[row, column]) << power
    return result
