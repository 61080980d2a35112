"""An optimizer of PyMC, whose updates end inside a norm ball and whose gradients are clipped."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymc.variational.updates import get_or_compute_grads

import normball
from normball import arguments
from normball.pymc.blocks import Block, blocks, blocks_here


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
        steps without another compilation. Or a mapping of shared variables, or of names, to bounds: others are left
        alone. Names are those of a model's variables, see Notes, and of parameters. Or a function of a shared variable
        that returns its bound, or None to leave it alone. Wherever a bound stands in the latter two, a pair of a bound
        and norm axes may stand.
    norm_axes : int or sequence of int, optional
        The axes to take the norm over, as in `normball.norm_constraint`; of a model's variable its own. What has one
        dimension, as the parameters of `pymc.ADVI`, has no default: 0 makes it one group, ``()`` each entry.
    epsilon, ord
        As in `normball.norm_constraint`.
    total_norm : float or symbolic, optional
        The largest total norm of all gradients: they are clipped before the optimizer sees them.
    params : sequence of shared variable, optional
        For updates that are a dict: which of its variables are parameters, the others being the optimizer's memory.
        It can be left out where `max_norm` is a mapping.
    approx : pymc.variational.approximations.Approximation, optional
        The approximation whose variables names in `max_norm` are; ``inference.approx`` of ``inference = pm.ADVI()``.
        Only needed outside of the model's context, and for an approximation that you put together from groups.

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
    In ``with model: pm.fit(...)`` a name is first of all that of a model's variable, ``w`` or ``sigma_log__``. These
    lie raveled, one after the other, in the parameter ``mu`` (ADVI, full rank) or ``histogram`` (SVGD). It is the
    variable's mean that is constrained, for SVGD its value in every particle.

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
        self._blocks = None if approx is None else blocks(approx)

    def applied(self, updates: Mapping, params: Sequence[Any]) -> OrderedDict:
        """The updates, those of chosen parameters constrained."""
        result = OrderedDict(updates)
        for target, bound in self._targets(params):
            parameter = target.parameter if isinstance(target, Block) else target
            if parameter in result:
                value = _like(parameter, result[parameter])
                result[parameter] = self._constrained(target, value, bound)
        return result

    def _targets(self, params: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """What has a bound, a parameter or a variable's block of one, and the bound."""
        if isinstance(self.max_norm, Mapping):
            variables = blocks_here(params) if self._blocks is None else self._blocks
            for key, bound in self.max_norm.items():
                own = _named(key, variables, params) if isinstance(key, str) else [_among(key, params)]
                yield from ((target, bound) for target in own)
        elif self.max_norm is not None:
            for parameter in params:
                bound = self.max_norm(parameter) if callable(self.max_norm) else self.max_norm
                if bound is not None:
                    yield parameter, bound

    def _constrained(self, target: Any, value: Any, bound: Any) -> Any:
        bound, axes = bound if isinstance(bound, tuple) else (bound, self._axes)
        if isinstance(target, Block):
            own = target.axes(_axes(len(target.shape), axes, f"variable {target.name}"))
            part = normball.norm_constraint(target.of(value), bound, own, self._epsilon, ord=self._ord)
            return target.put(value, part)
        own = _axes(value.ndim, axes, f"parameter {target.name}")
        return normball.norm_constraint(value, bound, own, self._epsilon, ord=self._ord)


def _named(name: str, variables: Mapping[str, Block], params: Sequence[Any]) -> list[Any]:
    """A model's variable of this name, or else all parameters of it."""
    found = [variables[name]] if name in variables else [parameter for parameter in params if parameter.name == name]
    if not found:
        known = dict.fromkeys([*variables, *(parameter.name for parameter in params if parameter.name)])
        near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.0))
        remedy = "a model's are known in its context, or by approx="
        raise ValueError(f"max_norm[{name!r}]: no variable or parameter of this name; there are {near}; {remedy}")
    return found


def _among(key: Any, params: Sequence[Any]) -> Any:
    """A key that must be one of the parameters."""
    if not any(key is parameter for parameter in params):
        remedy = "pass those of the optimizer, and a model's variables by their names"
        raise ValueError(f"max_norm[{key!r}]: is not among the parameters; {remedy}")
    return key


def _axes(ndim: int, norm_axes: Any, what: str) -> tuple[int, ...]:
    try:
        return arguments.read_axes(ndim, norm_axes)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _like(parameter: Any, value: Any) -> Any:
    """An update in the dtype of its parameter."""
    return value if value.dtype == parameter.dtype else value.astype(parameter.dtype)
