"""PyTensor: PyMC's and Lasagne's formulas in graphs of others, recognised and replaced: an opt-in."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytensor.scalar as ps
from pytensor.compile import optdb
from pytensor.graph.basic import Constant
from pytensor.graph.rewriting.basic import GraphRewriter, copy_stack_trace
from pytensor.tensor.basic import get_underlying_scalar_constant_value
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.exceptions import NotScalarConstantError
from pytensor.tensor.math import Sum

import normball
from normball.backends import pytensor as backend

__all__ = ["enable_recognition"]

_NAME = "normball_recognition"


def enable_recognition() -> Callable[[], None]:
    """Let PyTensor replace the formulas of PyMC and Lasagne by the constraints of normball, whenever it compiles.

    With n the norm of v, or of several arrays together, both of

        v * clip(n, 0, c) / (epsilon + n)

    become v where n <= c, and v * c / (n + epsilon) where n > c.

    Returns
    -------
    callable
        Ends it. Functions that were compiled meanwhile keep what they have.

    Notes
    -----
    For models and libraries that cannot be edited. It is done where rewrites are, in modes with ``fast_run``, graphs of
    scan included, for the graph exactly as ``pm.norm_constraint`` and ``pm.total_norm_constraint`` write it (PyMC 5.28
    to 6.4); others are left as they are, and so is one whose bound is a negative or NaN constant. Results differ from
    the formula's by what `normball.norm_constraint` says.

    The gradient of a formula was written down before anything could be recognised: it stays that of the formula, NaN
    at zero. Where graphs are yours, call `normball.norm_constraint`, or `normball.pymc.patch`.

    A mode without it: ``pytensor.compile.get_default_mode().excluding("normball_recognition")``.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pytensor
    >>> import pytensor.tensor as pt
    >>> from normball.pytensor import enable_recognition
    >>> disable = enable_recognition()
    >>> x = pt.matrix("x")
    >>> constrain = pytensor.function([x], pm.norm_constraint(x, 3.0))
    >>> constrain(np.full((1, 1), 1e-200)).item()
    1e-200
    >>> disable()
    """
    if _NAME not in optdb.__db__:
        # Before constants are folded and terms reordered; graphs are still as they were written.
        optdb.register(_NAME, _RECOGNISE, "fast_run", position=0.62)
    _RECOGNISE.enabled = True

    def disable() -> None:
        _RECOGNISE.enabled = False

    return disable


class _Formula(NamedTuple):
    """A multiplier clip(n, 0, c) / (epsilon + n)."""

    norm: Any
    max_norm: Any
    epsilon: Any


class _Recognise(GraphRewriter):
    """Replaces the formulas of a graph."""

    enabled = False

    def apply(self, fgraph: Any) -> None:
        """One look at every product, and at every total norm once."""
        if not self.enabled:
            return
        totals: dict[Any, dict[Any, Any]] = {}
        for node in fgraph.toposort():
            if node in fgraph.apply_nodes:
                for x, formula in _products(node):
                    new = _replacement(x, formula, node.out, totals)
                    if new is not None and node.out.type.is_super(new.type):
                        copy_stack_trace(node.out, new)
                        fgraph.replace_validate(node.out, new, reason=_NAME)
                        break


_RECOGNISE = _Recognise()


def _products(node: Any) -> Iterator[tuple[Any, _Formula]]:
    """Each way to read a node as x times such a multiplier."""
    if not _is(node, ps.mul) or len(node.inputs) != 2:
        return
    for x, other in (node.inputs, node.inputs[::-1]):
        quotient = _bare(other).owner
        if not _is(quotient, ps.true_div):
            continue
        clip, below = (part.owner for part in quotient.inputs)
        if not _is(clip, ps.clip) or not _is(below, ps.add) or len(below.inputs) != 2:
            continue
        norm, least, max_norm = clip.inputs
        if norm in below.inputs and _number(least) == 0:
            yield x, _Formula(norm, max_norm, below.inputs[below.inputs[0] is norm])


def _replacement(x: Any, formula: _Formula, out: Any, totals: dict[Any, dict[Any, Any]]) -> Any:
    """The constraint in the place of a product, or None."""
    if _is_wrong(formula.max_norm) or _is_wrong(formula.epsilon):
        return None  # the constraint would refuse it, and an error here would end all rewriting of the graph
    new = _per_group(x, formula, out)
    return _of_total(x, formula, totals) if new is None else new


def _per_group(x: Any, formula: _Formula, out: Any) -> Any:
    """The norm constraint, if the norm is that of x's own groups."""
    root = formula.norm.owner
    summed = _bare(root.inputs[0]) if _is(root, ps.sqrt) else None
    if summed is None or not _is_sum_of_squares(summed, x) or formula.norm.ndim != x.ndim:
        return None
    axes = _axes(summed, x)
    order = root.inputs[0].owner.op.new_order if summed is not root.inputs[0] else tuple(range(x.ndim))
    kept = iter(range(x.ndim))
    if tuple(order) != tuple("x" if axis in axes else next(kept) for axis in range(x.ndim)):
        return None
    for bound in (formula.max_norm, formula.epsilon):  # longer ones may make the product larger than x
        if any(n != 1 and n != own for n, own in zip(bound.type.shape, x.type.shape, strict=True)):
            return None
    return normball.norm_constraint(x.astype(out.dtype), formula.max_norm, axes, formula.epsilon)


def _of_total(x: Any, formula: _Formula, totals: dict[Any, dict[Any, Any]]) -> Any:
    """X constrained together with others, if the norm is theirs."""
    if formula.norm not in totals:
        totals[formula.norm] = {}
        root = formula.norm.owner
        parts = list(_terms(root.inputs[0])) if _is(root, ps.sqrt) and formula.norm.ndim == 0 else []
        xs = [_squared(part) for part in parts]
        if xs and None not in xs and all(variable.dtype == formula.norm.dtype for variable in xs):
            results = backend.constrain_total(xs, formula.max_norm, formula.epsilon, 2)[0]
            totals[formula.norm] = dict(zip(xs, results, strict=True))
    return totals[formula.norm].get(x)


def _terms(total: Any) -> Iterator[Any]:
    """The terms of a sum of scalars, but for zeros."""
    if _is(total.owner, ps.add):
        for part in total.owner.inputs:
            yield from _terms(part)
    elif _number(total) != 0:
        yield total


def _squared(total: Any) -> Any:
    """The variable whose squares are summed here, all of them, or None."""
    if total.owner is None or not isinstance(total.owner.op, Sum):
        return None
    squares = total.owner.inputs[0].owner
    if squares is None or not squares.inputs or not _is_sum_of_squares(total, squares.inputs[0]):
        return None
    x = squares.inputs[0]
    return x if _axes(total, x) == tuple(range(x.ndim)) else None


def _is_sum_of_squares(total: Any, x: Any) -> bool:
    if total.owner is None or not isinstance(total.owner.op, Sum):
        return False
    squares = total.owner.inputs[0].owner
    square = _is(squares, ps.sqr) or (_is(squares, ps.pow) and _number(squares.inputs[1]) == 2)
    return square and squares.inputs[0] is x


def _axes(total: Any, x: Any) -> tuple[int, ...]:
    """The axes that a sum is over."""
    axes = total.owner.op.axis
    return tuple(range(x.ndim)) if axes is None else tuple(sorted(axes))


def _is(node: Any, operation: Any) -> bool:
    return node is not None and isinstance(node.op, Elemwise) and node.op.scalar_op == operation


def _is_wrong(bound: Any) -> bool:
    """Whether a bound is known already, and negative or NaN."""
    known = bound.data if isinstance(bound, Constant) else _number(bound)
    return known is not None and not np.all(known >= 0)


def _bare(variable: Any) -> Any:
    """A variable without the axes of length 1 that were added to it."""
    node = variable.owner
    return node.inputs[0] if node is not None and isinstance(node.op, DimShuffle) else variable


def _number(variable: Any) -> Any:
    """The value of a constant scalar, None of anything else."""
    try:
        return get_underlying_scalar_constant_value(variable)
    except NotScalarConstantError:
        return None
