"""JAX arrays, under jit, vmap and every derivative, with 64-bit mode on or off, on one device or sharded over many.

`jax_narrow` knows float32, float16 and bfloat16, `jax_exact` float64 and lists that hold some.

Beyond the contract, functions take `over`: names of mesh axes that the groups go on over, for those who call from
inside jax.shard_map or jax.pmap, by way of `normball.jax`. A sharded array needs none: there XLA knows.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from normball import arguments
from normball.backends import jax_exact as exact
from normball.backends import jax_narrow as narrow

SUPPORTS = {
    "JAX": frozenset(["float64", "float32", "float16", "bfloat16", "bounded", "tight", "subnormals"])
    | {"per-group bounds", "symbolic bounds", "gradient"},
}
_NO_BOUND = np.asarray(np.inf, np.float32)


def summarise(x: Any, axes: tuple[int, ...], ord: float, *, over: tuple[str, ...] = ()) -> jax.Array:
    """Each group's norm, the reduced axes kept as 1: in float64, without 64-bit mode too."""
    array = _array(x, ord)
    if jnp.iscomplexobj(array):
        return _norms((_as_real(array),), (*axes, array.ndim), ord, (over,)).squeeze(-1)
    return _norms((array,), axes, ord, (over,))


@narrow.in_float64
def merge(summaries: Sequence[jax.Array], ord: float) -> jax.Array:
    """The norms of groups from those of their parts: the norm of the norms."""
    return _norms((jnp.stack(jnp.broadcast_arrays(*summaries)),), (0,), ord, ((),))[0]


def norm(summary: jax.Array, ord: float) -> jax.Array:
    """The norms as float64 (float32 without 64-bit mode), the reduced axes kept as 1."""
    return summary.astype(jnp.result_type(float))


def constrain(
    x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any, *, over: tuple[str, ...] = ()
) -> jax.Array:
    """Every group inside its ball, as a new array."""
    return constrain_each([x], [max_norm], [axes], epsilon, ord, [out], overs=[over])[0]


def constrain_each(
    xs: Sequence[Any],
    max_norms: Sequence[Any],
    axes: Sequence[tuple],
    epsilon: Any,
    ord: float,
    outs: Sequence[Any],
    *,
    overs: Sequence[tuple[str, ...]] | None = None,
) -> list[jax.Array]:
    """Every array as `constrain` would: XLA itself merges what they have to send. `overs`: `over` for each array."""
    results = []
    each = zip(xs, max_norms, axes, outs, _overs(overs, xs), strict=True)
    for index, (x, max_norm, own_axes, out, over) in enumerate(each):
        place = index if len(xs) > 1 else None
        if out is not None:
            what = f"{arguments.entry('out', place)} of type {type(out).__name__}"
            raise TypeError(f"{what}: JAX arrays cannot be written into; leave it out, use the result")
        array = _array(x, ord, place)
        groups = tuple(1 if axis in own_axes else length for axis, length in enumerate(array.shape))
        bound, small = _bound("max_norm", max_norm, groups), _bound("epsilon", epsilon, groups)
        results.append(_constrain_one(array, bound, small, own_axes, ord, _is_small(bound), over))
    return results


def constrain_total(
    xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float, *, overs: Sequence[tuple[str, ...]] | None = None
) -> tuple[list[jax.Array], jax.Array]:
    """All arrays as one group inside its ball, and its norm before. `overs`: `over` for each array."""
    arrays = tuple(_array(x, ord, index) for index, x in enumerate(xs))
    bound, small = _bound("max_norm", max_norm, ()), _bound("epsilon", epsilon, ())
    constrained, total = _constrain_all(arrays, bound, small, ord, _is_small(bound), _overs(overs, xs))
    return list(constrained), norm(total, ord)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _norms(xs: tuple, axes: tuple[int, ...], ord: float, overs: tuple) -> jax.Array:
    if any(x.dtype == np.float64 for x in xs):
        return exact.norms(xs, axes, ord, overs)
    return narrow.norms(xs, _NO_BOUND, axes, ord, True, overs)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _constrain_one(
    x: jax.Array,
    bound: jax.Array,
    epsilon: jax.Array,
    axes: tuple[int, ...],
    ord: float,
    small: bool | None,
    over: tuple[str, ...],
) -> jax.Array:
    if jnp.iscomplexobj(x):
        bound, epsilon = (v[..., None] if v.ndim else v for v in (bound, epsilon))
        parts = _constrain_one(_as_real(x), bound, epsilon, (*axes, x.ndim), ord, small, over)
        return lax.complex(parts[..., 0], parts[..., 1])
    if x.dtype == np.float64:
        return exact.constrained((x,), bound, epsilon, axes, ord, (over,))[0][0]
    norms = narrow.norms((x,), bound, axes, ord, small, (over,))
    return narrow.rescaled(x, norms, bound, epsilon, _length([[x.shape[axis] for axis in axes]], (over,), ord))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _constrain_all(
    xs: tuple, bound: jax.Array, epsilon: jax.Array, ord: float, small: bool | None, overs: tuple
) -> tuple[list, jax.Array]:
    parts = tuple(_as_real(x) if jnp.iscomplexobj(x) else x for x in xs)
    if any(x.dtype == np.float64 for x in parts):
        results, total = exact.constrained(parts, bound, epsilon, None, ord, overs)
    else:
        total = narrow.norms(parts, bound, None, ord, small, overs)
        length = _length([x.shape for x in parts], overs, ord)
        results = tuple(narrow.rescaled(x, total, bound, epsilon, length) for x in parts)
    pairs = zip(results, xs, strict=True)
    return [lax.complex(y[..., 0], y[..., 1]) if jnp.iscomplexobj(x) else y for y, x in pairs], total


def _overs(overs: Sequence[tuple[str, ...]] | None, xs: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    return ((),) * len(xs) if overs is None else tuple(overs)


def _length(shapes: Sequence[Sequence[int]], overs: Sequence[tuple[str, ...]], ord: float) -> int:
    """How many entries are added up for a group, on all devices; a largest entry is exact, whatever their number."""
    if ord == np.inf:
        return 1
    parts = [math.prod(map(lax.axis_size, over)) for over in overs]
    return sum(count * math.prod(shape) for count, shape in zip(parts, shapes, strict=True))


def _as_real(x: jax.Array) -> jax.Array:
    """A complex array as the pairs of its parts."""
    return jnp.stack([x.real, x.imag], -1)


def _is_small(bound: Any) -> bool | None:
    return narrow.is_small(bound) if isinstance(bound, np.ndarray) else None


def _array(x: Any, ord: float, index: int | None = None) -> jax.Array:
    """X as a JAX array of a dtype that has a norm ball here."""
    name = str(getattr(x, "dtype", type(x).__name__))
    what = arguments.entry("tensor_var", index)
    if name not in arguments.REAL_FLOATS:
        if name not in ("complex64", "complex128"):
            raise arguments.wrong_dtype(name, what)
        if ord != 2:
            message = f"ord={ord!r}: a complex array has order 2 only; for {what} pass its modulus, or ord=2"
            raise ValueError(message)
    return jnp.asarray(x)


def _bound(name: str, value: Any, groups: tuple[int, ...]) -> jax.Array:
    """`max_norm` or `epsilon` as a float array that broadcasts against the groups; checked where it is concrete.

    Where the float it becomes cannot hold it (float32 without 64-bit mode, a large integer), it is rounded down.
    """
    shape, dtype = np.shape(value), getattr(value, "dtype", None)
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise arguments.wrong_bound_dtype(name, dtype)
    try:
        fits = np.broadcast_shapes(shape, groups) == groups
    except ValueError:
        fits = False
    if not fits:
        raise arguments.wrong_bound_shape(name, shape, groups)
    if not isinstance(value, jax.core.Tracer):
        array = np.asarray(value)
        if not (array >= 0).all():
            raise arguments.negative_bound(name, array[~(array >= 0)].flat[0])
        fits = array.dtype.name in arguments.REAL_FLOATS and array.dtype.itemsize <= _work().itemsize
        return array if fits else _round_down(array)
    if jnp.issubdtype(dtype, jnp.integer):
        # Cut the lowest bits of what is too long, so that the conversion is exact.
        used = np.iinfo(dtype).bits - lax.clz(value).astype(np.int32)
        excess = jnp.maximum(used - (jnp.finfo(_work()).nmant + 1), 0).astype(dtype)
        return jnp.where(value < 0, -1, lax.shift_left(lax.shift_right_logical(value, excess), excess)).astype(_work())
    return value if np.dtype(dtype).name in arguments.REAL_FLOATS else value.astype(_work())


def _round_down(array: np.ndarray) -> np.ndarray:
    """Concrete numbers >= 0 in the working dtype, never above what they were."""
    work = _work()
    with np.errstate(over="ignore"):
        rounded = array.astype(work)
    if array.dtype.kind in "iu":
        above = np.array([int(r) > int(a) for r, a in zip(rounded.flat, array.flat, strict=True)]).reshape(array.shape)
    else:
        above = rounded.astype(array.dtype) > array
    return np.where(above, np.nextafter(rounded, work.type(0)), rounded)


def _work() -> np.dtype:
    """The float that bounds and norms are handed over in: float64, or float32 without 64-bit mode."""
    return np.dtype(jnp.result_type(float))
