"""NumPy arrays: every dtype, layout and byte order."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from normball import arguments, kernels

_DTYPES = frozenset(["float64", "float32", "float16", "bfloat16"])
SUPPORTS = {
    "NumPy": _DTYPES | {"exact decision", "bounded", "tight", "subnormals", "per-group bounds", "in place"},
}


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> np.ndarray:
    """Each group's norm as float64, the reduced axes kept as 1."""
    return kernels.norms(_native(_array(x)), axes, ord)


def merge(summaries: Sequence[np.ndarray], ord: float) -> np.ndarray:
    """The norms of groups from those of their parts: the norm of the norms."""
    stacked = np.stack(np.broadcast_arrays(*summaries))
    return kernels.norms(stacked, (0,), ord)[0]


def norm(summary: np.ndarray, ord: float) -> np.ndarray:
    """The norms: at most one ulp off, exact where a float64 holds the norm."""
    return summary


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> np.ndarray:
    """Every group inside its ball; into `out`, or a fresh array of x's layout."""
    source = _array(x)
    groups = tuple(1 if axis in axes else length for axis, length in enumerate(source.shape))
    bound, small = _bound("max_norm", max_norm, groups), _bound("epsilon", epsilon, groups)
    target = np.empty_like(source, subok=False) if out is None else _checked_out(out, source)
    native, writable = _native(source), _writable(target)
    kernels.constrain(native, writable, axes, bound, small, ord)
    if writable is not target:
        target[...] = writable
    return target


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[np.ndarray], np.ndarray]:
    """All arrays as one group inside its ball, and its norm before."""
    sources = [_array(x) for x in xs]
    bound, small = _bound("max_norm", max_norm, ()), _bound("epsilon", epsilon, ())
    natives = [_native(source) for source in sources]
    results = [np.empty_like(native, subok=False) for native in natives]
    total = kernels.constrain_total(natives, results, bound, small, ord)
    # Casting back to the caller's byte order is the identity on values, and no copy where it was native.
    return [result.astype(source.dtype, copy=False) for source, result in zip(sources, results, strict=True)], total


def _array(x: Any) -> np.ndarray:
    """X as a base-class array of a dtype that has a norm ball here."""
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
        message = "tensor_var: a masked array has no norm here; pass x.filled(0), or the entries that count"
        raise TypeError(message)
    array = np.asarray(x)
    if not _supported(array.dtype):
        raise arguments.wrong_dtype(array.dtype.name)
    return array


@functools.cache  # NumPy spells a dtype's name anew each time, for a microsecond
def _supported(dtype: np.dtype) -> bool:
    return dtype.name in arguments.REAL_FLOATS


def _native(x: np.ndarray) -> np.ndarray:
    """X in this machine's byte order, aligned; itself where it is so already."""
    return x if x.dtype.isnative and x.flags.aligned else np.require(x, x.dtype.newbyteorder("="), "A")


def _writable(target: np.ndarray) -> np.ndarray:
    """Where a kernel may write the target's values: itself where it is native and aligned."""
    if target.dtype.isnative and target.flags.aligned:
        return target
    return np.empty(target.shape, target.dtype.newbyteorder("="))


def _bound(name: str, value: Any, groups: tuple[int, ...]) -> np.ndarray:
    """`max_norm` or `epsilon` as a checked float64 array that broadcasts against the groups."""
    if type(value) is float:  # checked when it was read
        return np.array(value)
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise arguments.wrong_bound_dtype(name, array.dtype)
    array = array.astype(np.float64)  # a copy: out may be the memory a bound lives in
    try:
        fits = np.broadcast_shapes(array.shape, groups) == groups
    except ValueError:
        fits = False
    if not fits:
        raise arguments.wrong_bound_shape(name, array.shape, groups)
    if not (array >= 0).all():
        raise arguments.negative_bound(name, array[~(array >= 0)].flat[0])
    return array


def _checked_out(out: Any, x: np.ndarray) -> np.ndarray:
    """`out`, where it can take the result of x without spoiling anything."""
    if out is x and x.flags.forc and x.flags.writeable:  # dense, so no two entries share memory
        return out
    if type(out) is not np.ndarray and not isinstance(out, np.memmap):
        raise TypeError(
            f"out of type {type(out).__name__}: must be a NumPy array like tensor_var; leave it out for a new one"
        )
    if out.shape != x.shape:
        raise arguments.wrong_out(
            f"its shape {out.shape} is not tensor_var's {x.shape}", "pass np.empty_like(tensor_var)"
        )
    if out.dtype != x.dtype:
        raise arguments.wrong_out(
            f"its dtype {out.dtype} is not tensor_var's {x.dtype}", "pass np.empty_like(tensor_var)"
        )
    if not out.flags.writeable:
        raise arguments.wrong_out("it is read-only", "pass a writeable array")
    same = out.ctypes.data == x.ctypes.data and out.strides == x.strides
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise arguments.wrong_out("several of its entries share memory", "pass np.empty_like(tensor_var)")
    if not same and np.shares_memory(out, x):
        raise arguments.wrong_out("it overlaps tensor_var without being it", "pass tensor_var itself, or a fresh array")
    return out
