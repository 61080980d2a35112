"""A gradient transformation that works unit by unit, and what such ones have in common."""

from collections.abc import Callable
from typing import Any

import optax
from jax.tree_util import register_static

from normball import arguments
from normball.optax.leaves import Choice, Table


@register_static  # as a named tuple it would be taken apart, and put together without what it has to say
class PerUnit(optax.GradientTransformation):
    """An `optax.GradientTransformation` that works unit by unit, and can say which they are."""

    _choice: Choice

    @classmethod
    def _of(cls, choice: Choice, update: Callable) -> Any:
        """Of what the caller's `axes` mean, and the update."""

        def init(params: Any) -> optax.EmptyState:
            choice.check(params)
            return optax.EmptyState()

        made = cls(init, update)
        made._choice = choice
        return made

    def describe(self, params: Any) -> Table:
        """What would be constrained in a tree of parameters, along which axes, and what not, and why.

        Parameters
        ----------
        params : tree of array
            Parameters, or their shapes, of `jax.eval_shape` say.

        Returns
        -------
        Table
            To print. ``.rows`` has a row for each leaf that is constrained, ``.left_out`` maps a reason to names.
        """
        return self._choice.describe(params)


def read_bound(name: str, value: Any) -> Any:
    """A checked float, or an array; a schedule is refused."""
    if callable(value):
        remedy = f"a schedule goes in by optax.inject_hyperparams(...)({name}=schedule)"
        raise TypeError(f"{name} of type {type(value).__name__}: must be a number; {remedy}")
    return arguments.read_bound(name, value)


def no_params() -> ValueError:
    """What optax says where params are missing."""
    try:
        optax.keep_params_nonnegative().update(None, optax.EmptyState(), None)
    except ValueError as error:
        return error
    raise AssertionError("optax.keep_params_nonnegative needs no params any more")
