"""`normball diff`: what differs between two models, group by group."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from normball.checkpoint import stream
from normball.checkpoint.errors import printable
from normball.checkpoint.pieces import PIECE, Piece, Region
from normball.checkpoint.report import finite, number, some
from normball.checkpoint.rules import Choice
from normball.checkpoint.tensors import Model, Tensor
from normball.checkpoint.workers import Workers
from normball.table import Table


@dataclass
class Change:
    """A tensor that both models have, whose bytes differ."""

    tensor: Tensor
    choice: Choice
    groups: int = 0
    changed: int = 0
    before: float = 0.0  # the largest norm of the first model
    after: float = 0.0
    smallest: float = math.inf  # norm after in multiples of that before, among the changed groups
    largest: float = -math.inf

    def add(self, changed: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        """One more region: which groups' bytes differ, and their norms in both."""
        self.groups += changed.size
        self.changed += int(changed.sum())
        self.before, self.after = (
            float(np.maximum.reduce(norms, axis=None, initial=largest))  # NaN where one is
            for largest, norms in ((self.before, before), (self.after, after))
        )
        with np.errstate(all="ignore"):  # of inf / inf, and what is too large a multiple
            ratios = np.divide(after, before, where=changed & (before > 0), out=np.full(changed.shape, np.nan))
        self.smallest = float(np.fmin.reduce(ratios, axis=None, initial=self.smallest))
        self.largest = float(np.fmax.reduce(ratios, axis=None, initial=self.largest))


@dataclass
class Difference:
    """What differs between two models."""

    changes: list[Change] = field(default_factory=list)
    without_groups: list[tuple[str, str]] = field(default_factory=list)  # a tensor that differs, why it has none
    only: dict[str, list[str]] = field(default_factory=dict)  # model -> names that it alone has
    forms: list[tuple[str, str, str]] = field(default_factory=list)  # a tensor, its dtype and shape in both
    same: int = 0
    assumed: str = ""  # what was assumed of the layout

    def __bool__(self) -> bool:
        return bool(self.changes or self.without_groups or self.forms or any(self.only.values()))


def diff(
    first: Model,
    second: Model,
    names: Sequence[str],
    choices: Mapping[str, Choice],
    workers: Workers,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Difference:
    """Compare two models, which are called `names`; `choices` are those of the first's tensors."""
    result = Difference()
    mine, others = ({tensor.name: tensor for tensor in model.tensors} for model in (first, second))
    if all([file.kind for file in model.files] == ["npy"] for model in (first, second)):
        others = dict(zip(mine, second.tensors, strict=True))  # a .npy has no name in it but its file's
    result.only = {
        names[0]: [name for name in mine if name not in others],
        names[1]: [name for name in others if name not in mine],
    }
    for name in mine:
        if name not in others:
            continue
        tensor, other, choice = mine[name], others[name], choices[name]
        forms = [_form(tensor), _form(other)]
        if forms[0] != forms[1]:
            result.forms.append((name, forms[0], forms[1]))
        elif _equal(tensor, other, workers):
            result.same += 1
        elif choice.axes is None:
            result.without_groups.append((name, choice.why))
        else:
            result.changes.append(_compare(tensor, other, choice, workers))
        progress(tensor.nbytes)
    return result


def _form(tensor: Tensor) -> str:
    """What must agree before entries can be compared as they lie."""
    shape = "x".join(map(str, tensor.shape)) or "0-d"
    return f"{tensor.dtype} {shape}{', Fortran order' * tensor.fortran}{', byte-swapped' * tensor.swapped}"


def _equal(tensor: Tensor, other: Tensor, workers: Workers) -> bool:
    """Whether two tensors of one form are the same bytes."""

    def same(start: int) -> bool:
        size = min(PIECE, tensor.nbytes - start)
        first, second = workers.buffer(size, "old"), workers.buffer(size, "new")
        for one, buffer in ((tensor, first), (other, second)):
            one.source.read_into(one.begin + start, memoryview(buffer))  # type: ignore[arg-type]
        return np.array_equal(first, second)

    return all(workers.map(same, range(0, tensor.nbytes, PIECE)))


def _compare(tensor: Tensor, other: Tensor, choice: Choice, workers: Workers) -> Change:
    """Region by region: which groups changed, and their norms in both."""
    assert choice.axes is not None
    old, new = stream.view(tensor, choice.axes), stream.view(other, choice.axes)
    change = Change(tensor, choice)
    changed = (_changed(old, new, region, workers) for region in old.regions())
    norms = (stream.norms_of(seen, None, workers) for seen in (old, new))
    for parts in zip(changed, *norms, strict=True):
        change.add(*parts)
    return change


def _changed(old: stream.View, new: stream.View, region: Region, workers: Workers) -> np.ndarray:
    """Which groups of a region differ in any byte."""
    found = np.zeros(stream.groups_of(region, old.axes), bool)

    def differ(piece: Piece) -> tuple[Piece, np.ndarray]:
        first, second = old.read(piece, workers, "old"), new.read(piece, workers, "new")
        bits = f"u{first.dtype.itemsize}"
        return piece, (first.view(bits) != second.view(bits)).any(axis=old.axes, keepdims=True)

    for piece, part in workers.map(differ, region.pieces):
        found[piece.groups] |= part
    return found


def show(result: Difference, top: int | None, out: TextIO) -> None:
    """For people: what changed most first."""
    rows = sorted(result.changes, key=lambda change: change.changed / change.groups, reverse=True)
    table = Table(_HEADER, _cells, rows[: top or None])
    lines = [str(table)] if rows else []
    if len(rows) > len(table.rows):
        lines.append(f"... and {len(rows) - len(table.rows)} more tensors; --top 0 shows all")
    lines += [f"differs, {printable(why)}: {printable(name)}" for name, why in result.without_groups]
    lines += [f"of another form: {printable(name)}: {printable(f'{a} -> {b}')}" for name, a, b in result.forms]
    lines += [f"only in {printable(model)}: {some(names)}" for model, names in result.only.items() if names]
    lines += [f"layout: {result.assumed}"] if result.assumed and rows else []
    groups = sum(change.changed for change in rows)
    lines.append(
        f"{len(rows) + len(result.without_groups):,} tensors differ, {groups:,} of their groups; "
        f"{result.same:,} are the same"
    )
    print(*lines, sep="\n", file=out)


_HEADER = ("name", "shape", "axes", "why", "groups changed", "max before", "max after", "norm after / before")


def _cells(change: Change) -> tuple[str, ...]:
    return (
        printable(change.tensor.name),
        "x".join(map(str, change.tensor.shape)),
        ",".join(map(str, change.choice.axes or ())),
        printable(change.choice.why),
        f"{change.changed} of {change.groups}",
        number(change.before),
        number(change.after),
        f"{number(change.smallest)} to {number(change.largest)}" if change.smallest <= change.largest else "-",
    )


def to_json(result: Difference) -> str:
    """One object; numbers that JSON can't hold are null."""
    content: dict[str, Any] = {
        "differ": bool(result),
        "same": result.same,
        "assumed": result.assumed or None,
        "changes": [
            {
                "name": change.tensor.name,
                "shape": list(change.tensor.shape),
                "axes": list(change.choice.axes or ()),
                "why": change.choice.why,
                "groups": change.groups,
                "changed": change.changed,
                "max_before": finite(change.before),
                "max_after": finite(change.after),
                "smallest_ratio": finite(change.smallest),
                "largest_ratio": finite(change.largest),
            }
            for change in result.changes
        ],
        "without_groups": [{"name": name, "why": why} for name, why in result.without_groups],
        "forms": [{"name": name, "first": first, "second": second} for name, first, second in result.forms],
        "only": [{"model": model, "names": names} for model, names in result.only.items()],
    }
    return json.dumps(content, indent=1, allow_nan=False)
