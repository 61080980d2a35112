"""Norms between two bounds: groups that are too short are lifted, and the max-norm constraint does the rest.

A power of two takes a short group above its target without rounding, so one constraint, with its guarantees, ends all.
A group of zeros has no direction and stays. All of it in Keras' own operations, so it can be traced and compiled.
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from normball.keras.tensors import constrained, norms_of

# For each dtype that weights have: its unit in the last place at 1, its smallest and its largest number.
_FORMATS = {
    "float64": (2.0**-52, 2.0**-1074, float(np.finfo(np.float64).max)),
    "float32": (2.0**-23, 2.0**-149, float(np.finfo(np.float32).max)),
    "float16": (2.0**-10, 2.0**-24, 65504.0),
    "bfloat16": (2.0**-7, 2.0**-133, 255 * 2.0**120),
}


def between(x: Any, low: float, high: float, rate: float, axes: tuple[int, ...]) -> Any:
    """Every group with a norm from low to high as it is; others a share `rate` of the way there, never beyond."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not rate:
        return x
    if dtype not in _FORMATS:
        return constrained(x, high, axes)  # which refuses it
    eps, smallest, largest = _FORMATS[dtype]
    if 5 * low > largest:  # a lifted group may be that long before it is constrained
        raise ValueError(f"min_value={low!r}: must be at most a fifth of the largest {dtype}; use a smaller one")
    norms = norms_of(x, axes)
    work = keras.backend.standardize_dtype(norms.dtype)
    high, low = _rounded_down(high, work), _rounded_down(low, work)
    long = high
    if rate < 1:
        # A norm that is inf goes to the bound at once: beyond an inf there is no bound.
        part, highs = rate * high + (1 - rate) * norms, ops.full_like(norms, high)
        long = ops.where(ops.logical_and(part > high, norms <= _FORMATS[work][2]), part, highs)
    if not low:
        return constrained(x, long, axes)
    # The constraint takes off at most 4 ulp of each entry; the others are for the roundings of norms and limits.
    slack = 7 * (eps * low + smallest * math.sqrt(math.prod(x.shape[axis] for axis in axes)))
    target = min(low + slack, high)
    floor = min(low, target - slack)  # with hardly any room up to high, what comes out must count as compliant
    # XLA reads subnormal numbers as zeros: groups where they would matter count as zeros and stay.
    least = _FORMATS[work][1] * 2.0**47 if keras.backend.backend() == "jax" else 0.0
    short = ops.logical_and(norms < floor, norms > least)
    if keras.backend.backend() == "torch" and not ops.any(short):  # eager, so every operation saved counts
        return constrained(x, long, axes)
    own = ops.where(short, norms, ops.full_like(norms, low))
    goal = rate * target + (1 - rate) * own
    bound = ops.where(short, goal, long + ops.zeros_like(own))  # zeros: in the dtype of the norms
    doublings = ops.where(short, ops.log2(goal) - ops.log2(own) + 2, ops.zeros_like(own))
    lifted = ops.cast(x, work)
    for share in range(3):  # 2**doublings itself may be out of range
        lifted = lifted * _power_of_two((_whole(doublings) + share) / 3)
    return constrained(ops.where(short, ops.cast(lifted, dtype), x), bound, axes)


def _whole(number: Any) -> Any:
    """Rounded down, in its own dtype, which Keras does not keep."""
    return ops.cast(ops.floor(number), number.dtype)


def _power_of_two(exponent: Any) -> Any:
    """2**exponent, this rounded down, exactly, where a library's power may be a few ulp off."""
    power = ops.power(ops.full_like(exponent, 2.0), _whole(exponent))
    far = power * (2.0**20 + 1 if keras.backend.standardize_dtype(exponent.dtype) == "float64" else 2.0**12 + 1)
    return far - (far - power)  # of about half the digits


def _rounded_down(bound: float, work: str) -> float:
    """A bound as a number of the dtype of the norms, never above what it was."""
    with np.errstate(over="ignore"):
        nearest = np.dtype(work).type(bound)
    return float(np.nextafter(nearest, np.dtype(work).type(0)) if float(nearest) > bound else nearest)
