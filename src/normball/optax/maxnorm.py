"""Max-norm on parameters: as the last transformation of a chain, or, exact, on what an update has made of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_static

from normball.backends import jax as backend
from normball.backends.jax_narrow import as_stored
from normball.optax.leaves import Choice
from normball.optax.modes import constrain, read_bounds, read_mode
from normball.optax.units import PerUnit, no_params


@register_static
class MaxNorm(PerUnit):
    """What `max_norm` returns: a transformation for the end of a chain, and what `apply_updates` takes."""

    _bounds: tuple[Any, Any]
    _mode: str

    def apply(self, params: Any) -> Any:
        """Parameters with every unit inside its ball: the exact projection.

        Parameters
        ----------
        params : tree
            Parameters. Leaves that are no arrays of floats, an equinox model's functions say, come back as they are.

        Returns
        -------
        tree
            Of the same structure, dtypes and shapes.

        Raises
        ------
        ValueError
            For axes that a leaf does not have; for a tree of which nothing would be constrained.
        """

        def inside(leaf: Any, param: Any) -> Any:
            return param if leaf is None else constrain(param, self._bounds, leaf.layout.axes, self._mode)

        return self._choice.map(inside, params)

    def norms(self, params: Any) -> dict[str, jax.Array]:
        """The norms that are constrained, for a log or a plot.

        Parameters
        ----------
        params : tree
            As of `apply`.

        Returns
        -------
        dict of str to array
            By the names of `describe`, one norm per unit, in float32, or in float64 in 64-bit mode.
        """
        result = {}

        def note(leaf: Any, param: Any) -> None:
            if leaf is not None:
                axes = leaf.layout.axes
                result[leaf.name] = backend.norm(backend.summarise(param, axes, 2), 2).squeeze(axes)

        self._choice.map(note, params)
        return result


def max_norm(max_norm: Any, axes: Any = "incoming", mode: str = "max") -> MaxNorm:
    """Max-norm constraint on parameters: every unit's incoming weights inside a ball.

    With v the incoming weights of one unit, n their Euclidean norm in exact arithmetic and c the `max_norm`:

        v              where n <= c  (the same bits)
        v * c / n      where n >  c

    Parameters
    ----------
    max_norm : float or array
        The largest norm allowed; a pair (low, high) in mode range. An array broadcasts against the norms of every leaf
        with the reduced axes kept as 1. It may be traced, for a schedule.
    axes : "incoming", "all", int, sequence of int or callable, optional
        The axes to take the norm over. "incoming" knows how flax, haiku and equinox store and name weights, and leaves
        out what it does not know. An int or a sequence is for every leaf of at least two dimensions, "all" makes every
        leaf one group. A function of (path, leaf), of a name like ``Dense_0/kernel``, returns one of these or
        None, which leaves the leaf out.
    mode : {"max", "min", "equal", "range"}, optional
        What is asked of the norms: at most `max_norm`, at least, exactly, or between the two of a pair.

    Returns
    -------
    MaxNorm
        An `optax.GradientTransformation` without state, for the end of a chain. Also what
        `apply_updates` takes: ``apply(params)`` is the projection, ``describe(params)`` prints what is constrained, and
        what not, and why, ``norms(params)`` has the norms.

    Raises
    ------
    TypeError
        For a bound that is no number; for axes that are none, or traced.
    ValueError
        For a concrete bound that is negative or NaN (a traced one makes NaN); axes that a leaf does not have; a tree of
        which nothing would be constrained; optax's own error for an update without params.

    Notes
    -----
    By ``apply``, and so in `apply_updates`, the guarantees of `normball.norm_constraint` hold, with epsilon 0: norms at
    most c in exact arithmetic, compliant units keep their bits, a second call changes nothing.

    A chain ends in updates, so there this one hands on ``constrained - params``, and what `optax.apply_updates` makes
    of that, ``params + (constrained - params)``, is rounded twice: it is not what a projection gives. These updates
    are rounded inwards, so that norms still end at most at c, provided that updates are of a dtype that holds the
    parameters' and nothing comes between; but entries are as far off as parameters are rounded, and the next step
    may change them again. Updates of compliant units keep their bits. Where the constraint is to hold as above, and
    whatever the optimizer, use `apply_updates`.

    Stacked layers (``nn.scan``, ``vmap``) have an axis that neither name nor shape tell: a stack of dense kernels
    looks like a convolution's. So does a flax ``ConvTranspose`` with ``transpose_kernel``. Print ``describe``, and name
    their axes by a function. A leaf of another name than these is left out:

    | name | stored as | axes |
    |---|---|---|
    | ``kernel`` (flax), ``w`` (haiku) | (in, out), (\\*kernel, in, out) | all but the last |
    | ``kernel`` of flax's ``query``, ``key``, ``value`` | (in, heads, dim) | 0 |
    | ``w`` of haiku's transposed convolutions | (\\*kernel, out, in) | all but the last but one |
    | ``weight``, ``weight_ih``, ``weight_hh`` (equinox) | (out, in), (out, in, \\*kernel) | all but 0 |
    | ``embedding`` (flax), ``embeddings`` (haiku) | (row, dim) | 1: each vector |

    Modes min, equal and range lift shorter units, as `normball.torch.MaxNorm` says: never above the upper bound, at
    most a few ulp short of it with equal. A unit of zeros has no direction and stays; so does one shorter than 1e-31 in
    float32, where XLA on a CPU reads entries as zeros.

    With `optax.inject_hyperparams`, name `axes` among its ``static_args`` if they are an int or a function.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import normball.optax
    >>> params = {"Dense_0": {"kernel": jnp.array([[3.0, 0.3], [4.0, 0.4]]), "bias": jnp.zeros(2)}}
    >>> constraint = normball.optax.max_norm(1.0)
    >>> print(constraint.describe(params))
    name            shape   layout     axes
    Dense_0/kernel  (2, 2)  (in, out)  0
    left out, a bias or scale: Dense_0/bias
    >>> print(constraint.apply(params)["Dense_0"]["kernel"].round(3))
    [[0.6 0.3]
     [0.8 0.4]]
    >>> optimizer = optax.chain(optax.adam(1e-3), constraint)
    """
    bounds, choice = read_bounds(max_norm, read_mode(mode)), Choice(axes, clips=False)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise no_params()

        def keep_inside(leaf: Any, param: Any, update: Any) -> Any:
            if leaf is None:
                return update
            moved = _moved(param, update)
            inside = constrain(moved, bounds, leaf.layout.axes, mode)
            kept = as_stored(inside) == as_stored(moved)
            return jnp.where(kept, update, _towards(inside, param, update.dtype))

        return choice.map(keep_inside, params, updates), state

    made = MaxNorm._of(choice, update)
    made._bounds, made._mode = bounds, mode
    return made


def apply_updates(params: Any, updates: Any, constraint: Any) -> Any:
    """Add updates to parameters and project what comes out: the constraint holds exactly.

    Parameters
    ----------
    params : tree
        Parameters: of arrays, or an equinox model as it is.
    updates : tree
        Updates, as of ``optimizer.update``. Where they are None, nothing is added.
    constraint : MaxNorm
        What `max_norm` returns. For a schedule make it in the step: ``max_norm(schedule(count))``.

    Returns
    -------
    tree
        The new parameters, of the structure, dtypes and shapes of `params`.

    Raises
    ------
    TypeError
        If `constraint` is another transformation, a chain that ends in `max_norm` say.
    ValueError
        As from `max_norm`.

    Notes
    -----
    In the place of `optax.apply_updates`, with the same sum, in the dtype of the parameters, and the projection after
    it: the bound holds exactly. A chain that ends in `max_norm` has to write that as p + (projection(p + u) - p), which
    rounds again. The optimizer's memory (momentum) is not changed, and parameters are constrained whether they were
    updated or not.

    References
    ----------
    `optax.apply_updates`, with `optax.projections` behind it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import normball.optax
    >>> params = {"kernel": jnp.array([[2.0], [4.0]])}
    >>> updates = {"kernel": jnp.array([[1.0], [0.0]])}
    >>> params = normball.optax.apply_updates(params, updates, normball.optax.max_norm(1.0))
    >>> print(params["kernel"].round(3))
    [[0.6]
     [0.8]]
    """
    if not isinstance(constraint, MaxNorm):
        remedy = "make it in the step, where a schedule has its bound"
        raise TypeError(f"constraint of type {type(constraint).__name__}: must be what max_norm returns; {remedy}")

    def add(param: Any, update: Any) -> Any:
        return param if param is None or update is None else _moved(param, update)

    return constraint.apply(jax.tree.map(add, params, updates, is_leaf=lambda value: value is None))


def _towards(inside: jax.Array, param: jax.Array, dtype: Any) -> jax.Array:
    """The updates u of a dtype with |param + u| <= |inside| after rounding, and as close to it as that leaves.

    With t = inside > 0: u, to the nearest, is less than one step off t - param, so one step down param + u <= t before
    rounding, and therefore after it, t being a number of the dtype. It stays above zero: if param + u was above t, u
    was above -param, and a step down it is not below, -param being a number of the dtype itself. For t < 0 likewise.
    """
    wide = jnp.promote_types(inside.dtype, dtype)
    start, end = as_stored(jnp.asarray(param)), as_stored(inside)
    nearest = (end.astype(wide) - start.astype(wide)).astype(dtype)
    inwards = jnp.nextafter(nearest, jnp.where(end > 0, -jnp.inf, jnp.inf).astype(dtype))
    reached = (start + as_stored(nearest)).astype(inside.dtype)
    return jnp.where(abs(as_stored(reached)) > abs(end), inwards, nearest)


def _moved(param: Any, update: Any) -> jax.Array:
    return jnp.asarray(param + update).astype(jnp.asarray(param).dtype)
