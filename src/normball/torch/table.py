"""What is constrained in a model, and what not and why, as a table to read."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from normball.table import Table
from normball.torch.weights import Weight, lookup

_HEADER = ("name", "layer", "shape", "layout", "axes", "bound")


class Row(NamedTuple):
    """One constrained parameter."""

    name: str
    layer: str
    shape: tuple[int, ...]
    layout: str
    axes: tuple[int, ...]
    bound: Any


def table(weights: Iterable[Weight], max_norm: Any) -> Table:
    """The table of all parameters of a model, under one bound or bounds by glob."""
    result = Table(_HEADER, _cells)
    for weight in weights:
        bound, name = lookup(max_norm, weight), " = ".join((weight.name, *weight.others))
        if weight.layout and bound is not None:
            text, axes, _ = weight.layout
            result.rows.append(Row(name, weight.layer, weight.shape, text, axes, bound))
        else:
            reason = "no max_norm for it" if weight.layout else weight.reason or "no match"
            result.leave_out(name, reason)
    return result


def _cells(row: Row) -> tuple[str, ...]:
    axes = " ".join(map(str, row.axes)) or "()"
    return row.name, row.layer, str(row.shape), row.layout or "as given", axes, str(row.bound)
