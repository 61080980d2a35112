"""Where a model's variable lies in the parameters of an approximation, which keep all variables in one vector."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytensor.tensor as pt
from pymc import modelcontext


class Block(NamedTuple):
    """The entries of a parameter that are one variable's: along its last axis, particles of SVGD along the first."""

    parameter: Any
    name: str
    entries: slice
    shape: tuple[int, ...]

    def of(self, value: Any) -> Any:
        """The variable's part of a value of the parameter, in the variable's shape; an array or symbolic."""
        return value[..., self.entries].reshape((*self._particles(value), *self.shape))

    def put(self, value: Any, part: Any) -> Any:
        """The parameter's value with another part."""
        size = self.entries.stop - self.entries.start
        return pt.set_subtensor(value[..., self.entries], part.reshape((*self._particles(value), size)))

    def axes(self, norm_axes: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of the variable as those of its part, which never join particles."""
        return tuple(axis + self.parameter.ndim - 1 for axis in norm_axes)

    def _particles(self, value: Any) -> tuple:
        return tuple(value.shape[axis] for axis in range(self.parameter.ndim - 1))


def blocks(approx: Any) -> dict[str, Block]:
    """The variables of an approximation, by name: in the means of ADVI, in every particle of SVGD."""
    return {block.name: block for group in approx.groups for block in _of_group(group)}


def _of_group(group: Any) -> Iterator[Block]:
    parameter = _holder(group.params_dict)
    if parameter is not None:
        for name, (_, entries, shape, _) in group.ordering.items():
            yield Block(parameter, name, entries, tuple(shape))


def blocks_here(params: Sequence[Any]) -> dict[str, Block]:
    """The same of parameters that `pymc.fit` made for the model of this context; nothing of any others.

    One group holds all free variables in their order: so does `pymc.fit` make it of a model. The lengths must agree.
    """
    parameter = _holder({parameter.name: parameter for parameter in params})
    try:
        model = modelcontext(None)
    except TypeError:  # none is active
        return {}
    if parameter is None or parameter.ndim == 0:
        return {}
    point, found, end = model.initial_point(0), {}, 0
    for variable in model.free_RVs:
        name = model.rvs_to_values[variable].name
        start, end = end, end + point[name].size
        found[name] = Block(parameter, name, slice(start, end), point[name].shape)
    return found if parameter.get_value(borrow=True).shape[-1] == end else {}


def _holder(params: Mapping[str, Any]) -> Any:
    """The parameter that holds values of variables, not their spread."""
    return next((params[name] for name in ("mu", "histogram") if name in params), None)
