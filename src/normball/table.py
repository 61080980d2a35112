"""A table of what was chosen in a model, and what was left out and why. Pure Python, imports nothing of ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 6  # names of what is left out for one reason


@dataclass(repr=False)
class Table:
    """What was chosen in a model, and what not, by reason; prints as a table."""

    header: Sequence[str]
    cells: Callable[[Any], Sequence[str]]  # of a row
    rows: list[Any] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, name: str, reason: str) -> None:
        """One more that was not chosen."""
        self.left_out.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        """Columns under their names, if there are rows, and a line for each reason."""
        cells = [self.header, *map(self.cells, self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        lines += [f"left out, {reason}: {_some(names)}" for reason, names in self.left_out.items()]
        return "\n".join(lines)

    __repr__ = __str__


def _some(names: Sequence[str]) -> str:
    """The names, where they are few."""
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_SHOWN])} and {more} more"
