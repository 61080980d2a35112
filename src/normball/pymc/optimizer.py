"""An optimizer of PyMC, whose updates end inside a norm ball and whose gradients are clipped."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymc.variational.updates import get_or_compute_grads

import normball
from normball import arguments
from normball.pymc.blocks import Block, Whole, blocks, blocks_here


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
        steps without another compilation. Or a mapping of shared variables, or of names, a model's variable's or a
        shared one's, to bounds: others are left alone. Or a function of a shared variable that returns its bound, or
        None to leave it alone. Wherever a bound stands in the latter two, a pair of a bound and norm axes may stand.
    norm_axes : int or sequence of int, optional
        The axes to take the norm over, as in `normball.norm_constraint`. A parameter of one dimension, as those of
        `pymc.ADVI` are, has no default: 0 makes the vector one group, ``()`` each entry. In `pymc.SVGD` a row is a
        particle, so that 1 makes each particle a group.
    epsilon, ord
        As in `normball.norm_constraint`.
    total_norm : float or symbolic, optional
        The largest total norm of all gradients: they are clipped before the optimizer sees them.
    params : sequence of shared variable, optional
        For updates that are a dict: which of its variables are parameters, the others being the optimizer's memory.
        It can be left out where `max_norm` is a mapping.
    approx : pymc.variational.approximations.Approximation, optional
        The approximation whose variables names in `max_norm` are, ``inference.approx`` of ``inference = pm.ADVI()``:
        needed outside of the model's context, and for one that was put together from groups.

    Returns
    -------
    callable or dict
        An optimizer for ``pm.fit(obj_optimizer=...)``, or called with (loss or gradients, parameters) for
        ``pytensor.function(updates=...)``; of updates, such updates.

    Raises
    ------
    TypeError
        For an `optimizer` that is none; for a bound as in `normball.norm_constraint`; for `approx` without a mapping.
    ValueError
        For neither `max_norm` nor `total_norm`, and `total_norm` with updates, whose gradients are gone. When the
        optimizer is called: for a name that no parameter has, a choice that chooses nothing, and a parameter of one
        dimension without axes.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold. Updates that the optimizer widened, those of float32 parameters
    under floatX=float64, come back in the dtype of the parameter. A parameter that is chosen but that the optimizer
    does not move is constrained as well. The optimizer's memory is not.

    Approximations hold all variables of a model in one vector, and hand an optimizer that vector alone. Where
    `pymc.fit` is called in the model's context the order of its variables tells where each lies, transformed ones by
    names as ``sigma_log__``; such a name comes before one of a parameter. Norm axes are those of the variable. It is
    its mean that is constrained; for SVGD its value in every particle, each by itself.

    References
    ----------
    `pymc.norm_constraint`, whose example constrains an update by hand. N. Srivastava et al., "Dropout: a simple way to
    prevent neural networks from overfitting", JMLR 15 (2014), section 5.1.

    Examples
    --------
    The update of a shared variable:

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

    A variable of a model, each of its two columns:

    >>> with pm.Model():
    ...     effects = pm.Normal("effects", 0, 10, shape=(3, 2))
    ...     _ = pm.Normal("y", effects.sum(), observed=100.0)
    ...     optimizer = constrained(pm.adam(learning_rate=0.5), {"effects": 2.0}, 0)
    ...     approx = pm.fit(100, obj_optimizer=optimizer, progressbar=False, random_seed=0)
    >>> print(normball.compute_norms(approx.mean.eval().reshape(3, 2), 0).round(3))
    [2. 2.]
    """
    if max_norm is None and total_norm is None:
        raise ValueError("max_norm=None, total_norm=None: nothing would be constrained; pass one of them")
    if total_norm is not None:
        arguments.read_bound("total_norm", total_norm)
    choice = _Choice(max_norm, norm_axes, epsilon, arguments.read_ord(ord), approx)
    if isinstance(optimizer, Mapping):
        return _of_updates(optimizer, choice, total_norm, params)
    if not callable(optimizer):
        remedy = "for example pm.adam(learning_rate=0.02)"
        raise TypeError(f"optimizer of type {type(optimizer).__name__}: must be a function or a dict; {remedy}")
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
    """Which parameters or variables are constrained, and how."""

    def __init__(self, max_norm: Any, norm_axes: Any, epsilon: Any, ord: float, approx: Any) -> None:
        self.max_norm, self._axes, self._ord = max_norm, norm_axes, ord
        self._epsilon = arguments.read_bound("epsilon", epsilon)
        if isinstance(max_norm, Mapping):
            for key, bound in max_norm.items():
                arguments.read_bound(f"max_norm[{key!r}]", self._pair(bound)[0])
        elif max_norm is not None and not callable(max_norm):
            arguments.read_bound("max_norm", max_norm)
        if approx is not None and not isinstance(max_norm, Mapping):
            raise TypeError("approx: is for a mapping of the model's variables; pass max_norm={name: bound}")
        self._blocks = None if approx is None else blocks(approx)

    def applied(self, updates: Mapping, params: Sequence[Any]) -> OrderedDict:
        """The updates, with what is chosen constrained, whether or not the optimizer moves it."""
        result = OrderedDict(updates)
        chosen = list(self._chosen(params))
        if not chosen and self.max_norm is not None:
            raise ValueError("max_norm: chooses no parameter, so nothing would be constrained; leave it out")
        for place, bound, norm_axes in chosen:
            parameter = place.parameter
            value = result.get(parameter, parameter)
            if value.dtype != parameter.dtype:  # float64 where a float32 parameter met floatX=float64
                value = value.astype(parameter.dtype)
            axes = place.axes(norm_axes)
            part = normball.norm_constraint(place.of(value), bound, axes, self._epsilon, ord=self._ord)
            result[parameter] = place.put(value, part)
        return result

    def _chosen(self, params: Sequence[Any]) -> Iterator[tuple[Whole | Block, Any, Any]]:
        """Each place with its bound and norm axes."""
        if isinstance(self.max_norm, Mapping):
            variables = blocks_here(params) if self._blocks is None else self._blocks
            for key, bound in self.max_norm.items():
                for place in self._places(key, params, variables):
                    yield place, *self._pair(bound)
        elif callable(self.max_norm):
            for parameter in params:
                bound = self.max_norm(parameter)
                if bound is not None:
                    yield Whole(parameter), *self._pair(bound)
        elif self.max_norm is not None:
            for parameter in params:
                yield Whole(parameter), self.max_norm, self._axes

    def _pair(self, bound: Any) -> tuple[Any, Any]:
        """A bound and norm axes, from a bound or such a pair."""
        if not isinstance(bound, tuple):
            return bound, self._axes
        if len(bound) != 2:
            raise ValueError(f"max_norm: {bound!r} must be a bound, or a pair of a bound and norm axes")
        return bound

    def _places(self, key: Any, params: Sequence[Any], variables: Mapping[str, Block]) -> Sequence[Whole | Block]:
        """What a key of the mapping means."""
        if not isinstance(key, str):
            if not any(key is parameter for parameter in params):
                remedy = "pass those of the optimizer, or a model's variables by their names"
                raise ValueError(f"max_norm[{key!r}]: is not among the parameters; {remedy}")
            return [Whole(key)]
        if key in variables:
            return [variables[key]]
        if self._blocks is not None:
            raise _unknown(key, variables, "")
        places = [Whole(parameter) for parameter in params if parameter.name == key]
        if not places:
            known = dict.fromkeys([*variables, *(p.name for p in params if p.name)])
            raise _unknown(
                key, known, "" if variables else "; for those of a model call in its context, or pass approx="
            )
        return places


def _unknown(key: str, known: Any, remedy: str) -> ValueError:
    there = ", ".join(difflib.get_close_matches(key, known, n=6, cutoff=0.0)) or "none"
    return ValueError(f"max_norm[{key!r}]: no variable of this name; there are {there}{remedy}")
