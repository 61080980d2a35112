"""The distributions of norms as one HTML file that fetches nothing: a table to sort, a drawing in each row."""

import html
import math

from normball.checkpoint.errors import printable
from normball.checkpoint.geometry import OVER, WITHIN, Scale, bars, scale_of, subtitle
from normball.checkpoint.report import Column, Report, Row, some, useful

_STYLE = f"""
:root {{ color-scheme: light dark; --within: {WITHIN}; --over: {OVER}; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
h1 {{ font-size: 1.2rem; margin: 0; }} p {{ margin: .3rem 0 1rem; }} .bad {{ color: var(--over); font-weight: 600; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ position: sticky; top: 0; background: Canvas; text-align: left; cursor: pointer;
  vertical-align: bottom; }}
th, td {{ padding: .15rem .5rem; border-bottom: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }}
th, td {{ white-space: nowrap; }} td.n {{ text-align: right; }} td.name {{ font-family: ui-monospace, monospace; }}
th[aria-sort=ascending]::after {{ content: " \\25B2"; }} th[aria-sort=descending]::after {{ content: " \\25BC"; }}
svg {{ display: block; }} rect {{ shape-rendering: crispEdges; }} svg text {{ font-size: 10px; fill: CanvasText; }}
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
_WIDTH, _HEIGHT = 320, 22  # pixels of a row's drawing


def page(report: Report, title: str) -> str:
    """The file's content."""
    scale = scale_of(report.rows)
    columns = sorted(useful(report.rows), key=lambda column: column.value is None)  # numbers beside the drawing
    heads = [_head("no.", True, ""), _head("name", False, ""), _head("norms", True, _axis(scale))]
    heads += [_head(column.title, column.value is not None, "") for column in columns]
    body = "\n".join(_row(place, row, columns, scale) for place, row in enumerate(report.rows))
    left_out = "".join(
        f"<p>left out, {_text(reason)}: {_text(some(names))}</p>" for reason, names in report.left_out.items()
    )
    notes = "".join(f"<p>note: {_text(some(names))}: {_text(doubt)}</p>" for doubt, names in report.doubts.items())
    assumed = f"<p>layout: {_text(report.assumed)}</p>" if report.assumed else ""
    kind = " class=bad" if report.violations else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><title>{_text(title)}</title><style>{_STYLE}</style></head><body>
<h1>{_text(title)}</h1><p{kind}>{_text(subtitle(report))}</p>
<table><thead><tr>{"".join(heads)}</tr></thead><tbody>
{body}
</tbody></table>
<p>Line: limit. Dot: median. Heights are square roots of how many groups have such norms.
<span class=bad>Over the limit.</span> A click on a heading sorts.</p>{assumed}{notes}{left_out}
<script>{_SCRIPT}</script></body></html>
"""


def _text(text: str) -> str:
    """Any text, inert."""
    return html.escape(printable(text))


def _head(title: str, numeric: bool, inside: str) -> str:
    kind = "n" if numeric else "t"
    return f'<th scope="col" tabindex="0" data-kind="{kind}">{_text(title)}{inside}</th>'


def _row(place: int, row: Row, columns: list[Column], scale: Scale) -> str:
    found = row.statistics
    cells = [_cell(str(place + 1), place, "n"), _cell(row.tensor.name, row.tensor.name, "name")]
    cells.append(f'<td data-value="{_key(found.maximum)}">{_drawing(row, scale)}</td>')
    bad = {"max": found.over, "over": found.over, "non-finite": found.nonfinite}
    for column in columns:
        text = column.text(row)
        kind = "n" * (column.value is not None) + " bad" * bool(bad.get(column.title))
        cells.append(_cell(text, column.value(row) if column.value else text, kind))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, value: str | float, kind: str) -> str:
    key = _text(value) if isinstance(value, str) else _key(value)
    return f'<td class="{kind}" data-value="{key}">{_text(text)}</td>'


def _key(value: float) -> str:
    """What a script sorts by: a number, the smallest for what is none."""
    return "-1" if math.isnan(value) else "1e999" if value == math.inf else repr(value)


def _drawing(row: Row, scale: Scale) -> str:
    """A row's histogram, growing from its middle."""
    parts = []
    for bar in bars(row, scale):
        left, height = scale(bar.low) * _WIDTH, bar.height * (_HEIGHT - 2)
        width = max(scale(bar.high) * _WIDTH - left, 1.5)
        kind, top = "o" if bar.over else "w", (_HEIGHT - height) / 2
        parts.append(f'<rect class={kind} x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
    limit, median = row.choice.limit, row.statistics.median
    if limit is not None and math.isfinite(limit):
        x = scale(limit) * _WIDTH
        parts.append(f'<line class=l x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>')
    if math.isfinite(median):
        parts.append(f'<circle class=m cx="{scale(median) * _WIDTH:.1f}" cy="{_HEIGHT / 2}" r="2.5"/>')
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="distribution">{"".join(parts)}</svg>'


def _axis(scale: Scale) -> str:
    """The ticks, in the heading."""
    ticks = "".join(
        f'<text x="{scale(tick) * _WIDTH:.1f}" y="11" text-anchor="middle">{tick:g}</text>'
        f'<line class=l x1="{scale(tick) * _WIDTH:.1f}" x2="{scale(tick) * _WIDTH:.1f}" y1="14" y2="18"/>'
        for tick in scale.ticks()
    )
    return f'<svg width="{_WIDTH}" height="18" overflow="visible">{ticks}</svg>'
