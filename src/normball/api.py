"""The public functions: read the arguments, find the backend, hand over."""

from collections.abc import Iterable
from typing import Any

from normball import arguments
from normball.dispatch import backend_for


def norm_constraint(
    tensor_var: Any,
    max_norm: Any,
    norm_axes: Any = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    out: Any = None,
) -> Any:
    axes = arguments.read_axes(_ndim(tensor_var), norm_axes)
    bound, small = arguments.read_bound("max_norm", max_norm), arguments.read_bound("epsilon", epsilon)
    backend = backend_for(tensor_var, bound, small)
    return backend.constrain(tensor_var, bound, axes, small, arguments.read_ord(ord), out)


def total_norm_constraint(
    tensor_vars: Iterable[Any],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: bool = False,
    *,
    ord: float = 2,
) -> Any:
    variables = arguments.read_list(tensor_vars)
    bound, small = arguments.read_bound("max_norm", max_norm), arguments.read_bound("epsilon", epsilon)
    order = arguments.read_ord(ord)
    if not variables:
        return ([], 0.0) if return_norm else []
    for variable in variables:
        _ndim(variable)
    constrained, total = backend_for(*variables, bound, small).constrain_total(variables, bound, small, order)
    return (constrained, total) if return_norm else constrained


def compute_norms(array: Any, norm_axes: Any = None, *, ord: float = 2) -> Any:
    ndim = _ndim(array)
    axes = () if norm_axes is None and ndim == 1 else arguments.read_axes(ndim, norm_axes)
    backend, order = backend_for(array), arguments.read_ord(ord)
    norms = backend.norm(backend.summarise(array, axes, order), order)
    return norms.squeeze(axes)


def _ndim(tensor_var: Any) -> int:
    backend_for(tensor_var)  # refuses what is no array before anything is asked of it
    return tensor_var.ndim
