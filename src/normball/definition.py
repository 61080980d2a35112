"""What the right answer is, in exact arithmetic: the same functions as every backend, about one group of numbers.

Slow and plain on purpose. Every test compares with this file; a newcomer starts reading here. A group is a list of
rational numbers (`fractions.Fraction`), so a float stands for exactly the number it stores.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

# Every float64 is a multiple of 2**-1074, so a norm rounded up to a multiple of 2**-GRID compares with any float64
# as the exact norm does, and is good to GRID - 1074 bits even where it is smallest.
GRID = 1400


def summarise(x: Sequence, ord: float = 2) -> Fraction:
    """One group's sum of powers: sum |v|, sum v**2, or the largest |v|."""
    if ord == math.inf:
        return max((abs(Fraction(v)) for v in x), default=Fraction(0))
    return _sum([abs(Fraction(v)) ** int(ord) for v in x])


def merge(summaries: Sequence[Fraction], ord: float = 2) -> Fraction:
    """The summary of a group from those of its parts."""
    if ord == math.inf:
        return max(summaries, default=Fraction(0))
    return _sum(list(summaries))


def norm(summary: Fraction, ord: float = 2) -> Fraction:
    """The norm of a summary: exact, or for an irrational root rounded up to a multiple of 2**-GRID."""
    if ord != 2:
        return summary
    scaled = summary * 4**GRID
    floor = scaled.numerator // scaled.denominator
    root = math.isqrt(floor)
    return Fraction(root if root * root == scaled else root + 1, 2**GRID)


def constrain(x: Sequence, max_norm: float, epsilon: float = 1e-7, ord: float = 2) -> list[Fraction]:
    """One group inside its ball of radius `max_norm`."""
    return _rescale(x, norm(summarise(x, ord), ord), max_norm, epsilon)


def constrain_total(
    xs: Sequence[Sequence], max_norm: float, epsilon: float = 1e-7, ord: float = 2
) -> tuple[list[list[Fraction]], Fraction]:
    """Several lists as one group, and its norm before rescaling."""
    total = norm(merge([summarise(x, ord) for x in xs], ord), ord)
    return [_rescale(x, total, max_norm, epsilon) for x in xs], total


def _rescale(x: Sequence, norm: Fraction, max_norm: float, epsilon: float = 1e-7) -> list[Fraction]:
    """The group as it is where norm <= max_norm; else times max_norm / (norm + epsilon)."""
    if max_norm == math.inf or norm <= Fraction(max_norm):
        return [Fraction(v) for v in x]
    factor = Fraction(0) if epsilon == math.inf else Fraction(max_norm) / (norm + Fraction(epsilon))
    return [Fraction(v) * factor for v in x]


def _sum(terms: list[Fraction]) -> Fraction:
    """Exact sum over one common denominator: the terms' own are powers of two, so this keeps integers small."""
    denominator = math.lcm(*(term.denominator for term in terms)) if terms else 1
    return Fraction(sum(term.numerator * (denominator // term.denominator) for term in terms), denominator)
