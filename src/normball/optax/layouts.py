"""How flax, haiku and equinox store their weights, and the axes that one unit's incoming weights lie along.

A tree of parameters knows no layers: a leaf's own name, that of its parent and the number of its dimensions have to do.
The only list of names. A leaf that is not called so has no incoming axes until somebody names them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

_ATTENTION = ("query", "key", "value")  # of flax, whose kernels keep the heads as an axis
_FLAT = "a bias or scale"
_NORMALISATION = "of a normalisation layer, by its name"
UNKNOWN = "a name that is not known here: name its axes"


class Layout(NamedTuple):
    """What the axes of a stored weight are."""

    text: str  # for people; empty for axes that somebody named
    axes: tuple[int, ...]  # over which one unit's incoming weights spread


def incoming(path: Sequence[str], ndim: int) -> Layout | str:
    """The layout of a leaf at this path, or why it has none."""
    own, parent = path[-1] if path else "", path[-2] if len(path) > 1 else ""
    if ndim < 2 or own in ("b", "bias", "scale", "offset"):
        return _FLAT
    if own not in _LAYOUTS:
        return UNKNOWN
    return _LAYOUTS[own](parent.rpartition("/")[2], ndim)  # haiku's names are paths themselves


def _flax(parent: str, ndim: int) -> Layout | str:
    if ndim == 2:
        return Layout("(in, out)", (0,))
    if ndim == 3 and parent in _ATTENTION:
        return Layout("(in, heads, dim)", (0,))
    text = "(heads, dim, out)" if ndim == 3 and parent == "out" else "(*kernel, in, out)"
    return Layout(text, tuple(range(ndim - 1)))


def _haiku(parent: str, ndim: int) -> Layout | str:
    if ndim > 2 and "transpose" in parent:
        return Layout("(*kernel, out, in)", (*range(ndim - 2), ndim - 1))
    return _flax("", ndim)


def _equinox(parent: str, ndim: int) -> Layout | str:
    if "norm" in parent.lower():
        return _NORMALISATION
    return Layout("(out, in)" if ndim == 2 else "(out, in, *kernel)", tuple(range(1, ndim)))


def _rows(parent: str, ndim: int) -> Layout | str:
    return Layout("(row, dim)", (1,)) if ndim == 2 else UNKNOWN


_LAYOUTS: dict[str, Callable[[str, int], Layout | str]] = {
    "kernel": _flax,
    "embedding": _rows,
    "w": _haiku,
    "embeddings": _rows,
    "weight": _equinox,
    "weight_ih": _equinox,
    "weight_hh": _equinox,
}
