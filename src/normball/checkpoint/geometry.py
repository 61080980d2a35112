"""The geometry of a picture of norms: from norms to places, and from a histogram to bars. Knows no format."""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from normball.checkpoint.report import Report, Row, number, totals
from normball.checkpoint.statistics import Statistics

WITHIN, OVER = "#0072b2", "#d55e00"  # told apart whatever colours the reader sees (Okabe and Ito)
_SEEN = 0.004  # of the width
_WIDEST = 1e6  # norms that are this many times smaller than the largest are drawn at the edge


class Scale(NamedTuple):
    """From norms to places between 0 and 1: logarithmic where they differ much."""

    low: float
    high: float
    logarithmic: bool

    def __call__(self, norm: float) -> float:
        if self.logarithmic:
            norm = max(norm, self.low)
            return math.log(norm / self.low) / math.log(self.high / self.low)
        return min(max((norm - self.low) / (self.high - self.low), 0.0), 1.0)

    def width(self, low: float, high: float) -> float:
        """How wide a bin is, whole; one at zero counts as if it could be seen."""
        if self.logarithmic:
            return max(self(high) - self(low), _SEEN)
        return max((high - low) / (self.high - self.low), _SEEN)

    def ticks(self) -> list[float]:
        """Round norms within."""
        if self.logarithmic:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) < 3 else (1,)
            every = [step * 10.0**decade for decade in [decades.start - 1, *decades] for step in steps]
            ticks = [tick for tick in every if self.low <= tick <= self.high]
            return ticks[:: max(1, len(ticks) // 6)]
        step = 10.0 ** math.floor(math.log10(self.high))
        round_steps = (step * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2))
        step = next((step for step in round_steps if step and self.high / step <= 7), self.high)
        return [step * place for place in range(math.floor(self.high / step) + 1)]


def scale_of(rows: Sequence[Row]) -> Scale:
    """What holds all norms and limits that are drawn."""
    limits = [row.choice.limit for row in rows if row.choice.limit is not None and math.isfinite(row.choice.limit)]
    largest = [value for row in rows if math.isfinite(value := row.statistics.maximum)]
    high = max([*limits, *largest, 0.0]) or 1.0
    bins = [
        max(Statistics.edges(place)[0], row.statistics.minimum) for row in rows for place in row.statistics.histogram
    ]
    low = min(norm for norm in (*bins, *limits, high) if norm > high / _WIDEST)
    if high / low > 20:
        return Scale(low / 1.1, min(high * 1.1, sys.float_info.max), True)
    return Scale(0.0, min(high * 1.05, sys.float_info.max), False)


class Bar(NamedTuple):
    """A part of a row's distribution: its norms, how high it is drawn (1 at most), and on which side."""

    low: float
    high: float
    height: float
    over: bool


def bars(row: Row, scale: Scale) -> list[Bar]:
    """A row's histogram, cut at its limit and at its extremes.

    Heights are roots of how dense the norms are, so that a few among many are seen.
    """
    found, limit = row.statistics, math.inf if row.choice.limit is None else row.choice.limit
    densities = {place: count / scale.width(*Statistics.edges(place)) for place, count in found.histogram.items()}
    densest = max(densities.values(), default=1.0)
    parts = []
    for place, density in sorted(densities.items()):
        low, high = Statistics.edges(place)
        low, high, height = max(low, found.minimum), min(high, found.maximum), max(0.2, math.sqrt(density / densest))
        if low <= limit < high:
            parts += [Bar(low, limit, height, False), Bar(limit, high, height, True)]
        else:
            parts.append(Bar(low, high, height, low > limit))
    return parts


def subtitle(report: Report) -> str:
    """The sums, in a line."""
    total = totals(report)
    text = f"{total['tensors']:,} tensors, {total['groups']:,} groups"
    if any(row.choice.limit is not None for row in report.rows):
        text += f", {total['over']:,} over their limit"
    return text + (f", {total['nonfinite']:,} not finite" if total["nonfinite"] else "")


def verdict(row: Row) -> str:
    """What a row's end says."""
    found, limit = row.statistics, row.choice.limit
    text = f"max {number(found.maximum, limit if found.over else None)}"
    text += f", {found.over:,} of {found.groups:,} over" if found.over else ""
    return text + (f", {found.nonfinite:,} not finite" if found.nonfinite else "")
