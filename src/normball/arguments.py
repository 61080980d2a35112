"""Read what the caller wrote: norm axes, the order of the norm, bounds, and the text of every refusal.

Pure Python: this file knows no array library and imports nothing of ours.
"""

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

ORDERS = {order: order for order in (1, 2, math.inf)}
REAL_FLOATS = ("float64", "float32", "float16", "bfloat16")


def entry(name: str, index: int | None) -> str:
    """What an argument is called in errors, or an entry of one that is a list."""
    return name if index is None else f"{name}[{index}]"


def default_axes(ndim: int, index: int | None = None) -> tuple[int, ...]:
    """Axes of one unit's incoming weights: dense layers (2-D) over axis 0, convolutions (3-D to 5-D) over all but 0."""
    if ndim == 2:
        return (0,)
    if 3 <= ndim <= 5:
        return tuple(range(1, ndim))
    every = f"tuple(range({ndim}))" if ndim != 1 else "0"
    remedy = (
        "pass norm_axes=()" if ndim == 0 else f"pass norm_axes: {every} makes the whole array one group, () each entry"
    )
    message = f"norm_axes=None: no default axes for {_array(ndim, index)} (only for 2 to 5); {remedy}"
    raise ValueError(message)


def read_axes(ndim: int, norm_axes: Any, index: int | None = None) -> tuple[int, ...]:
    """Sorted, non-negative norm axes from None, an int or any iterable of ints."""
    if norm_axes is None:
        return default_axes(ndim, index)
    axes = []
    for axis in _each_axis(norm_axes):
        if not -ndim <= axis < ndim:
            message = (
                f"norm_axes={norm_axes!r}: axis {axis} is out of range for {_array(ndim, index)}; "
                f"{f'use {-ndim} to {ndim - 1}' if ndim else 'pass norm_axes=()'}"
            )
            raise ValueError(message)
        axes.append(axis % ndim)
    for axis in axes:
        if axes.count(axis) > 1:
            message = f"norm_axes={norm_axes!r}: axis {axis} is named twice; name each axis once"
            raise ValueError(message)
    return tuple(sorted(axes))


def _array(ndim: int, index: int | None) -> str:
    what = "an array" if index is None else entry("tensor_var", index)
    return f"{what} of {ndim} dimension{'' if ndim == 1 else 's'}"


def _each_axis(norm_axes: Any) -> list[int]:
    try:
        return [operator.index(norm_axes)]
    except TypeError:
        pass
    if isinstance(norm_axes, Iterable) and not isinstance(norm_axes, (str, bytes)):
        try:
            return [operator.index(axis) for axis in norm_axes]
        except TypeError:
            pass
    message = f"norm_axes={norm_axes!r}: must be None, an int or a sequence of ints; for example norm_axes=(0, 2)"
    raise TypeError(message)


def read_ord(ord: Any) -> float:
    """The order of the norm: 1, 2 or inf."""
    if (type(ord) is int or (isinstance(ord, numbers.Real) and not isinstance(ord, bool))) and ord in ORDERS:
        return ORDERS[ord]  # type: ignore[index]
    message = f"ord={ord!r}: must be 1, 2 or inf; for the Euclidean norm leave it out"
    raise ValueError(message)


def read_bound(name: str, value: Any) -> Any:
    """`max_norm` or `epsilon`: a Python number becomes a checked float, an array-like is handed on for its backend."""
    if type(value) is float and value >= 0:  # what most calls bring
        return value
    if value is None or isinstance(value, (str, bytes, bool)):
        no_constraint = f"; for no constraint pass {name.partition('[')[0]}=math.inf"
        remedy = f"; for none pass {name}=0" if name.startswith("eps") else no_constraint
        message = f"{name}={value!r}: must be a number, an array or a symbolic value >= 0{remedy}"
        raise TypeError(message)
    if not isinstance(value, numbers.Real):
        return value
    try:
        number = float(value)
    except OverflowError:  # an int or Fraction beyond float64: above every representable norm, or below every bound
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if not number >= 0:
        raise negative_bound(name, value)
    return number


def read_threads(name: str, value: Any) -> int:
    """A number of threads."""
    message = f"{name}={value!r}: must be an int >= 1; 1 for the calling thread alone"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(message)
    if operator.index(value) < 1:
        raise ValueError(message)
    return operator.index(value)


def negative_bound(name: str, value: Any) -> ValueError:
    """The error for a concrete bound that is negative or NaN."""
    return ValueError(f"{name}={value}: must be >= 0 and not NaN; a norm is never negative")


def wrong_bound_dtype(name: str, dtype: Any) -> TypeError:
    """The error for a bound that holds no real numbers."""
    return TypeError(f"{name} of dtype {dtype}: must hold real numbers; convert it to float64 first")


def wrong_bound_shape(name: str, shape: tuple, groups: tuple, index: int | None = None) -> ValueError:
    """The error for a bound that does not broadcast against the norms."""
    whose = "" if index is None else f" of {entry('tensor_var', index)}"
    return ValueError(
        f"{name} of shape {tuple(shape)}: must broadcast against the norms{whose}, of shape {tuple(groups)} "
        "(the reduced axes kept as 1); add axes of length 1 where the norm is taken"
    )


def wrong_dtype(dtype: Any, what: str = "tensor_var", cast: str = ".astype('float32')") -> TypeError:
    """The error for an array whose dtype has no norm ball here."""
    text = str(dtype)
    remedy = f"; cast it first, for example {what}{cast}"
    if text.startswith("complex"):
        remedy = "; constrain its modulus, or its real view"
    elif text.startswith(("longdouble", "float96", "float128")):
        remedy = f"; wider than the float64 that sums are kept in, so cast it first: {what}.astype('float64')"
    return TypeError(f"{what} of dtype {text}: must be one of {', '.join(REAL_FLOATS)}{remedy}")


def no_array(value: Any, index: int | None = None) -> TypeError:
    """The error for what belongs to a library of ours, but has no dimensions."""
    return TypeError(
        f"{entry('tensor_var', index)} of type {type(value).__name__}: must be an array of numbers; pass one"
    )


def wrong_out(rule: str, remedy: str, index: int | None = None) -> ValueError:
    """The error for an `out` that cannot take the result."""
    return ValueError(f"{entry('out', index)}: {rule}; {remedy}")


def is_list(value: Any) -> bool:
    """Whether this is an iterable of arrays, a generator included, and no array itself."""
    return not hasattr(value, "ndim") and isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def read_list(tensor_vars: Any) -> list:
    """The arrays of a total norm, from any iterable of them."""
    if not is_list(tensor_vars):
        message = (
            f"tensor_vars of type {type(tensor_vars).__name__}: must be a list of arrays; for one array pass [array]"
        )
        raise TypeError(message)
    return list(tensor_vars)


def read_bounds(name: str, value: Any, count: int) -> list:
    """The bounds of a list of arrays: one for all of them, or a list of as many."""
    if not isinstance(value, (list, tuple)):
        return [read_bound(name, value)] * count
    if len(value) != count:
        message = f"{name}: {len(value)} bounds for {count} arrays; pass one for all, or a list of as many"
        raise ValueError(message)
    return [read_bound(entry(name, index), bound) for index, bound in enumerate(value)]


def read_outs(out: Any, count: int) -> list:
    """The `out` of each of a list of arrays, None where there is none."""
    if out is None:
        return [None] * count
    if not isinstance(out, (list, tuple)):
        message = f"out of type {type(out).__name__}: must be a list like tensor_var; leave it out for new arrays"
        raise TypeError(message)
    if len(out) != count:
        message = f"out: {len(out)} arrays for {count} arrays; pass a list of as many"
        raise ValueError(message)
    return list(out)
