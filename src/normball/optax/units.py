"""A gradient transformation that works unit by unit, and what such ones have in common."""

from collections.abc import Callable
from typing import Any

import optax

from normball import arguments
from normball.optax.leaves import Choice, Table


class PerUnit(optax.GradientTransformation):
    """An `optax.GradientTransformation` that works unit by unit, and can say which they are."""

    _choice: Choice

    def __new__(cls, choice: Choice, update: Callable) -> Any:
        """Of what the caller's `axes` mean, and the update."""

        def init(params: Any) -> optax.EmptyState:
            choice.check(params)
            return optax.EmptyState()

        made = super().__new__(cls, init, update)
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
        raise TypeError(
            f"{name} of type {type(value).__name__}: must be a number; wrap this in optax.inject_hyperparams"
        )
    return arguments.read_bound(name, value)


def no_params() -> ValueError:
    """What optax says where params are missing."""
    try:
        optax.keep_params_nonnegative().update(None, optax.EmptyState(), None)
    except ValueError as error:
        return error
    raise AssertionError("optax.keep_params_nonnegative needs no params any more")
