"""Any other library that keeps to the Array API standard (CuPy, MLX, ndonnx...), and dask.

`array_api_portable` has the arithmetic, `array_api_dask` its arrangement in chunks. Nothing here reads a value: bounds
are looked at where they are numbers or NumPy arrays; others that turn out negative or NaN make their groups NaN.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from normball import arguments
from normball.backends import array_api_portable as portable

_CLAIMS = frozenset(["float64", "float32", "bounded", "tight", "subnormals", "per-group bounds"])
SUPPORTS = {
    "Array API": _CLAIMS,
    "dask": _CLAIMS | {"float16", "bfloat16", "symbolic bounds"},
}


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> Any:
    """Each group's norm as float64, the reduced axes kept as 1."""
    _check(x)
    if _is_dask(x):
        from normball.backends import array_api_dask as chunked

        return chunked.value(chunked.norms(x, axes, ord, True))
    xp = portable.namespace(x)
    with portable.quiet():
        return portable.value(xp, portable.norms(xp, x, axes, ord, True))


def merge(summaries: Sequence[Any], ord: float) -> Any:
    """The norms of groups from those of their parts: the norm of the norms."""
    xp = portable.namespace(summaries[0])
    return summarise(xp.stack(xp.broadcast_arrays(*summaries)), (0,), ord)[0, ...]


def norm(summary: Any, ord: float) -> Any:
    """The norms: at most one ulp off, exact where a float64 holds the norm."""
    return summary


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> Any:
    """Every group inside its ball; a new array."""
    return constrain_each([x], [max_norm], [axes], epsilon, ord, [out])[0]


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list:
    """Every array as `constrain` would."""
    jobs = []
    for index, (x, max_norm, own_axes, out) in enumerate(zip(xs, max_norms, axes, outs, strict=True)):
        place = index if len(xs) > 1 else None
        x = _as_dask(x, max_norm, epsilon)
        _check(x, place)
        if out is not None:
            name = arguments.entry("out", place)
            raise TypeError(f"{name}: arrays of {_library(x)} are not written to here; leave it out for a new one")
        groups = tuple(1 if axis in own_axes else length for axis, length in enumerate(x.shape))
        bounds = (_bound("max_norm", max_norm, x, groups, place), _bound("epsilon", epsilon, x, groups, place))
        jobs.append((x, own_axes, *bounds))
    return [_constrained(*job, ord) for job in jobs]


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list, Any]:
    """All arrays as one group inside its ball, and its norm before."""
    lazy = [x for x in (*xs, max_norm, epsilon) if _is_dask(x)]
    xs = [_as_dask(x, *lazy) for x in xs]
    for index, x in enumerate(xs):
        _check(x, index)
        _check_beside(x, xs[0], arguments.entry("tensor_var", index))
    bound, small = _bound("max_norm", max_norm, xs[0], ()), _bound("epsilon", epsilon, xs[0], ())
    if lazy:
        from normball.backends import array_api_dask as chunked

        return chunked.constrain_total(xs, bound, small, ord)
    xp = portable.namespace(xs[0])
    with portable.quiet():
        # The norm before is handed out, so its sum has two words.
        parts = [portable.norms(xp, x, tuple(range(x.ndim)), ord, True) for x in xs]
        stacked = portable.Norms(*(xp.stack([xp.reshape(w, ()) for w in words]) for words in zip(*parts, strict=True)))
        total = portable.Norms(*(xp.reshape(word, ()) for word in portable.merged(xp, stacked, (0,), ord)))
        return [portable.rescaled(xp, x, total, bound, small) for x in xs], portable.value(xp, total)


def _constrained(x: Any, axes: tuple[int, ...], max_norm: Any, epsilon: Any, ord: float) -> Any:
    if _is_dask(x):
        from normball.backends import array_api_dask as chunked

        return chunked.constrain(x, max_norm, axes, epsilon, ord)
    if isinstance(x, np.ndarray):  # in a list with others: the same bits as alone
        from normball.backends import numpy as own

        return own.constrain(x, np.asarray(max_norm), axes, np.asarray(epsilon), ord, None)
    xp = portable.namespace(x)
    with portable.quiet():
        norms = portable.norms(xp, x, axes, ord, portable.dtype_name(x) == "float64")
        return portable.rescaled(xp, x, norms, max_norm, epsilon)


def _is_dask(x: Any) -> bool:
    return any(base.__module__.startswith("dask.") for base in type(x).__mro__)


def _as_dask(x: Any, *others: Any) -> Any:
    """X as a dask array where it is NumPy's, or a number, and stands beside one."""
    if not any(map(_is_dask, others)) or not isinstance(x, (float, np.ndarray, np.generic)):
        return x
    import dask.array

    return dask.array.asarray(x)


def _library(x: Any) -> str:
    return "numpy" if isinstance(x, np.ndarray) else type(x).__module__.partition(".")[0]


def _check(x: Any, index: int | None = None) -> None:
    """Refuse what has no norm ball here."""
    what = arguments.entry("tensor_var", index)
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise arguments.no_array(x, index)
    if portable.dtype_name(x) not in arguments.REAL_FLOATS:
        raise arguments.wrong_dtype(portable.dtype_name(x), what)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}: a masked array has no norm here; pass x.filled(0), or the entries that count")
    if _is_dask(x):
        from normball.backends import array_api_dask as chunked

        chunked.check(x._meta, what)


def _check_beside(value: Any, x: Any, what: str) -> None:
    """Refuse arrays of two libraries in one call."""
    same = _is_dask(x) if _is_dask(value) else not _is_dask(x) and portable.namespace(x) is portable.namespace(value)
    if not same:
        raise TypeError(f"{what} of {_library(value)} beside an array of {_library(x)}: pass arrays of one library")


def _bound(name: str, value: Any, x: Any, groups: tuple, index: int | None = None) -> Any:
    """`max_norm` or `epsilon` as a float64 array of x's library that broadcasts against the groups."""
    if type(value) is not float and not hasattr(value, "shape"):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "fiu" and value.dtype.name != "bfloat16":
            raise arguments.wrong_bound_dtype(name, value.dtype)
        value = np.asarray(value, np.float64)
        if not (value >= 0).all():
            raise arguments.negative_bound(name, value[~(value >= 0)].flat[0])
    elif type(value) is not float:
        if not portable.dtype_name(value).startswith(("float", "bfloat", "int", "uint")):
            raise arguments.wrong_bound_dtype(name, portable.dtype_name(value))
        _check_beside(value, x, name)
    shape = () if type(value) is float else value.shape
    lengths = zip(reversed(shape), reversed(groups), strict=False)
    # A length that is not known before a graph is run, NaN or None, is left to the library.
    if len(shape) > len(groups) or any(n not in (1, group) for n, group in lengths if n == n and group == group):
        raise arguments.wrong_bound_shape(name, shape, groups, index)
    return _as_dask(value, x).astype(np.float64) if _is_dask(x) else portable.as_float64(value, x)
