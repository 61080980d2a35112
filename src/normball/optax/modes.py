"""Norms at least, exactly, or between, all of it traceable: `normball.torch.modes` says how and why.

Groups too short are lifted by a power of two, exactly, and the max-norm constraint does the rest.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normball.backends import jax as backend
from normball.optax.units import read_bound

MODES = ("max", "min", "equal", "range")


def read_mode(mode: Any) -> str:
    """One of the modes."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}; leave it out for max")
    return mode


def read_bounds(max_norm: Any, mode: str) -> tuple[Any, Any]:
    """The lowest and the highest norm that a `max_norm` means in this mode: checked floats, or arrays."""
    if mode == "range":
        if not isinstance(max_norm, (tuple, list)) or len(max_norm) != 2:
            raise TypeError(f"max_norm={max_norm!r}: must be a pair in mode range; for example max_norm=(0.5, 2.0)")
        low, high = (read_bound("max_norm", bound) for bound in max_norm)
        if isinstance(low, float) and isinstance(high, float) and low > high:
            raise ValueError(f"max_norm={max_norm!r}: the lower bound must come first; exchange them")
        return low, high
    bound = read_bound("max_norm", max_norm)
    if mode != "max" and isinstance(bound, float) and bound == math.inf:
        raise ValueError(f"max_norm={max_norm!r}: must be finite in mode {mode}; no norm can be brought there")
    return {"max": (0.0, bound), "min": (bound, math.inf), "equal": (bound, bound)}[mode]


def constrain(x: Any, bounds: tuple[Any, Any], axes: tuple[int, ...], mode: str) -> jax.Array:
    """Every group where its mode wants it."""
    low, high = bounds
    if mode == "max":
        return backend.constrain(x, high, axes, 0.0, 2, None)
    norms = backend.norm(backend.summarise(x, axes, 2), 2)
    work, info = norms.dtype, jnp.finfo(x.dtype)
    if isinstance(low, float) and 2 * low > float(info.max):  # a lifted group may be that long before it is constrained
        rule = f"must be at most half of the largest {x.dtype} in mode {mode}"
        raise ValueError(f"max_norm={low!r}: {rule}; use a smaller bound")
    low, high = _rounded_down(low, work), _rounded_down(high, work)
    count = math.prod(x.shape[axis] for axis in axes)
    # The constraint takes off at most 4 ulp of each entry; the others are for the roundings of norms and limits.
    slack = 7 * (float(info.eps) * low + float(info.smallest_subnormal) * math.sqrt(count))
    floor, target, ceiling = (low - slack, low, low) if mode == "equal" else (low, low + slack, high)
    target = jnp.minimum(target, ceiling)
    # XLA on a CPU reads subnormal entries as zero: groups where they would matter count as zeros and stay.
    short = (norms < floor) & (norms >= float(jnp.finfo(work).tiny) / float(jnp.finfo(work).eps))
    lifted, doublings = x.astype(work), jnp.where(short, _doublings(norms, target), 0)
    for share in range(3):  # 2.0**doublings itself may be out of range
        lifted = lifted * jnp.ldexp(jnp.ones((), work), (doublings + share) // 3)
    bound = jnp.where(short, target, ceiling)
    bound = jnp.where((low >= 0) & (high >= 0), bound, jnp.nan)
    return backend.constrain(jnp.where(short, lifted.astype(x.dtype), x), bound, axes, 0.0, 2, None)


def _doublings(norms: jax.Array, target: jax.Array) -> jax.Array:
    """The least k with norms * 2**k >= target: by exponents, as the quotient may overflow."""
    mantissa, exponent = jnp.frexp(target)
    own, own_exponent = jnp.frexp(norms)
    return exponent - own_exponent + (own < mantissa)


def _rounded_down(bound: Any, work: Any) -> jax.Array:
    """A bound in the dtype of the norms, never above what it was, where that is known."""
    if isinstance(bound, float) and bound < math.inf:
        nearest = np.asarray(bound).astype(work)
        return jnp.asarray(np.nextafter(nearest, work.type(0)) if float(nearest) > bound else nearest)
    return jnp.asarray(bound, work)
