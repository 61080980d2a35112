"""NumPy arrays: every dtype, layout and byte order."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from normball import arguments
from normball.kernels import fallback as kernel

SUPPORTS = frozenset(
    {"exact decision", "bound", "tight", "out", "float16", "bfloat16", "float32", "float64", "per-group bounds"}
)


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> kernel.Wide:
    """Each group's sum of powers, the reduced axes kept as 1."""
    return kernel.summarise(_native(x), axes, ord)


def merge(summaries: Sequence[kernel.Wide], ord: float) -> kernel.Wide:
    """The summary of groups from those of their parts."""
    return kernel.merge(summaries, ord)


def norm(summary: kernel.Wide, ord: float) -> np.ndarray:
    """The norms as float64, whatever the dtype: at most one ulp off, exact where a float64 holds the norm."""
    return kernel.to_float64(kernel.norm(summary, ord))


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> np.ndarray:
    """Every group inside its ball; into `out`, or a fresh array of x's layout."""
    source = _array(x)
    groups = tuple(1 if axis in axes else length for axis, length in enumerate(source.shape))
    bound, small = _bound("max_norm", max_norm, groups), _bound("epsilon", epsilon, groups)
    target = np.empty_like(source, subok=False) if out is None else _checked_out(out, source)
    if out is not None:  # out may be the memory a bound lives in
        bound, small = bound.copy(), small.copy()
    _constrain([source], [target], axes, bound, small, ord)
    return target


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[np.ndarray], np.ndarray]:
    """All arrays as one group inside its ball, and its norm before."""
    sources = [_array(x) for x in xs]
    targets = [np.empty_like(source, subok=False) for source in sources]
    bound, small = _bound("max_norm", max_norm, ()), _bound("epsilon", epsilon, ())
    return targets, _constrain(sources, targets, None, bound, small, ord)


def _constrain(
    sources: list[np.ndarray],
    targets: list[np.ndarray],
    axes: tuple[int, ...] | None,
    bound: np.ndarray,
    epsilon: np.ndarray,
    ord: float,
) -> np.ndarray:
    """Write each constrained source into its target; the norms before. `axes` None: one group of all entries."""
    natives = [_native(source) for source in sources]
    every = [tuple(range(x.ndim)) if axes is None else axes for x in natives]
    parts = [kernel.summarise(x, own, ord) for x, own in zip(natives, every, strict=True)]
    if axes is None:
        parts = [kernel.Wide(*(part.reshape(()) for part in wide)) for wide in parts]
    norms = kernel.norm(kernel.merge(parts, ord), ord)
    settled = kernel.settle(norms, natives, axes, bound, ord)
    for native, target, own in zip(natives, targets, every, strict=True):
        writable = target if target.dtype == native.dtype and target.flags.aligned else np.empty_like(native)
        kernel.rescale(native, settled, own, bound, epsilon, writable)
        if writable is not target:
            target[...] = writable
    return kernel.to_float64(norms)


def _array(x: Any) -> np.ndarray:
    """X as a base-class array of a dtype that has a norm ball here."""
    if isinstance(x, np.ma.MaskedArray):
        message = "tensor_var: a masked array has no norm here; pass x.filled(0), or the entries that count"
        raise TypeError(message)
    array = np.asarray(x)
    if array.dtype.name not in arguments.REAL_FLOATS:
        raise arguments.wrong_dtype(array.dtype.name)
    return array


def _native(x: Any) -> np.ndarray:
    """X in this machine's byte order, aligned; itself where it is so already."""
    array = _array(x)
    return np.require(array, array.dtype.newbyteorder("="), "A")


def _bound(name: str, value: Any, groups: tuple[int, ...]) -> np.ndarray:
    """`max_norm` or `epsilon` as a checked float64 array that broadcasts against the groups."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise arguments.wrong_bound_dtype(name, array.dtype)
    array = array.astype(np.float64)
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
    if type(out) is not np.ndarray and not isinstance(out, np.memmap):
        raise TypeError(f"out of type {type(out).__name__}: must be a NumPy array like tensor_var; leave it out for a new one")
    if out.shape != x.shape:
        raise arguments.wrong_out(f"its shape {out.shape} is not tensor_var's {x.shape}", "pass np.empty_like(tensor_var)")
    if out.dtype != x.dtype:
        raise arguments.wrong_out(f"its dtype {out.dtype} is not tensor_var's {x.dtype}", "pass np.empty_like(tensor_var)")
    if not out.flags.writeable:
        raise arguments.wrong_out("it is read-only", "pass a writeable array")
    same = out.ctypes.data == x.ctypes.data and out.strides == x.strides
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise arguments.wrong_out("several of its entries share memory", "pass np.empty_like(tensor_var)")
    if not same and np.shares_memory(out, x):
        raise arguments.wrong_out("it overlaps tensor_var without being it", "pass tensor_var itself, or a fresh array")
    return out
