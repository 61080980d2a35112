"""The distributions of norms as a PNG, by matplotlib: a row for each tensor, at a glance."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from normball.checkpoint.errors import printable
from normball.checkpoint.geometry import OVER, WITHIN, Scale, bars, scale_of, subtitle, verdict
from normball.checkpoint.report import Report, Row, shorten

_DRAWN = 400  # rows; the worst of more
_NAME = 46  # characters of a name beside its row
_FEW, _MANY = 13, 60  # rows, which are set wider, and closer
_TOP, _BOTTOM, _WIDTH = 0.85, 0.65, 14.0  # inches around the rows, and across


def picture(report: Report, title: str) -> bytes:
    """The file's content."""
    rows = _drawn(report)
    pitch, places = 0.4 if len(rows) < _FEW else 0.26 if len(rows) <= _MANY else 0.17, max(len(rows), 2)  # inches a row
    height = _TOP + _BOTTOM + pitch * places
    figure = Figure(figsize=(_WIDTH, height), dpi=100)
    panel = figure.add_axes((0.28, _BOTTOM / height, 0.5, 1 - (_TOP + _BOTTOM) / height))
    panel.set_xlim(0, 1)
    panel.set_ylim(places - 0.5, -0.5)
    scale = scale_of(rows)
    _distributions(panel, rows, scale)
    _texts(panel, rows, 9 if len(rows) <= _MANY else 7.5)
    panel.set_xticks([scale(tick) for tick in scale.ticks()], [f"{tick:g}" for tick in scale.ticks()])
    panel.tick_params(axis="x", top=True, labeltop=len(rows) > _MANY)
    panel.set_yticks([])
    panel.spines[["left", "right"]].set_visible(False)
    panel.set_xlabel(f"norm of a group{' (logarithmic)' * scale.logarithmic};  \u25cb median,  | limit")
    more = f"; the {len(rows)} worst are drawn" if len(report.rows) > len(rows) else ""
    figure.text(0.02, 1 - 0.25 / height, printable(title), fontsize=13, va="center", parse_math=False)
    colour = OVER if report.violations else "0.35"
    figure.text(0.02, 1 - 0.52 / height, subtitle(report) + more, fontsize=10, va="center", color=colour)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters in names that the font has not
        figure.savefig(out, format="png")
    return out.getvalue()


def _drawn(report: Report) -> list[Row]:
    """In the model's order."""
    worst = {id(row) for row in report.worst_first[:_DRAWN]}
    return [row for row in report.rows if id(row) in worst]


def _distributions(panel: Axes, rows: Sequence[Row], scale: Scale) -> None:
    """Each row's histogram around its middle, a line at its limit, a dot at its median."""
    shapes: dict[bool, list] = {False: [], True: []}
    limits, medians = [], []
    for place, row in enumerate(rows):
        for bar in bars(row, scale):
            left, half = scale(bar.low), 0.42 * bar.height
            right, low, high = max(scale(bar.high), left + 0.003), place - half, place + half
            shapes[bar.over].append([(left, low), (right, low), (right, high), (left, high)])
        if row.choice.limit is not None and math.isfinite(row.choice.limit):
            limits.append([(scale(row.choice.limit), place - 0.5), (scale(row.choice.limit), place + 0.5)])
        if math.isfinite(row.statistics.median):
            medians.append((scale(row.statistics.median), place))
    panel.hlines([place + 0.5 for place in range(len(rows) - 1)], 0, 1, color="0.92", linewidth=0.5, zorder=0)
    for over, colour in ((False, WITHIN), (True, OVER)):
        panel.add_collection(PolyCollection(shapes[over], facecolors=colour, edgecolors="none"))
    panel.add_collection(LineCollection(limits, colors="black", linewidths=1.4, zorder=3))
    dots: dict[str, Any] = {
        "color": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
        "markersize": 3.5,
        "zorder": 4,
    }
    panel.plot(*zip(*medians, strict=True) if medians else ([], []), "o", **dots)


def _texts(panel: Axes, rows: Sequence[Row], size: float) -> None:
    """Names on the left, what was found on the right."""
    names = shorten([printable(row.tensor.name) for row in rows], _NAME)
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        bad = row.statistics.over or row.statistics.nonfinite
        style: dict[str, Any] = {
            "parse_math": False,
            "fontsize": size,
            "va": "center",
            "color": OVER if bad else "black",
        }
        panel.text(-0.012, place, name, ha="right", **style)
        panel.text(1.012, place, verdict(row), ha="left", **style)
