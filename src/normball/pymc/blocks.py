"""Where a model's variable lies in the parameters of an approximation, which keep all variables in one vector."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytensor.tensor as pt


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
    parameters = [group.params_dict[name] for name in ("mu", "histogram") if name in group.params_dict]
    for parameter in parameters[:1]:
        for name, (_, entries, shape, _) in group.ordering.items():
            yield Block(parameter, name, entries, tuple(shape))
