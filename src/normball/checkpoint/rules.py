"""What is done with each tensor of a model: along which axes its norms are, and its limit. Rules, then the layout."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from normball import arguments
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.layouts import ASSUMED, NAMES, Stored, stored
from normball.checkpoint.tensors import FLOATS, FP8, Tensor

FLAT = "1-D, as biases are (a rule with axes=0 takes them)"
POINT = "0-d"
_WORDS = ("in", "out", "all")
_KEYS = ("axes", "limit", "layout", "skip")
_HOW = "write 'GLOB: axes=in limit=2.5' or 'GLOB: skip'"
_COMPARED = 10_000  # names among which near misses are looked for


@dataclass(frozen=True)
class Rule:
    """What the user wants for the tensors whose names fit a glob; what is None is as for the others."""

    glob: str
    axes: str | tuple[int, ...] | None = None
    limit: float | None = None
    layout: str | None = None
    skip: bool = False
    place: str = ""  # where it was written, for errors

    def takes(self, name: str) -> bool:
        """Whether it is about a tensor of this name, which fits itself even where it holds brackets."""
        return name == self.glob or fnmatchcase(name, self.glob)


@dataclass(frozen=True)
class Choice:
    """What is done with one tensor."""

    axes: tuple[int, ...] | None  # None: it is left alone
    limit: float | None
    why: str
    doubt: str = ""  # what its name may mean instead, and the remedy
    assumed: bool = False  # by a layout that nobody named


def read_rules(texts: Iterable[str], toml_path: str | Path | None = None) -> list[Rule]:
    """The rules of the command line, then those of a file: the first that fits a name counts."""
    return [_read_text(text) for text in texts] + ([] if toml_path is None else _read_file(Path(toml_path)))


def choose(
    tensors: Sequence[Tensor], rules: Sequence[Rule], layout: str | None, max_norm: float | None
) -> dict[str, Choice]:
    """What is done with each tensor, by name. Without a layout each needs a rule that names its axes."""
    uses: dict[int, list[str]] = {place: [] for place in range(len(rules))}
    choices: dict[str, Choice] = {}
    homeless: list[Tensor] = []
    for tensor in tensors:
        place = next((place for place, rule in enumerate(rules) if rule.takes(tensor.name)), None)
        rule = Rule("*") if place is None else rules[place]
        if place is not None:
            uses[place].append(tensor.name)
        choice = _choose(tensor, rule, place is not None, layout, max_norm)
        if choice is None:
            homeless.append(tensor)
        else:
            choices[tensor.name] = choice
    for place, names in uses.items():
        _check_use(rules[place], names, choices, tensors)
    if homeless:
        raise _needs_layout(homeless)
    return choices


def limited(choices: Mapping[str, Choice]) -> bool:
    """Whether any tensor is under a limit."""
    return any(choice.axes is not None and choice.limit is not None for choice in choices.values())


def under_limits(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The same, but what has axes and no limit is left alone, and listed as such."""
    alone = Choice(None, None, "under no limit (--max-norm sets one, or a rule)")
    return {
        name: alone if choice.limit is None and choice.axes is not None else choice for name, choice in choices.items()
    }


def _choose(tensor: Tensor, rule: Rule, ruled: bool, layout: str | None, max_norm: float | None) -> Choice | None:
    """None where only a layout could say."""
    ndim, limit = len(tensor.shape), max_norm if rule.limit is None else rule.limit
    if rule.skip:
        return Choice(None, None, "skipped by a rule")
    if tensor.dtype not in (*FLOATS, *FP8) or tensor.dtype == "F8_E8M0":  # which holds the scales of others
        return Choice(None, None, f"of dtype {tensor.dtype}, which has no norm ball")
    if ndim == 0:
        return Choice(None, None, POINT)
    # A rule for everything is hardly meant for biases.
    if rule.axes not in (None, "in", "out") and (ndim > 1 or rule.glob.strip("*")):
        return Choice(_read_axes(tensor, rule), limit, f"rule {rule.glob}")
    if ndim == 1:
        return Choice(None, None, FLAT)
    chosen = rule.layout or layout
    if chosen is None:
        return None
    known = stored(chosen, tensor.name, ndim, rule.axes is not None or rule.layout is not None)
    if known is None:
        remedy = "a rule names their axes, as 'GLOB: axes=0', or takes their layout for granted, 'GLOB: axes=in'"
        return Choice(None, None, f"not a name of {chosen} weights ({remedy})")
    return _as_stored(known, chosen, ndim, limit, rule.axes == "out", f"rule {rule.glob}: " if ruled else "")


def _as_stored(known: Stored, layout: str, ndim: int, limit: float | None, outgoing: bool, why: str) -> Choice:
    others = known.inputs if outgoing else known.units
    axes = tuple(axis for axis in range(ndim) if axis not in others)
    text = f"{why}{'torch' if layout == ASSUMED else layout} {known.text}{', outgoing' if outgoing else ''}"
    return Choice(axes, limit, text, known.doubt, layout == ASSUMED)


def _read_axes(tensor: Tensor, rule: Rule) -> tuple[int, ...]:
    ndim = len(tensor.shape)
    if rule.axes == "all":
        return tuple(range(ndim))
    assert isinstance(rule.axes, tuple)
    try:
        return arguments.read_axes(ndim, rule.axes)
    except ValueError:
        name, axes = printable(tensor.name), ",".join(map(str, rule.axes))
        rule_text = f"each from {-ndim} to {ndim - 1} and once; a rule before this one may take that tensor"
        message = f"{rule.place}: axes={axes} does not fit {name} of shape {tensor.shape}: {rule_text}"
        raise CheckpointError(message) from None


def _check_use(rule: Rule, names: Sequence[str], choices: dict[str, Choice], tensors: Sequence[Tensor]) -> None:
    """Refuse a rule that does nothing: a misspelled name would be a weight without a limit."""
    if not names and not any(rule.takes(tensor.name) for tensor in tensors):
        known = [tensor.name for tensor in tensors]
        near = difflib.get_close_matches(rule.glob, known[:_COMPARED], 3, 0.6)
        some = ", ".join(map(printable, near or known[:3])) + ("" if near or len(known) <= 3 else ", ...")
        hint = f"did you mean {some}?" if near else f"the model has {some}"
        raise CheckpointError(f"{rule.place}: matches no tensor; {hint}")
    left = [name for name in names if name in choices and choices[name].axes is None]
    if names and not rule.skip and len(left) == len(names):
        why = choices[left[0]].why
        raise CheckpointError(f"{rule.place}: does nothing, {printable(left[0])} is left alone: {why}")


def _needs_layout(homeless: Sequence[Tensor]) -> CheckpointError:
    first = homeless[0]
    more = f" (and {len(homeless) - 1} more)" if len(homeless) > 1 else ""
    name = printable(first.name)
    remedy = f"pass --layout {'|'.join(NAMES)}, or a rule, as --rule '{name}: axes=0'"
    return CheckpointError(f"which axes of {name}{more}, of shape {first.shape}, are incoming is not known: {remedy}")


def _read_text(text: str) -> Rule:
    """`GLOB: key=value ...`; a glob may hold colons, values don't."""
    place = f"--rule '{printable(text)}'"
    glob, colon, settings = text.rpartition(":")
    if not colon or not glob.strip() or not settings.strip():
        raise CheckpointError(f"{place}: no setting after a colon; {_HOW}")
    values: dict[str, Any] = {}
    for word in settings.split():
        key, equals, value = word.partition("=")
        if key in values:
            raise CheckpointError(f"{place}: {key} is given twice; once is enough")
        if not equals and key != "skip" and key in _KEYS:
            raise CheckpointError(f"{place}: {key} has no value; {_HOW}")
        values[key] = value if equals else True
    return _read_values(glob.strip(), values, place)


def _read_file(path: Path) -> list[Rule]:
    shown = printable(str(path))
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{shown}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or an int of thousands of digits
        raise CheckpointError(f"{shown}: is not TOML, {printable(str(error))}") from None
    tables = content.pop("rule", None)
    if content or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        more = f"{printable(next(iter(content)))!r} is not known here; " if content else ""
        raise CheckpointError(f"{shown}: {more}write a table for each rule, [[rule]] with match = 'GLOB'")
    rules = []
    for number, table in enumerate(tables, 1):
        place, glob = f"{shown}, rule {number}", table.pop("match", None)
        if not isinstance(glob, str) or not glob:
            raise CheckpointError(f"{place}: has no match = 'GLOB'")
        rules.append(_read_values(glob, table, f"{place} ({printable(glob)})"))
    return rules


def _read_values(glob: str, values: dict[str, Any], place: str) -> Rule:
    unknown = next((key for key in values if key not in _KEYS), None)
    if unknown is not None:
        raise CheckpointError(f"{place}: {printable(unknown)!r} is not a setting; {_HOW}")
    skip = values.pop("skip", False)
    if not isinstance(skip, bool):
        raise CheckpointError(f"{place}: skip is a word of its own; {_HOW}")
    if skip and values:
        raise CheckpointError(f"{place}: skip takes no {next(iter(values))}; {_HOW}")
    if not skip and not values:
        raise CheckpointError(f"{place}: sets nothing; {_HOW}")
    layout = values.get("layout")
    if layout is not None and layout not in NAMES:
        raise CheckpointError(f"{place}: layout={printable(str(layout))}: must be one of {', '.join(NAMES)}")
    axes = None if "axes" not in values else _axes_of(values["axes"], place)
    if layout is not None and axes not in (None, "in", "out"):
        raise CheckpointError(f"{place}: axes by number and a layout say it twice; leave one out")
    limit = None if "limit" not in values else read_limit(values["limit"], f"{place}: limit")
    return Rule(glob, axes, limit, layout, skip, place)


def _axes_of(value: Any, place: str) -> str | tuple[int, ...]:
    """A word, an int, a list of ints, or their text."""
    if isinstance(value, str):
        if value in _WORDS:
            return value
        parts: Sequence[Any] = value.split(",")
    else:
        parts = value if isinstance(value, list) else [value]
    try:
        if parts and not any(isinstance(part, (bool, float)) for part in parts):
            return tuple(map(int, parts))
    except (TypeError, ValueError):
        pass
    raise CheckpointError(f"{place}: axes={printable(str(value))}: must be in, out, all or numbers, as 0,2")


def read_limit(value: Any, name: str) -> float:
    """A checked bound."""
    try:
        limit = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        limit = None
    if limit is None or not limit >= 0:
        raise CheckpointError(f"{name}={printable(str(value))}: must be a number >= 0, as 2.5")
    return limit
