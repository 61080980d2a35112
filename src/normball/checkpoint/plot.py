"""The distributions of a model's norms as a picture: a row for each tensor, in the model's order.

A PNG by matplotlib, or one HTML file that fetches nothing: a table to sort, a small drawing in each row.
"""

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.report import Report, Row, number, shorten, totals
from normball.checkpoint.statistics import Statistics

WITHIN, OVER = "#0072b2", "#d55e00"  # told apart whatever colours the reader sees (Okabe and Ito)
_DRAWN = 400  # rows of a PNG; the worst of more
_NAME = 46  # characters of a name beside its row
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

    def ticks(self) -> list[float]:
        """Round norms within."""
        if self.logarithmic:
            decades = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) < 3 else (1,)
            every = [step * 10.0**decade for decade in [decades.start - 1, *decades] for step in steps]
            ticks = [tick for tick in every if self.low <= tick <= self.high]
            return ticks[:: max(1, len(ticks) // 6)]
        step = 10.0 ** math.floor(math.log10(self.high))
        step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if self.high / (step * part) <= 7)
        return [step * place for place in range(math.floor(self.high / step) + 1)]


def scale_of(rows: Sequence[Row]) -> Scale:
    """What holds all norms and limits that are drawn."""
    limits = [row.choice.limit for row in rows if row.choice.limit is not None and math.isfinite(row.choice.limit)]
    largest = [value for row in rows if math.isfinite(value := row.statistics.maximum)]
    high = max([*limits, *largest, 0.0]) or 1.0
    lows = [bar.low for row in rows for bar in bars(row) if bar.low > high / _WIDEST]
    low = min([*lows, *(limit for limit in limits if limit > 0), high])
    if high / low > 20:
        return Scale(low / 1.1, high * 1.1, True)
    return Scale(0.0, high * 1.05, False)


class Bar(NamedTuple):
    """A part of a row's distribution: norms from `low` to `high`, how high it is drawn (1 at most), and on which side."""

    low: float
    high: float
    height: float
    over: bool


def bars(row: Row) -> list[Bar]:
    """A row's histogram, cut at its limit and at its extremes. Roots, so that a few norms among many are seen."""
    found, limit = row.statistics, math.inf if row.choice.limit is None else row.choice.limit
    densest = max(found.histogram.values(), default=1)
    parts = []
    for place, count in sorted(found.histogram.items()):
        low, high = Statistics.edges(place)
        low, high, height = max(low, found.minimum), min(high, found.maximum), max(0.2, math.sqrt(count / densest))
        if low <= limit < high:
            parts += [Bar(low, limit, height, False), Bar(limit, high, height, True)]
        else:
            parts.append(Bar(low, high, height, low > limit))
    return parts


def draw(report: Report, path: Path, title: str) -> None:
    """Write the picture; the ending says which kind."""
    if path.suffix == ".html":
        content = page(report, title).encode("utf-8", "replace")
    else:
        content = picture(report, title)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{printable(str(path))}: can't be written, {error.strerror}") from None


def read_path(text: str) -> Path:
    """Where to draw, refused before anything is read."""
    path = Path(text)
    if path.suffix not in (".png", ".html"):
        raise CheckpointError(f"--plot {printable(text)}: must end in .png or .html")
    if not path.parent.is_dir():
        raise CheckpointError(f"--plot {printable(text)}: there is no folder {printable(str(path.parent))}")
    if path.suffix == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            remedy = "pip install 'normball[cli]', or draw a .html"
            raise CheckpointError(f"--plot {printable(text)}: needs matplotlib; {remedy}") from None
    return path


def _drawn(report: Report) -> list[Row]:
    """The rows of a PNG, in the model's order."""
    worst = {id(row) for row in report.worst_first[:_DRAWN]}
    return [row for row in report.rows if id(row) in worst]


def _subtitle(report: Report) -> str:
    total = totals(report)
    text = f"{total['tensors']:,} tensors, {total['groups']:,} groups"
    if any(row.choice.limit is not None for row in report.rows):
        text += f", {total['over']:,} over their limit"
    return text + (f", {total['nonfinite']:,} not finite" if total["nonfinite"] else "")


def _verdict(row: Row) -> str:
    """What a row's end says."""
    found, limit = row.statistics, row.choice.limit
    text = f"max {number(found.maximum, limit if found.over else None)}"
    text += f", {found.over:,} of {found.groups:,} over" if found.over else ""
    return text + (f", {found.nonfinite:,} not finite" if found.nonfinite else "")


def picture(report: Report, title: str) -> bytes:
    """The PNG."""
    import io
    import warnings

    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.figure import Figure

    rows = _drawn(report)
    scale = scale_of(rows)
    pitch = 0.26 if len(rows) <= 60 else 0.17  # inches a row
    width, top, bottom = 14.0, 0.85, 0.65
    height = top + bottom + pitch * max(len(rows), 2)
    size = 9 if len(rows) <= 60 else 7.5
    figure = Figure(figsize=(width, height), dpi=100)
    panel = figure.add_axes((0.28, bottom / height, 0.52, 1 - (top + bottom) / height))
    panel.set_xlim(0, 1)
    panel.set_ylim(max(len(rows), 2) - 0.5, -0.5)
    for over, colour in ((False, WITHIN), (True, OVER)):
        shapes = []
        for place, row in enumerate(rows):
            for bar in bars(row):
                if bar.over == over:
                    left, right, half = scale(bar.low), max(scale(bar.high), scale(bar.low) + 0.003), 0.42 * bar.height
                    shapes.append([(left, place - half), (right, place - half), (right, place + half), (left, place + half)])
        panel.add_collection(PolyCollection(shapes, facecolors=colour, edgecolors="none"))
    marks = [(place, row) for place, row in enumerate(rows) if math.isfinite(row.statistics.median)]
    panel.plot([scale(row.statistics.median) for _, row in marks], [place for place, _ in marks], "o", color="white", markeredgecolor="black", markeredgewidth=0.6, markersize=3.5)
    limits = [(place, scale(row.choice.limit)) for place, row in enumerate(rows) if row.choice.limit is not None and math.isfinite(row.choice.limit)]
    panel.add_collection(LineCollection([[(x, place - 0.5), (x, place + 0.5)] for place, x in limits], colors="black", linewidths=1.2))
    panel.hlines([place + 0.5 for place in range(len(rows) - 1)], 0, 1, color="0.92", linewidth=0.5, zorder=0)
    common = dict(parse_math=False, fontsize=size, va="center")
    for place, row in enumerate(rows):
        bad = bool(row.statistics.over or row.statistics.nonfinite)
        colour = OVER if bad else "black"
        panel.text(-0.012, place, shorten(printable(row.tensor.name), _NAME), ha="right", color=colour, **common)
        panel.text(1.012, place, _verdict(row), ha="left", color=colour, **common)
    panel.set_xticks([scale(tick) for tick in scale.ticks()], [f"{tick:g}" for tick in scale.ticks()])
    panel.tick_params(axis="x", top=True, labeltop=len(rows) > 30)
    panel.set_yticks([])
    panel.spines[["left", "right"]].set_visible(False)
    panel.set_xlabel("norm of a group" + (" (logarithmic)" if scale.logarithmic else "") + "; ○ median, | limit")
    left_out = len(report.rows) - len(rows)
    subtitle = _subtitle(report) + (f"; the {len(rows)} worst are drawn" if left_out else "")
    figure.text(0.02, 1 - 0.28 / height, printable(title), fontsize=13, va="center", parse_math=False)
    figure.text(0.02, 1 - 0.55 / height, subtitle, fontsize=10, va="center", color=OVER if report.violations else "0.35")
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters in names that its font has not
        figure.savefig(out, format="png")
    return out.getvalue()


_STYLE = f"""
:root {{ color-scheme: light dark; --within: {WITHIN}; --over: {OVER}; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
h1 {{ font-size: 1.2rem; margin: 0; }} p {{ margin: .3rem 0 1rem; }} .bad {{ color: var(--over); font-weight: 600; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ position: sticky; top: 0; background: Canvas; text-align: left; cursor: pointer; white-space: nowrap; vertical-align: bottom; }}
th, td {{ padding: .15rem .5rem; border-bottom: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }}
td.n {{ text-align: right; }} td.name {{ font-family: ui-monospace, monospace; overflow-wrap: anywhere; }}
th[aria-sort=ascending]::after {{ content: " \\25B2"; }} th[aria-sort=descending]::after {{ content: " \\25BC"; }}
svg {{ display: block; }} svg text {{ font-size: 10px; fill: CanvasText; }}
.w {{ fill: var(--within); }} .o {{ fill: var(--over); }} .l {{ stroke: CanvasText; stroke-width: 1.5; }}
.m {{ fill: Canvas; stroke: CanvasText; }} summary {{ cursor: pointer; }}
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  const sort = () => {
    const body = document.querySelector("tbody"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending" && head.dataset.kind === "n"
      || head.getAttribute("aria-sort") === "ascending";
    for (const other of document.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const compare = head.dataset.kind === "n" ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
    body.append(...[...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_WIDTH, _HEIGHT = 360, 22  # pixels of a row's drawing


def page(report: Report, title: str) -> str:
    """The HTML: one file that fetches nothing."""
    scale = scale_of(report.rows)
    heads = [("order", "n"), ("name", "t"), (None, "n"), *(_CELLS_HEAD)]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><title>{_text(title)}</title><style>{_STYLE}</style></head><body>
</body></html>
"""
