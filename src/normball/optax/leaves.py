"""The leaves of a tree: their names, which of them are constrained, along which axes, and why others are not."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_map_with_path

from normball import arguments
from normball.optax.layouts import UNKNOWN, Layout, incoming
from normball.table import Table

FLOATS = (*arguments.REAL_FLOATS, "complex64", "complex128")
_WORDS = ("incoming", "all")
_BOXES = ("value", "raw_value")  # what flax's Param and Partitioned call the array inside
_HEADER = ("name", "shape", "layout", "axes")


class Leaf(NamedTuple):
    """A leaf, and what is to be done with it."""

    name: str
    shape: tuple[int, ...]
    layout: Layout | None  # None: it is left alone
    reason: str = ""  # why it is left alone


class Choice:
    """What a caller's `axes` mean for each leaf. For `clips` biases are groups, and complex leaves have one."""

    def __init__(self, axes: Any, clips: bool) -> None:
        if axes is None or (isinstance(axes, str) and axes not in _WORDS):
            kind = TypeError if axes is None else ValueError
            raise kind(f"axes={axes!r}: must be 'incoming', 'all', axes or a function; for example axes=0")
        if isinstance(axes, jax.Array):
            remedy = "with optax.inject_hyperparams pass static_args=('axes',)"
            raise TypeError(f"axes of type {type(axes).__name__}: must be known before tracing; {remedy}")
        self._axes, self._clips = tuple(axes) if isinstance(axes, Iterator) else axes, clips

    def of(self, tree: Any) -> list[Leaf]:
        """Every leaf with its layout, or the reason why it has none."""
        return [self._leaf(path, value) for path, value in tree_flatten_with_path(tree)[0]]

    def describe(self, tree: Any) -> Table:
        """The table of all leaves."""
        result = Table(_HEADER, _cells)
        for leaf in self.of(tree):
            if leaf.layout:
                result.rows.append(leaf)
            else:
                result.leave_out(leaf.name, leaf.reason)
        return result

    def check(self, tree: Any) -> None:
        """Refuse to do nothing at all: it would be a model without a bound."""
        table = self.describe(tree)
        if table.left_out and not table.rows:
            raise ValueError(f"axes={self._axes!r}: nothing to constrain; {table}")

    def map(self, function: Callable, tree: Any, *others: Any) -> Any:
        """`function(leaf, value, *others)` for each leaf that is chosen; others, and None, as `function` has None."""
        self.check(tree)

        def of_one(path: Any, value: Any, *rest: Any) -> Any:
            leaf = None if value is None or any(other is None for other in rest) else self._leaf(path, value)
            chosen = leaf is not None and leaf.layout is not None
            return function(leaf if chosen else None, value, *rest)

        return tree_map_with_path(of_one, tree, *others, is_leaf=lambda value: value is None)

    def _leaf(self, path: tuple, value: Any) -> Leaf:
        parts, dtype = _parts(path), str(getattr(value, "dtype", type(value).__name__))
        leaf = Leaf(name_of(path), tuple(getattr(value, "shape", ())), None)
        if dtype not in (FLOATS if self._clips else arguments.REAL_FLOATS):
            kind = "of dtype" if hasattr(value, "dtype") else "of type"
            rule = ": use normball.norm_constraint" if dtype in FLOATS else ", which has no norm ball"
            return leaf._replace(reason=f"{kind} {dtype}{rule}")
        ndim, axes = len(leaf.shape), self._axes
        if callable(axes):
            axes = axes(leaf.name, value)
            if axes is None:
                return leaf._replace(reason="axes has none for it")
        elif ndim < 2 and (self._clips or axes == "all"):
            axes = "all"
        elif ndim < 2 and axes != "incoming":  # axes for all are hardly meant for biases
            return leaf._replace(reason="less than 2-D (biases, scales): name its axes by a function")
        if isinstance(axes, str) and axes == "incoming":
            known = incoming(parts, ndim)
            if isinstance(known, Layout):
                return leaf._replace(layout=known)
            if not self._clips or known == UNKNOWN:
                return leaf._replace(reason=known)
            axes = "all"  # biases of several dimensions: equinox's convolutions, flax's attention
        if isinstance(axes, str) and axes == "all":
            return leaf._replace(layout=Layout("one group", tuple(range(ndim))))
        try:
            return leaf._replace(layout=Layout("as given", arguments.read_axes(ndim, axes)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"axes of {leaf.name}: {error}") from None


def name_of(path: tuple) -> str:
    """What a leaf is called: the keys on the way to it."""
    return "/".join(_parts(path)) or "the array"


def _parts(path: tuple) -> list[str]:
    if path and isinstance(path[-1], GetAttrKey) and path[-1].name in _BOXES:
        path = path[:-1]
    return [keystr((key,), simple=True) for key in path]


def _cells(leaf: Leaf) -> tuple[str, ...]:
    assert leaf.layout
    return leaf.name, str(leaf.shape), leaf.layout.text, " ".join(map(str, leaf.layout.axes)) or "()"
