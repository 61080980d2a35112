"""What is constrained or recorded: a whole parameter, or a model's variable within one, which holds all raveled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pymc import modelcontext

from normball import arguments


class Whole(NamedTuple):
    """A parameter as it is."""

    parameter: Any

    def of(self, value: Any) -> Any:
        """The part of a value of the parameter that is meant; of an array or symbolic."""
        return value

    def put(self, value: Any, part: Any) -> Any:
        """The parameter's symbolic value with another part."""
        return part

    def axes(self, norm_axes: Any) -> tuple[int, ...]:
        """Norm axes as the caller wrote them, as those of the part."""
        return _read_axes(f"parameter {self.parameter.name}", self.parameter.ndim, norm_axes)


class Block(NamedTuple):
    """A variable's entries: those of the parameter's last axis; in SVGD each row of the parameter is a particle."""

    parameter: Any
    name: str
    entries: slice
    shape: tuple[int, ...]

    def of(self, value: Any) -> Any:
        """The variable's part of a value, in its shape, behind the axis of particles if there is one."""
        return value[..., self.entries].reshape((*self._particles(value), *self.shape))

    def put(self, value: Any, part: Any) -> Any:
        """The parameter's symbolic value with another part."""
        size = self.entries.stop - self.entries.start
        return value[..., self.entries].set(part.reshape((*self._particles(value), size)))

    def axes(self, norm_axes: Any) -> tuple[int, ...]:
        """Norm axes of the variable as those of the part: no group goes over particles."""
        own = _read_axes(f"variable {self.name}", len(self.shape), norm_axes)
        return tuple(axis + self.parameter.ndim - 1 for axis in own)

    def _particles(self, value: Any) -> tuple:
        return tuple(value.shape[axis] for axis in range(self.parameter.ndim - 1))


def blocks(approx: Any) -> dict[str, Block]:
    """The variables of an approximation, by name: in the means of ADVI and FullRankADVI, in the particles of SVGD."""
    found = {}
    for group in approx.groups:
        parameters = group.shared_params if group.user_params is None else group.user_params
        for parameter in (parameters[name] for name in ("mu", "histogram") if name in parameters):
            if parameter in group.params:  # those of a user may be graphs, which no optimizer updates
                for name, (_, entries, shape, _) in group.ordering.items():
                    found[name] = Block(parameter, name, entries, tuple(shape))
    return found


def blocks_here(params: Sequence[Any]) -> dict[str, Block]:
    """The same of parameters that `pymc.fit` made for the model of this context; nothing of any others.

    One group holds all free variables in their order: so does `pymc.fit` make it of a model. The lengths must agree.
    """
    held = [parameter for parameter in params if parameter.name in ("mu", "histogram") and parameter.ndim]
    try:
        model = modelcontext(None)
    except TypeError:  # none is active
        return {}
    if len(held) != 1:  # groups put together by hand
        return {}
    [parameter], point, found, end = held, model.initial_point(0), {}, 0
    for variable in model.free_RVs:
        name = model.rvs_to_values[variable].name
        start, end = end, end + point[name].size
        found[name] = Block(parameter, name, slice(start, end), point[name].shape)
    return found if parameter.get_value(borrow=True).shape[-1] == end else {}


def _read_axes(what: str, ndim: int, norm_axes: Any) -> tuple[int, ...]:
    try:
        return arguments.read_axes(ndim, norm_axes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None
