"""xarray: the functions of `normball` with names of dimensions, for DataArrays in memory or in dask's chunks.

Coordinates, names and attributes are kept. On dask nothing is computed before it is asked for.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import xarray
from xarray import DataArray, Dataset

import normball

__all__ = ["compute_norms", "norm_constraint", "total_norm_constraint"]


def norm_constraint(array: DataArray, max_norm: Any, dim: Any, epsilon: Any = 1e-7, *, ord: float = 2) -> DataArray:
    """`normball.norm_constraint` along named dimensions.

    Parameters
    ----------
    array : DataArray
        Of float64, float32, float16 or bfloat16. For each variable of a Dataset by itself there is ``dataset.map``.
    max_norm : float or DataArray
        The largest norm allowed. A DataArray has dimensions of `array` other than `dim`: one bound for each group.
        Where both have labels along a dimension, these must be equal.
    dim : str, iterable of str or ...
        The dimensions to take the norm over; ``...`` for all.
    epsilon : float or DataArray, optional
        Added to the norms of violating groups.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    DataArray
        Of the same dtype, dimensions, coordinates, name and attributes.

    Raises
    ------
    TypeError
        If `array` is no DataArray; else as `normball.norm_constraint`.
    ValueError
        For dimensions that `array` does not have, and bounds whose labels differ from its own.

    Notes
    -----
    The guarantees are those of `normball.norm_constraint`. On dask, chunks are made twice rather than kept in memory,
    where `dim` is split into chunks.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray
    >>> from normball.xarray import norm_constraint
    >>> weights = xarray.DataArray(np.array([[3.0, 0.3], [4.0, 0.4]]), dims=("input", "unit"))
    >>> norm_constraint(weights, 1.0, dim="input", epsilon=0).values
    array([[0.6, 0.3],
           [0.8, 0.4]])
    """
    axes = _axes(array, dim)
    bound, small = (_bound(name, value, array, axes) for name, value in (("max_norm", max_norm), ("epsilon", epsilon)))
    return array.copy(data=normball.norm_constraint(array.data, bound, axes, small, ord=ord))


def compute_norms(array: DataArray, dim: Any, *, ord: float = 2) -> DataArray:
    """`normball.compute_norms` along named dimensions.

    Parameters
    ----------
    array : DataArray
        As in `norm_constraint`.
    dim : str, iterable of str or ...
        The dimensions to take the norm over; ``...`` for all.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    DataArray
        Float64, without these dimensions; the other coordinates, the name and the attributes are kept.

    Examples
    --------
    >>> import xarray
    >>> from normball.xarray import compute_norms
    >>> compute_norms(xarray.DataArray([[3.0, 1.0], [4.0, 0.0]], dims=("input", "unit")), "input").values
    array([5., 1.])
    """
    axes = _axes(array, dim)
    names = [array.dims[axis] for axis in axes]

    def reduced(values: Any, axis: Any = ()) -> Any:
        return normball.compute_norms(values, axis, ord=ord)

    if not names:  # xarray would take all dimensions
        return array.copy(data=reduced(array.data))
    return array.reduce(reduced, names, keep_attrs=True)


def total_norm_constraint(
    arrays: Dataset | Iterable[DataArray],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: bool = False,
    *,
    ord: float = 2,
) -> Any:
    """`normball.total_norm_constraint` of the variables of a Dataset, or of DataArrays: all of them as one group.

    Parameters
    ----------
    arrays : Dataset or iterable of DataArray
        Of any dimensions. Coordinates do not count.
    max_norm, epsilon : float or scalar
        The largest total norm allowed, and what is added to the norm where it is exceeded.
    return_norm : bool, optional
        Whether to return the total norm, too.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    Dataset or list of DataArray
        As `arrays`, with coordinates, names and attributes.
    norm : DataArray
        The norm before, without dimensions, if `return_norm`.

    Examples
    --------
    >>> import xarray
    >>> from normball.xarray import total_norm_constraint
    >>> gradients = xarray.Dataset({"bias": ("unit", [3.0, 0.0]), "scale": ((), 4.0)})
    >>> clipped, norm = total_norm_constraint(gradients, 1.0, epsilon=0, return_norm=True)
    >>> clipped["bias"].values, float(norm)
    (array([0.6, 0. ]), 5.0)
    """
    variables = list(arrays.data_vars.values()) if isinstance(arrays, Dataset) else list(arrays)
    for index, variable in enumerate(variables):
        _check(variable, f"arrays[{index}]")
    bound, small = (value.data if isinstance(value, DataArray) else value for value in (max_norm, epsilon))
    values = [variable.data for variable in variables]
    constrained, norm = normball.total_norm_constraint(values, bound, small, True, ord=ord)
    results: Any = [old.copy(data=new) for old, new in zip(variables, constrained, strict=True)]
    if isinstance(arrays, Dataset):
        results = arrays.assign({new.name: new for new in results})
    return (results, DataArray(norm)) if return_norm else results


def _check(array: Any, name: str = "array") -> None:
    if not isinstance(array, DataArray):
        raise TypeError(f"{name} of type {type(array).__name__}: must be an xarray.DataArray; wrap it in one")


def _axes(array: DataArray, dim: Any) -> tuple[int, ...]:
    """Which axes these dimensions are."""
    _check(array)
    if dim is ...:
        return tuple(range(array.ndim))
    names: list[Hashable] = [dim] if isinstance(dim, str) or not isinstance(dim, Iterable) else list(dim)
    for name in names:
        if name not in array.dims:
            raise ValueError(f"dim={dim!r}: {name!r} is no dimension of the array, which has {array.dims}")
    return tuple(array.dims.index(name) for name in names)


def _bound(name: str, value: Any, array: DataArray, axes: tuple[int, ...]) -> Any:
    """A bound whose axes are those of the array; of length 1 where it has no such dimension."""
    if not isinstance(value, DataArray):
        return value
    groups = [dim for axis, dim in enumerate(array.dims) if axis not in axes]
    for dim in value.dims:
        if dim not in groups:
            raise ValueError(f"{name} with dimension {dim!r}: must have dimensions of the norms only, {tuple(groups)}")
    xarray.align(array, value, join="exact", copy=False)  # refuses labels that differ
    ordered = value.transpose(*(dim for dim in groups if dim in value.dims))
    return ordered.data[tuple(slice(None) if dim in value.dims else None for dim in array.dims)]
