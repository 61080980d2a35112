"""What a check has found: for people as a table, for programs as JSON and CSV."""

import csv
import io
import json
import math
import shutil
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

from normball.checkpoint.errors import printable
from normball.checkpoint.rules import Choice
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.tensors import Tensor
from normball.table import Table

_NARROWEST = 24  # what names are shortened to before a column is left out
_GAP = 2  # between columns
_CUTS = 4000  # of names, tried in search of those that tell them apart
_NAMES = 6  # names of what is left out for one reason


@dataclass(frozen=True)
class Row:
    """One tensor and its norms."""

    tensor: Tensor
    choice: Choice
    statistics: Statistics

    @property
    def badness(self) -> tuple[bool, float, float]:
        """What sorts the worst first: norms that are no numbers, then the largest norm in multiples of its limit."""
        limit, maximum = self.choice.limit, self.statistics.maximum
        largest = -1.0 if math.isnan(maximum) else maximum
        if limit is None or limit == math.inf:
            return bool(self.statistics.nonfinite), 0.0, largest
        relative = largest / limit if limit else math.inf if self.statistics.over else 0.0
        return bool(self.statistics.nonfinite), relative, largest


@dataclass
class Report:
    """What a check has found."""

    rows: list[Row] = field(default_factory=list)  # in the model's order
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    assumed: str = ""  # what was assumed of the layout

    def add(self, tensor: Tensor, choice: Choice, statistics: Statistics | None) -> None:
        """One more tensor; without statistics one that was left alone."""
        if statistics is not None:
            self.rows.append(Row(tensor, choice, statistics))
        elif choice.axes is None:
            self.left_out.setdefault(choice.why, []).append(tensor.name)

    @property
    def violations(self) -> int:
        """How many groups are over their limits, or hold what is no number."""
        return sum(row.statistics.over + row.statistics.nonfinite for row in self.rows)

    @property
    def worst_first(self) -> list[Row]:
        """The rows as a reader wants them."""
        return sorted(self.rows, key=lambda row: row.badness, reverse=True)

    @property
    def doubts(self) -> dict[str, list[str]]:
        """What names may mean instead -> names."""
        doubts: dict[str, list[str]] = {}
        for row in self.rows:
            if row.choice.doubt:
                doubts.setdefault(row.choice.doubt, []).append(row.tensor.name)
        return doubts


class Column(NamedTuple):
    """One column of the table: what it says, and the number that it is about."""

    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], float] | None = None


def _count(title: str, value: Callable[[Row], int]) -> Column:
    return Column(title, lambda row: str(value(row)), value)


def _norm(title: str, value: Callable[[Row], float]) -> Column:
    return Column(title, lambda row: number(value(row)), value)


COLUMNS = [
    Column("dtype", lambda row: printable(row.tensor.dtype)),
    Column("shape", lambda row: "x".join(map(str, row.tensor.shape))),
    Column("axes", lambda row: ",".join(map(str, row.choice.axes or ()))),
    Column("why", lambda row: printable(row.choice.why)),
    _count("groups", lambda row: row.statistics.groups),
    _norm("min", lambda row: row.statistics.minimum),
    _norm("median", lambda row: row.statistics.median),
    _norm("p99", lambda row: row.statistics.p99),
    Column(
        "max",
        lambda row: number(row.statistics.maximum, row.choice.limit if row.statistics.over else None),
        lambda row: row.statistics.maximum,
    ),
    Column(
        "limit",
        lambda row: "" if row.choice.limit is None else number(row.choice.limit),
        lambda row: -1.0 if row.choice.limit is None else row.choice.limit,
    ),
    Column(
        "over",
        lambda row: "" if row.choice.limit is None else str(row.statistics.over),
        lambda row: row.statistics.over,
    ),
    _count("zero", lambda row: row.statistics.zero),
    _count("non-finite", lambda row: row.statistics.nonfinite),
]
# From the last that a narrow terminal goes without to the first.
_IMPORTANT = ["over", "max", "non-finite", "axes", "limit", "groups", "median", "shape", "p99"]
_IMPORTANT += ["why", "min", "zero", "dtype"]


def number(value: float, above: float | None = None) -> str:
    """A norm in few digits; in as many as show that it is above its limit."""
    if math.isnan(value):
        return "-"
    for digits in range(4, 17):
        text = f"{value:.{digits}g}"
        if above is None or float(text) > above:
            return text
    return repr(value)


def shorten(names: Sequence[str], width: int) -> list[str]:
    """Names in at most so many columns of a terminal: what is too much goes from the middle, where that tells least."""
    if all(_width(name) <= width for name in names):
        return list(names)
    best: list[str] = []
    heads = sorted(range(1, width - 1), key=lambda head: abs(head - width // 3))
    for head in heads[: max(1, _CUTS // len(names))]:
        cut = [_cut(name, width, head) for name in names]
        if len(set(cut)) > len(set(best)):
            best = cut
        if len(set(best)) == len(set(names)):
            break
    return best


def _cut(name: str, width: int, head: int) -> str:
    """A name without its middle, of which so many columns of the head stay."""
    if _width(name) <= width:
        return name
    kept = _fitting(name, head)
    return f"{kept}…{_fitting(name[::-1], width - 1 - _width(kept))[::-1]}"


def _fitting(text: str, width: int) -> str:
    """As much of its beginning as so many columns hold."""
    while _width(text) > width:
        text = text[: min(len(text) - 1, width)]
    return text


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 - bool(unicodedata.combining(c)) for c in text)


def show(report: Report, out: TextIO, top: int | None) -> None:
    """The table: fitted into a terminal, else plain and whole. `top`: how many rows, the worst first; None: all."""
    rows = report.worst_first[: top or None]
    if not (out.isatty() and _rich_table(report, rows, out)):
        columns = [column for column in COLUMNS if any(map(column.text, rows))]
        names = [Column("name", lambda row: printable(row.tensor.name)), *columns]
        titles = [column.title for column in names]
        table = Table(titles, lambda row: [column.text(row) for column in names], list(rows))
        if rows:
            print(table, file=out)
    for line in _lines(report, len(rows)):
        print(wrapped(line, out), file=out)


def wrapped(line: str, out: TextIO) -> str:
    """A line of text, between words where it is for a terminal."""
    if not out.isatty():
        return line
    return textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent="  ", break_on_hyphens=False)


def _lines(report: Report, shown: int) -> list[str]:
    """What is below the table."""
    lines = [f"... and {len(report.rows) - shown} more tensors; --top 0 shows all"] if shown < len(report.rows) else []
    total, limited = totals(report), any(row.choice.limit is not None for row in report.rows)
    over = f"{total['over']:,} over their limit, in {total['tensors_over']:,} of them; " if limited else ""
    lines.append(
        f"{_many(len(report.rows), 'tensor')}, {_many(total['groups'], 'group')}: "
        f"{over}{total['zero']:,} zero, {total['nonfinite']:,} non-finite"
    )
    lines += [f"layout: {report.assumed}"] if report.assumed else []
    lines += [f"note: {some(names)}: {doubt}" for doubt, names in report.doubts.items()]
    return lines + [f"left out, {printable(reason)}: {some(names)}" for reason, names in report.left_out.items()]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The names, where they are few."""
    more = len(names) - _NAMES
    text = ", ".join(map(printable, names[:_NAMES]))
    return text if more <= 0 else f"{text} and {more} more"


def totals(report: Report) -> dict[str, int]:
    """Sums over all tensors."""
    found = [row.statistics for row in report.rows]
    return {
        "tensors": len(found),
        "groups": sum(one.groups for one in found),
        "over": sum(one.over for one in found),
        "tensors_over": sum(one.over > 0 for one in found),
        "zero": sum(one.zero for one in found),
        "nonfinite": sum(one.nonfinite for one in found),
        "left_out": sum(map(len, report.left_out.values())),
    }


def _rich_table(report: Report, rows: Sequence[Row], out: TextIO) -> bool:
    """Print the rows in colours, in as many columns as fit; False where rich is not installed."""
    try:
        from rich import box, table, text
        from rich.console import Console
    except ImportError:
        return False
    console = Console(file=out)
    columns, name_width = fitting(rows, console.width)
    grid = table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grid.add_column("name", no_wrap=True)
    for column in columns:
        grid.add_column(column.title, justify="right" if column.value else "left", no_wrap=True)
    names = shorten([printable(row.tensor.name) for row in rows], name_width)
    for name, row in zip(names, rows, strict=True):
        bad = "bold red" if row.statistics.over or row.statistics.nonfinite else ""
        cells = [text.Text(name, style=bad)]
        for column in columns:
            marked = column.title in ("max", "over", "non-finite")
            cells.append(text.Text(column.text(row), style=bad if marked else "dim" if column.title == "why" else ""))
        grid.add_row(*cells)
    if rows:
        console.print(grid)
        if "why" not in [column.title for column in columns]:
            for why, count in _reasons(rows).items():
                console.print(text.Text(f"axes {why}: {_many(count, 'tensor')}", style="dim"))
    return True


def _reasons(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have the same axes for the same reason: what stands for a column that found no room."""
    reasons: dict[str, int] = {}
    for row in rows:
        why = f"{','.join(map(str, row.choice.axes or ()))} by {printable(row.choice.why)}"
        reasons[why] = reasons.get(why, 0) + 1
    return reasons


def fitting(rows: Sequence[Row], width: int) -> tuple[list[Column], int]:
    """The most important columns that fit beside the names, in their order; and the columns left for names."""
    shown = useful(rows)
    spaces = {column.title: max(map(_width, (column.title, *map(column.text, rows)))) + _GAP for column in shown}
    longest = max((_width(printable(row.tensor.name)) for row in rows), default=0)
    wanted, room, taken = min(longest, max(_NARROWEST, width * 2 // 5)), width, set()
    for title in sorted(spaces, key=_IMPORTANT.index):
        if room - spaces[title] < wanted:
            continue
        room -= spaces[title]
        taken.add(title)
    return [column for column in shown if column.title in taken], min(room, longest)


def useful(rows: Sequence[Row]) -> list[Column]:
    """The columns that say anything at all."""
    return [column for column in COLUMNS if any(column.text(row).strip("0") for row in rows)]


def to_json(report: Report, top: int | None) -> str:
    """One object; numbers that JSON can't hold are null."""
    content = {
        "totals": totals(report),
        "assumed": report.assumed or None,
        "tensors": [record(row) for row in report.worst_first[: top or None]],
        "left_out": [{"name": name, "why": why} for why, names in report.left_out.items() for name in names],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def to_csv(report: Report, top: int | None) -> str:
    """A line a tensor, those that are left out last."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(_RECORD), lineterminator="\n")
    writer.writeheader()
    for row in report.worst_first[: top or None]:
        values = record(row)
        values |= {key: printable(values[key]) for key in ("name", "dtype", "why")}
        values |= {key: " ".join(map(str, values[key])) for key in ("shape", "axes")}
        writer.writerow(values)
    for why, names in report.left_out.items():
        for name in names:
            writer.writerow({"name": printable(name), "why": f"left out, {printable(why)}"})
    return out.getvalue()


_RECORD: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.tensor.name,
    "dtype": lambda row: row.tensor.dtype,
    "shape": lambda row: list(row.tensor.shape),
    "axes": lambda row: list(row.choice.axes or ()),
    "why": lambda row: row.choice.why,
    "limit": lambda row: finite(row.choice.limit),
    "groups": lambda row: row.statistics.groups,
    "min": lambda row: finite(row.statistics.minimum),
    "median": lambda row: finite(row.statistics.median),
    "p99": lambda row: finite(row.statistics.p99),
    "max": lambda row: finite(row.statistics.maximum),
    "over": lambda row: None if row.choice.limit is None else row.statistics.over,
    "zero": lambda row: row.statistics.zero,
    "nonfinite": lambda row: row.statistics.nonfinite,
    "note": lambda row: row.choice.doubt or None,
}


def record(row: Row) -> dict[str, Any]:
    """A row by names, of what JSON has."""
    return {name: value(row) for name, value in _RECORD.items()}


def finite(value: float | None) -> float | None:
    """A number that JSON has, else None."""
    return value if value is not None and math.isfinite(value) else None
