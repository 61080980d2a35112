"""Norms at least, exactly, or between: groups too short are lifted, exactly, and the max-norm constraint does the rest.

A power of two takes a short group above its target without rounding, so one constraint, with its guarantees, ends all
modes. A group of zeros has no direction and stays.
"""

import math
from typing import Any, NamedTuple

import torch

from normball import arguments
from normball.dispatch import backend_for

MODES = ("max", "min", "equal", "range")


class Limits(NamedTuple):
    """What a mode asks of the norms of one tensor."""

    floor: float  # groups below are lifted
    target: float  # and end here, or a few ulp below
    ceiling: float  # all others end here at most


def read_mode(mode: Any) -> str:
    """One of the modes."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}; leave it out for max")
    return mode


def read_bounds(max_norm: Any, mode: str) -> tuple[float, float]:
    """The lowest and the highest norm that a `max_norm` means in this mode."""
    if mode == "range":
        if not isinstance(max_norm, (tuple, list)) or len(max_norm) != 2:
            raise TypeError(f"max_norm={max_norm!r}: must be a pair in mode range; for example max_norm=(0.5, 2.0)")
        low, high = (_number(bound) for bound in max_norm)
        if low > high:
            raise ValueError(f"max_norm={max_norm!r}: the lower bound must come first; exchange them")
        return low, high
    bound = _number(max_norm)
    if mode != "max" and bound == math.inf:
        raise ValueError(f"max_norm={max_norm!r}: must be finite in mode {mode}; no norm can be brought there")
    return {"max": (0.0, bound), "min": (bound, math.inf), "equal": (bound, bound)}[mode]


def limits(max_norm: Any, mode: str, dtype: Any, count: int, ord: float, name: str) -> Limits:
    """The limits for groups of `count` entries of a dtype."""
    low, high = read_bounds(max_norm, mode)
    if low == 0:
        return Limits(0.0, 0.0, high)
    if 2 * low > torch.finfo(dtype).max:  # a lifted group may be that long before it is constrained
        rule = f"must be at most half of the largest {dtype} ({name}) in mode {mode}"
        raise ValueError(f"max_norm={max_norm!r}: {rule}; use a smaller bound")
    slack = _slack(low, dtype, count, ord)
    if mode == "equal":
        return Limits(low - slack, low, low)
    if low + slack > high:
        rule = f"{dtype} ({name}) has too few numbers between them"
        raise ValueError(f"max_norm={max_norm!r}: {rule}; use mode equal, or a wider range")
    return Limits(low, low + slack, high)


def lift(weight: Any, axes: tuple[int, ...], ord: float, limits: Limits) -> tuple[Any, Any]:
    """A tensor that the constraint with this bound takes to its limits; the weight itself where no group is short."""
    if limits.floor <= 0:
        return weight, limits.ceiling
    norms = group_norms(weight, axes, ord)
    short = (norms < limits.floor) & (norms > 0)
    if not short.any():
        return weight, limits.ceiling
    lifted, doublings = weight.double(), torch.where(short, _doublings(norms, limits.target), 0)
    for share in range(3):  # 2.0**doublings itself may be more than float64 holds
        lifted = lifted * _power_of_two(torch.div(doublings + share, 3, rounding_mode="floor"))
    bound = torch.full_like(norms, limits.ceiling).masked_fill(short, limits.target)
    return lifted.to(weight.dtype), bound


def group_norms(weight: Any, axes: tuple[int, ...], ord: float) -> Any:
    """The groups' norms in float64, the reduced axes kept as 1."""
    backend = backend_for(type(weight))
    return backend.norm(backend.summarise(weight, axes, ord), ord)


def _slack(low: float, dtype: Any, count: int, ord: float) -> float:
    """How far below its bound the constraint may leave a norm, of 4 ulp in each entry; 5, as norms are measured, too.

    An ulp is at most eps times the entry, or the smallest subnormal, and the norm of the errors bounds the error of
    the norm.
    """
    info = torch.finfo(dtype)
    return 5 * (info.eps * low + info.smallest_normal * info.eps * count ** (1 / ord))


def _doublings(norms: Any, target: float) -> Any:
    """The least k with norms * 2**k >= target: by exponents, as the quotient may overflow."""
    mantissa, exponent = math.frexp(target)
    own, own_exponent = torch.frexp(norms)
    return exponent - own_exponent + (own < mantissa).int()


def _power_of_two(exponent: Any) -> Any:
    """2.0**exponent by its bits, as a vectorised exp2 may be an ulp off."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _number(value: Any) -> float:
    """One bound, as a checked float."""
    bound = arguments.read_bound("max_norm", value)
    if not isinstance(bound, float):
        remedy = "pass a float; norm_constraint_ takes one bound per unit"
        raise TypeError(f"max_norm of type {type(value).__name__}: must be a number; {remedy}")
    return bound
