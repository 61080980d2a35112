"""JAX: the constraint from inside `jax.shard_map` or `jax.pmap`, where a group lies on several devices.

Elsewhere the functions of `normball` itself will do, for sharded arrays too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from jax import lax

from normball import arguments
from normball.backends import jax as backend


def norm_constraint(
    array: Any,
    max_norm: Any,
    norm_axes: Any = None,
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    axis_name: Any = None,
) -> Any:
    """Max-norm constraint and gradient clipping: every group of incoming weights inside a ball, over mesh axes too.

    A group v is the slice of `array` along the norm axes, together with those in the same place on all devices along
    the mesh axes `axis_name`; n is its p-norm in exact arithmetic, c its `max_norm`:

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    Parameters
    ----------
    array : array or iterable of array
        This device's part, as in `normball.norm_constraint`.
    max_norm, norm_axes, epsilon, ord
        As in `normball.norm_constraint`. All devices that share a group must pass the same bound for it.
    axis_name : str or tuple of str, or list of these, optional
        The mesh axes of `jax.shard_map`, or the axis of `jax.pmap` or `jax.vmap`, that each group goes on over. What
        is the same on all of their devices counts once for each, so leave out axes that an array is not split along.
        For several arrays one choice for all, or a list of as many. None or ``()``: groups lie on one device each.

    Returns
    -------
    array or list of array
        This device's part of the result, of the dtype and shape of `array`.

    Raises
    ------
    TypeError, ValueError
        As in `normball.norm_constraint`; for an `axis_name` that is no name, or is unknown where this is called.

    Notes
    -----
    The guarantees of `normball.norm_constraint` in JAX hold for the groups as wholes; every device decides alike.
    Devices exchange what they know of each group, never its entries, by one all-reduce: of one number for each group,
    and for float64 arrays of five from each device.

    `jax.grad` inside of `jax.shard_map` or `jax.pmap`, of a loss that differs between the devices, is the gradient of
    the sum of their losses, with one more all-reduce. A loss that was summed over the devices already counts once in
    `jax.shard_map`, but once for each device with ``check_vma=False`` and in `jax.pmap`, as everywhere in JAX.

    References
    ----------
    As of `normball.norm_constraint`; `axis_name` is that of `jax.lax.psum`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import normball.jax
    >>> halves = jnp.array([[[3.0, 0.3]], [[4.0, 0.4]]])  # the two rows of a matrix, on two devices
    >>> def on_each(half):
    ...     return normball.jax.norm_constraint(half, 1.0, 0, epsilon=0, axis_name="rows")
    >>> print(jax.vmap(on_each, axis_name="rows")(halves).round(3))
    [[[0.6 0.3]]
    <BLANKLINE>
     [[0.8 0.4]]]
    """
    several = arguments.is_list(array)
    arrays = list(array) if several else [array]
    places = range(len(arrays)) if several else (None,)
    if isinstance(norm_axes, Iterator):  # read once for each
        norm_axes = list(norm_axes)
    axes = [arguments.read_axes(_ndim(x, place), norm_axes, place) for x, place in zip(arrays, places, strict=True)]
    if several:
        bounds = arguments.read_bounds("max_norm", max_norm, len(arrays))
    else:
        bounds = [arguments.read_bound("max_norm", max_norm)]
    small, order = arguments.read_bound("epsilon", epsilon), arguments.read_ord(ord)
    overs = _overs(axis_name, len(arrays))
    results = backend.constrain_each(arrays, bounds, axes, small, order, [None] * len(arrays), overs=overs)
    return results if several else results[0]


def total_norm_constraint(
    arrays: Iterable[Any],
    max_norm: Any,
    epsilon: Any = 1e-7,
    return_norm: bool = False,
    *,
    ord: float = 2,
    axis_name: Any = None,
) -> Any:
    """Gradient clipping by the total (global) norm: all arrays, on all devices along mesh axes, as one group.

    With n the p-norm of all entries v of all arrays on all these devices, in exact arithmetic, and c the `max_norm`:

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    Parameters
    ----------
    arrays : iterable of array
        This device's parts, as in `normball.total_norm_constraint`.
    max_norm, epsilon, return_norm, ord
        As in `normball.total_norm_constraint`.
    axis_name : str or tuple of str, or list of these, optional
        As in `norm_constraint`. Of gradients some of which are split and some the same everywhere, say, a list:
        ``["model", None]``.

    Returns
    -------
    list of array
        This device's parts of the result. An empty list for an empty list.
    norm : float scalar
        The norm before rescaling, if `return_norm`: the same on all devices.

    Raises
    ------
    TypeError, ValueError
        As in `normball.total_norm_constraint`; for `axis_name` as in `norm_constraint`.

    Notes
    -----
    As of `norm_constraint`, with one collective for each choice of mesh axes, however many arrays there are.

    References
    ----------
    As of `normball.total_norm_constraint`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import normball.jax
    >>> def on_each(split, same):
    ...     parts = [split, same]
    ...     return normball.jax.total_norm_constraint(parts, 1.0, 0, True, axis_name=["model", None])[1]
    >>> print(jax.vmap(on_each, axis_name="model", in_axes=(0, None))(jnp.array([3.0, 4.0]), jnp.array(12.0)))
    [13. 13.]
    """
    variables = arguments.read_list(arrays)
    bound, small = arguments.read_bound("max_norm", max_norm), arguments.read_bound("epsilon", epsilon)
    order = arguments.read_ord(ord)
    overs = _overs(axis_name, len(variables))
    if not variables:
        return ([], 0.0) if return_norm else []
    for index, variable in enumerate(variables):
        _ndim(variable, index)
    constrained, total = backend.constrain_total(variables, bound, small, order, overs=overs)
    return (constrained, total) if return_norm else constrained


def compute_norms(array: Any, norm_axes: Any = None, *, ord: float = 2, axis_name: Any = None) -> Any:
    """The norms of the groups that `norm_constraint` would see: over the norm axes, and over mesh axes.

    Parameters
    ----------
    array : array
        This device's part, as in `normball.compute_norms`.
    norm_axes, ord
        As in `normball.compute_norms`.
    axis_name : str or tuple of str, optional
        As in `norm_constraint`.

    Returns
    -------
    array
        Float64, or float32 without 64-bit mode, with the norm axes removed; the same on all devices along `axis_name`.

    Raises
    ------
    TypeError, ValueError
        As in `norm_constraint`.

    Notes
    -----
    As of `normball.compute_norms`.

    References
    ----------
    As of `normball.compute_norms`.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import normball.jax
    >>> def on_each(row):
    ...     return normball.jax.compute_norms(row, (), axis_name="rows")
    >>> print(jax.vmap(on_each, axis_name="rows")(jnp.array([[3.0, 0.3], [4.0, 0.4]])))
    [[5.  0.5]
     [5.  0.5]]
    """
    ndim, order = _ndim(array, None), arguments.read_ord(ord)
    axes = () if norm_axes is None and ndim == 1 else arguments.read_axes(ndim, norm_axes)
    [over] = _overs(axis_name, 1)
    return backend.norm(backend.summarise(array, axes, order, over=over), order).squeeze(axes)


def _ndim(array: Any, index: int | None) -> int:
    try:
        return array.ndim
    except AttributeError:
        raise arguments.no_array(array, index) from None


def _overs(axis_name: Any, count: int) -> list[tuple]:
    """The names of mesh axes for each of so many arrays."""
    if not isinstance(axis_name, list):
        return [_names(axis_name)] * count
    if len(axis_name) != count:
        message = f"axis_name: {len(axis_name)} names for {count} arrays; pass one for all, or a list of as many"
        raise ValueError(message)
    return [_names(name, index) for index, name in enumerate(axis_name)]


def _names(value: Any, index: int | None = None) -> tuple:
    """The names of mesh axes that are known here."""
    what = f"{arguments.entry('axis_name', index)}={value!r}"
    names = () if value is None else value if isinstance(value, tuple) else (value,)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what}: must be the name of a mesh axis, or a tuple of names; for none leave it out")
        try:
            lax.axis_size(name)
        except NameError:
            message = f"{what}: no axis of this name here; call it inside jax.shard_map or jax.pmap, or leave it out"
            raise ValueError(message) from None
    if len(set(names)) != len(names):
        raise ValueError(f"{what}: names an axis twice; name each once")
    return names
