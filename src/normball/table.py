"""A table of what was chosen in a model, and what was left out and why. Pure Python, imports nothing of ours."""

from collections.abc import Iterable, Mapping, Sequence

_SHOWN = 6  # names of what is left out for one reason


def as_text(header: Sequence[str], rows: Iterable[Sequence[str]], left_out: Mapping[str, Sequence[str]]) -> str:
    """Columns under their names, if there are rows, and a line for each reason."""
    rows = list(rows)
    cells = [header, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    lines += [f"left out, {reason}: {_some(names)}" for reason, names in left_out.items()]
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    """The names, where they are few."""
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_SHOWN])} and {more} more"
