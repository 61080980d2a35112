"""The constraint, the norms and the total of tensors of whatever library Keras computes with."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from normball import api


def constrained(x: Any, bound: Any, axes: tuple[int, ...]) -> Any:
    """Every group inside its ball, with epsilon 0."""
    if keras.backend.backend() == "tensorflow":
        from normball.backends import array_api_tensorflow

        return array_api_tensorflow.constrain(x, bound, axes)
    return api.norm_constraint(x, bound, axes, 0.0)


def norms_of(x: Any, axes: tuple[int, ...]) -> Any:
    """The norms of the groups, the reduced axes kept as 1: in float64, on JAX without 64-bit mode in float32."""
    if keras.backend.backend() == "tensorflow":
        from normball.backends import array_api_tensorflow

        return array_api_tensorflow.norms(x, axes)
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    return ops.reshape(api.compute_norms(x, axes), kept)


def total_constrained(xs: Sequence[Any], bound: float) -> tuple[list[Any], Any]:
    """All tensors as one group inside its ball, with epsilon 0, and its norm before."""
    if keras.backend.backend() == "tensorflow":
        from normball.backends import array_api_tensorflow

        return array_api_tensorflow.constrain_total(xs, bound)
    return api.total_norm_constraint(xs, bound, 0.0, return_norm=True)
