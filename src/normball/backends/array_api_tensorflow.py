"""TensorFlow: its functions under the standard's names, for `array_api_portable`, eager, in graphs and under XLA.

TensorFlow does not keep to the Array API standard, so the public functions do not take its tensors; `normball.keras`
uses this where Keras runs on it.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from normball import arguments
from normball.backends import array_api_portable as portable

_XP = SimpleNamespace(
    float64=tf.float64,
    asarray=lambda x, dtype, device=None: tf.cast(x, dtype),
    astype=tf.cast,
    abs=tf.abs,
    concat=tf.concat,
    floor=tf.floor,
    full_like=lambda x, value: tf.fill(x.shape, tf.constant(value, x.dtype)),
    isfinite=tf.math.is_finite,
    isinf=tf.math.is_inf,
    isnan=tf.math.is_nan,
    log2=lambda x: tf.math.log(x) / 0.6931471805599453,  # whose last bits the arithmetic does not rely on
    max=tf.reduce_max,
    ones_like=tf.ones_like,
    permute_dims=tf.transpose,
    pow=tf.pow,
    reshape=tf.reshape,
    sqrt=tf.sqrt,
    sum=tf.reduce_sum,
    where=tf.where,
    zeros_like=tf.zeros_like,
)


def norms(x: Any, axes: tuple[int, ...]) -> Any:
    """The Euclidean norms as float64, the reduced axes kept as 1."""
    _check(x)
    return portable.value(_XP, portable.norms(_XP, x, axes, 2, wide=True))


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...]) -> Any:
    """Every group inside its ball, with epsilon 0."""
    _check(x)
    found = portable.norms(_XP, x, axes, 2, wide=x.dtype == tf.float64)
    bound = tf.cast(tf.convert_to_tensor(max_norm, None if hasattr(max_norm, "dtype") else tf.float64), tf.float64)
    return portable.rescaled(_XP, x, found, bound, tf.zeros((), tf.float64))


def constrain_total(xs: Sequence[Any], max_norm: float) -> tuple[list[Any], Any]:
    """All tensors as one group inside its ball, with epsilon 0, and its norm before."""
    for index, x in enumerate(xs):
        _check(x, index)
    every = [portable.norms(_XP, tf.reshape(x, (-1,)), (0,), 2, wide=True) for x in xs]
    total = portable.merged(_XP, portable.Norms(*(tf.concat(word, 0) for word in zip(*every, strict=True))), (0,), 2)
    bound, zero = tf.constant(max_norm, tf.float64), tf.zeros((), tf.float64)
    flat = [portable.rescaled(_XP, tf.reshape(x, (-1,)), total, bound, zero) for x in xs]
    return [tf.reshape(y, x.shape) for y, x in zip(flat, xs, strict=True)], portable.value(_XP, total)[0]


def _check(x: Any, index: int | None = None) -> None:
    """Refuse what has no norm ball here."""
    if x.dtype.name not in arguments.REAL_FLOATS:
        raise arguments.wrong_dtype(x.dtype.name, arguments.entry("tensor_var", index))
