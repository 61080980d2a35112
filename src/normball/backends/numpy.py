"""NumPy arrays: every dtype, layout and byte order."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from normball import arguments, kernels
from normball.kernels.overlap import check_apart, overlap

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
    source, target, bound, small = _checked(x, max_norm, axes, epsilon, out)
    writable = _writable(target)
    kernels.constrain(_native(source), writable, axes, bound, small, ord)
    return target if writable is target else _delivered([writable], [target])[0]


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list[np.ndarray]:
    """Every array as `constrain` would, in one call of the kernel."""
    sources, targets, bounds, smalls = [], [], [], []
    for index, (x, max_norm, own_axes, out) in enumerate(zip(xs, max_norms, axes, outs, strict=True)):
        source, target, bound, small = _checked(x, max_norm, own_axes, epsilon, out, index)
        sources.append(source)
        targets.append(target)
        bounds.append(bound)
        smalls.append(small)
    check_apart(sources, outs)
    writables = [_writable(target) for target in targets]
    kernels.constrain_each([_native(source) for source in sources], writables, axes, bounds, smalls, ord)
    return _delivered(writables, targets)


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[np.ndarray], np.ndarray]:
    """All arrays as one group inside its ball, and its norm before."""
    bound, small = _bounds(max_norm, epsilon, (), ())
    natives, targets, writables = [], [], []
    for x in xs:
        source = _array(x)
        target = np.empty_like(source)
        natives.append(_native(source))
        targets.append(target)
        writables.append(_writable(target))
    total = kernels.constrain_total(natives, writables, bound, small, ord)
    return _delivered(writables, targets), total


def _checked(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, out: Any, index: int | None = None) -> tuple:
    """The array, where its result goes, and its bounds; `index` is its place in a list, for errors."""
    source = _array(x, index)
    bound, small = _bounds(max_norm, epsilon, axes, source.shape, index)
    target = np.empty_like(source) if out is None else _checked_out(out, source, index)
    return source, target, bound, small


def _array(x: Any, index: int | None = None) -> np.ndarray:
    """X as a base-class array of a dtype that has a norm ball here."""
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            what = arguments.entry("tensor_var", index)
            raise TypeError(f"{what}: a masked array has no norm here; pass x.filled(0), or the entries that count")
        x = np.asarray(x)
    if not _supported(x.dtype):
        raise arguments.wrong_dtype(x.dtype.name, arguments.entry("tensor_var", index))
    return x


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


def _delivered(writables: list[np.ndarray], targets: list[np.ndarray]) -> list[np.ndarray]:
    """The targets, with the values that the kernel wrote for them elsewhere."""
    for writable, target in zip(writables, targets, strict=True):
        if writable is not target:
            target[...] = writable
    return targets


def _bounds(max_norm: Any, epsilon: Any, axes: tuple, shape: tuple, index: int | None = None) -> tuple[Any, Any]:
    """Both bounds of the groups, checked: Python floats as they are, all else as float64 arrays."""
    if type(max_norm) is float and type(epsilon) is float:  # checked when they were read
        return max_norm, epsilon
    groups = tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return _bound("max_norm", max_norm, groups, index), _bound("epsilon", epsilon, groups, index)


def _bound(name: str, value: Any, groups: tuple[int, ...], index: int | None) -> float | np.ndarray:
    """`max_norm` or `epsilon`, a float or a float64 array that broadcasts against the groups."""
    if type(value) is float:
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise arguments.wrong_bound_dtype(name, array.dtype)
    array = array.astype(np.float64)  # a copy: out may be the memory a bound lives in
    lengths = zip(reversed(array.shape), reversed(groups), strict=False)
    if array.ndim > len(groups) or any(length not in (1, group) for length, group in lengths):
        raise arguments.wrong_bound_shape(name, array.shape, groups, index)
    if not (array >= 0).all():
        raise arguments.negative_bound(name, array[~(array >= 0)].flat[0])
    return array


def _checked_out(out: Any, x: np.ndarray, index: int | None) -> np.ndarray:
    """`out`, where it can take the result of x without spoiling anything."""
    if out is x and x.flags.forc and x.flags.writeable:  # dense, so no two entries share memory
        return out
    name = arguments.entry("tensor_var", index)
    if type(out) is not np.ndarray and not isinstance(out, np.memmap):
        raise TypeError(
            f"{arguments.entry('out', index)} of type {type(out).__name__}: must be a NumPy array like {name}; "
            "leave it out for a new one"
        )
    rule, remedy = "", f"pass np.empty_like({name})"
    if out.shape != x.shape:
        rule = f"its shape {out.shape} is not {name}'s {x.shape}"
    elif out.dtype != x.dtype:
        rule = f"its dtype {out.dtype} is not {name}'s {x.dtype}"
    elif not out.flags.writeable:
        rule, remedy = "it is read-only", "pass a writeable array"
    elif not out.flags.forc and any(step == 0 and n > 1 for step, n in zip(out.strides, out.shape, strict=True)):
        rule = "several of its entries share memory"
    elif overlap(out, x):
        rule, remedy = f"it overlaps {name} without being it", f"pass {name} itself, or a fresh array"
    if rule:
        raise arguments.wrong_out(rule, remedy, index)
    return out
