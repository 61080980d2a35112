"""An optimizer of PyMC, whose updates end inside a norm ball and whose gradients are clipped."""

import difflib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from pymc.variational.updates import get_or_compute_grads

import normball
from normball import arguments
from normball.pymc.blocks import blocks


def constrained(
    optimizer: Any,
    max_norm: Any = None,
    norm_axes: Any = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    total_norm: Any = None,
    params: Sequence[Any] | None = None,
    approx: Any = None,
) -> Any:
    """Max-norm constraint on the parameters of an optimizer, and clipping of the gradients that it sees.

    Of a parameter's update w, each group v along the norm axes, with n its norm and c its bound, becomes

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    so that the norms of the new value, in exact arithmetic, are at most c after every step.

    Parameters
    ----------
    optimizer : callable or dict
        An optimizer of PyMC, ``pm.adam`` or ``pm.adam(learning_rate=0.02)``; any function of (loss or gradients,
        parameters) that returns updates; or updates, a dict.
    max_norm : float, symbolic, mapping or callable, optional
        The bound of every parameter, as in `normball.norm_constraint`; in a shared variable it may change between
        steps without another compilation. Or a mapping of shared variables or their names to bounds: others are left
        alone. Or a function of a shared variable that returns its bound, or None to leave it alone. Wherever a bound
        stands in the latter two, a pair of a bound and norm axes may stand.
    norm_axes : int or sequence of int, optional
        The axes to take the norm over, as in `normball.norm_constraint`. A parameter of one dimension, as those of
        `pymc.ADVI` are, has no default: 0 makes the vector one group, ``()`` each entry.
    epsilon, ord
        As in `normball.norm_constraint`.
    total_norm : float or symbolic, optional
        The largest total norm of all gradients: they are clipped before the optimizer sees them.
    params : sequence of shared variable, optional
        For updates that are a dict: which of its variables are parameters, the others being the optimizer's memory.
        It can be left out where `max_norm` is a mapping.
    approx : pymc.variational.approximations.Approximation, optional
        ``inference.approx`` of ``inference = pm.ADVI()``. Then names in `max_norm` are those of the model's variables,
        which such parameters hold raveled, one after the other; norm axes are those of the variable. It is its mean
        that is constrained, for SVGD its value in every particle.

    Returns
    -------
    callable or dict
        An optimizer for ``pm.fit(obj_optimizer=...)``, or called with (loss or gradients, parameters) for
        ``pytensor.function(updates=...)``; of updates, such updates.

    Raises
    ------
    TypeError
        For an `optimizer` that is none; a bound as in `normball.norm_constraint`.
    ValueError
        For neither `max_norm` nor `total_norm`; a name that no parameter has; a parameter of one dimension without
        axes, when the optimizer is called; `total_norm` with updates, whose gradients are gone.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold. Updates that the optimizer widened, those of float32 parameters
    under floatX=float64, come back in the dtype of the parameter. Its memory is not constrained.

    References
    ----------
    `pymc.norm_constraint`, whose example constrains an update by hand. N. Srivastava et al., "Dropout: a simple way to
    prevent neural networks from overfitting", JMLR 15 (2014), section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> import pymc as pm
    >>> import pytensor
    >>> from normball.pymc import constrained
    >>> weights = pytensor.shared(np.array([[3.0, 0.3], [4.0, 0.4]]), name="weights")
    >>> optimizer = constrained(pm.sgd(learning_rate=0.1), max_norm=1.0, total_norm=10.0)
    >>> step = pytensor.function([], [], updates=optimizer((weights**2).sum(), [weights]))
    >>> _ = step()
    >>> print(normball.compute_norms(weights.get_value()).round(1))
    [1.  0.4]
    """
    if max_norm is None and total_norm is None:
        raise ValueError("max_norm=None, total_norm=None: nothing would be constrained; pass one of them")
    for name, bound in (("max_norm", max_norm), ("total_norm", total_norm)):
        if bound is not None and not isinstance(bound, Mapping) and not callable(bound):
            arguments.read_bound(name, bound)
    choice = _Choice(max_norm, norm_axes, epsilon, arguments.read_ord(ord), approx)
    if isinstance(optimizer, Mapping):
        return _of_updates(optimizer, choice, total_norm, params)
    if not callable(optimizer):
        remedy = "for example pm.adam(learning_rate=0.02)"
        raise TypeError(f"optimizer of type {type(optimizer).__name__}: must be a function or updates; {remedy}")
    if params is not None:
        raise TypeError("params: is for updates only; an optimizer gets its parameters when it is called")

    def optimize(loss_or_grads: Any, params: Sequence[Any]) -> OrderedDict:
        grads = loss_or_grads
        if total_norm is not None:
            grads = normball.total_norm_constraint(get_or_compute_grads(grads, params), total_norm, epsilon, ord=ord)
        return choice.applied(optimizer(grads, params), params)

    return optimize


def _of_updates(updates: Mapping, choice: "_Choice", total_norm: Any, params: Sequence[Any] | None) -> OrderedDict:
    if total_norm is not None:
        raise ValueError("total_norm: updates have no gradients any more; pass the optimizer itself")
    if params is None:
        if not isinstance(choice.max_norm, Mapping):
            remedy = "name them by params=[...], or in a mapping of bounds"
            raise ValueError(f"params=None: updates hold the optimizer's memory as well as parameters; {remedy}")
        params = list(updates)
    return choice.applied(updates, params)


class _Choice:
    """Which parameters are constrained, and how."""

    def __init__(self, max_norm: Any, norm_axes: Any, epsilon: Any, ord: float, approx: Any) -> None:
        self.max_norm, self._axes, self._epsilon, self._ord = max_norm, norm_axes, epsilon, ord
        self._blocks = blocks(approx) if approx is not None else {}

    def applied(self, updates: Mapping, params: Sequence[Any]) -> OrderedDict:
        """The updates, those of chosen parameters constrained."""
        result = OrderedDict(updates)
        for parameter in params:
            bound = self._bound(parameter)
            if bound is not None and parameter in result:
                value = _like(parameter, result[parameter])
                result[parameter] = self._constrained(value, bound, f"parameter {parameter.name}")
        for name in self._names(params):
            block = self._blocks[name]
            if block.parameter in result:
                value = _like(block.parameter, result[block.parameter])
                bound, axes = self._pair(self.max_norm[name])
                own = block.axes(_axes(len(block.shape), axes, f"variable {name}"))
                part = self._constrained(block.of(value), (bound, own), f"variable {name}")
                result[block.parameter] = block.put(value, part)
        return result

    def _bound(self, parameter: Any) -> Any:
        if self.max_norm is None:
            return None
        if isinstance(self.max_norm, Mapping):
            keys = (parameter,) if self._blocks else (parameter, parameter.name)
            return next((self.max_norm[key] for key in keys if key in self.max_norm), None)
        return self.max_norm(parameter) if callable(self.max_norm) else self.max_norm

    def _names(self, params: Sequence[Any]) -> list[str]:
        """Names of the model's variables that have a bound; refuses keys that are nothing."""
        if not isinstance(self.max_norm, Mapping):
            return []
        known = list(self._blocks) or [parameter.name for parameter in params]
        for key in self.max_norm:
            if isinstance(key, str) and key not in known:
                near = difflib.get_close_matches(key, filter(None, known), cutoff=0.0)
                remedy = "" if self._blocks else "; for those of a model pass approx="
                raise ValueError(f"max_norm[{key!r}]: no variable of this name; there are {', '.join(near)}{remedy}")
            if not isinstance(key, str) and not any(key is parameter for parameter in params):
                raise ValueError(f"max_norm[{key!r}]: is not among the parameters; pass those of the optimizer")
        return [key for key in self.max_norm if key in self._blocks] if self._blocks else []

    def _pair(self, bound: Any) -> tuple[Any, Any]:
        return bound if isinstance(bound, tuple) else (bound, self._axes)

    def _constrained(self, value: Any, bound: Any, what: str) -> Any:
        bound, axes = self._pair(bound)
        own = _axes(value.ndim, axes, what)
        return normball.norm_constraint(value, bound, own, self._epsilon, ord=self._ord)


def _axes(ndim: int, norm_axes: Any, what: str) -> tuple[int, ...]:
    try:
        return arguments.read_axes(ndim, norm_axes)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _like(parameter: Any, value: Any) -> Any:
    """An update in the dtype of its parameter."""
    return value if value.dtype == parameter.dtype else value.astype(parameter.dtype)
