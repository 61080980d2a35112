"""Gradient clipping by the total norm, by the norm of each unit, and by its ratio to the weights."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normball.backends import jax as backend
from normball.optax.leaves import FLOATS, Choice, name_of
from normball.optax.units import PerUnit, no_params, read_bound

POLICIES = ("propagate", "zero")
_REMEDIES = {
    "raise": "a compiled step cannot raise: use 'zero', or look for NaN outside of it",
    "skip": "a clip cannot skip the optimizer behind it: wrap that, optax.apply_if_finite(optimizer, 5)",
}


def clip_by_global_norm(max_norm: Any, *, nonfinite: str = "propagate") -> Any:
    """Gradient clipping by the total (global) norm: all updates of a tree as one group inside a ball.

    With n the Euclidean norm of all entries of all updates u, in exact arithmetic, and c the `max_norm`, each u becomes

        u            where n <= c  (the same bits)
        u * c / n    where n >  c

    and the norm of what comes out, in exact arithmetic, is at most c, whatever the dtypes.

    Parameters
    ----------
    max_norm : float or array
        The largest total norm allowed; one number. It may be traced: `optax.inject_hyperparams` takes a schedule, and
        compiles once. `inf` means no constraint.
    nonfinite : {"propagate", "zero"}, optional
        What becomes of updates of which one holds an inf or NaN. "propagate": NaN in every entry. "zero": zeros; the
        optimizer behind still counts the step and lets its momentum decay. Finite updates are finite, however large
        their norm.

    Returns
    -------
    optax.GradientTransformation
        Without state. Updates may be any tree of float64, float32, float16, bfloat16 and complex arrays, mixed too.

    Raises
    ------
    TypeError
        For a `max_norm` that is None, text or bool; when updates hold what has no norm, integers say.
    ValueError
        For a concrete `max_norm` that is negative or NaN (a traced one makes NaN); another `nonfinite`. "raise" and
        "skip", which `normball.torch.clip_grad_norm_` has, cannot be done here, and the message has the remedy.

    Notes
    -----
    The guarantees of `normball.total_norm_constraint` hold: nothing overflows, so updates of 1e25 are clipped to
    `max_norm`, where `optax.clip_by_global_norm` makes zeros of them; derivatives are finite at zeros. Updates whose
    norm is within 4 ulp under `max_norm` may be rescaled although they comply.

    Leaves that `optax.masked` or None leave out count for nothing.

    References
    ----------
    `optax.clip_by_global_norm`, in whose place it goes. The method: R. Pascanu, T. Mikolov and Y. Bengio, "On the
    difficulty of training recurrent neural networks", ICML 2013.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import normball.optax
    >>> clip = normball.optax.clip_by_global_norm(1.0)
    >>> updates = {"w": jnp.array([[3e25]]), "b": jnp.array([4e25])}
    >>> clipped, _ = clip.update(updates, clip.init(updates))
    >>> print(clipped["w"].round(3), clipped["b"].round(3))
    [[0.6]] [0.8]
    """
    if nonfinite not in POLICIES:
        rule = _REMEDIES.get(nonfinite, f"must be one of {', '.join(map(repr, POLICIES))}")
        raise ValueError(f"nonfinite={nonfinite!r}: {rule}")
    bound = read_bound("max_norm", max_norm)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(updates)
        for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]:
            dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
            if dtype not in FLOATS:
                remedy = "cast it, or leave it out by optax.masked"
                raise TypeError(f"updates: {name_of(path)} of dtype {dtype} has no norm ball; {remedy}")
        clip = _zeroed if nonfinite == "zero" else _clipped
        return jax.tree.unflatten(tree, clip(leaves, bound) if leaves else leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_by_norm(max_norm: Any, axes: Any = "incoming") -> PerUnit:
    """Gradient clipping by the norm of each unit: every group of updates inside a ball of its own.

    With u the updates of one unit, n their Euclidean norm in exact arithmetic and c the `max_norm`:

        u            where n <= c  (the same bits)
        u * c / n    where n >  c

    Parameters
    ----------
    max_norm : float or array
        The largest norm allowed; a number, or an array that broadcasts against the norms of every leaf with the
        reduced axes kept as 1. It may be traced: `optax.inject_hyperparams` takes a schedule.
    axes : "incoming", "all", int, sequence of int or callable, optional
        The axes to take the norm over: as in `max_norm`, and biases, scales and all leaves of less than two dimensions
        are one group each. "all" makes every leaf one group.

    Returns
    -------
    PerUnit
        An `optax.GradientTransformation` without state, whose ``describe(params)`` prints what is clipped.

    Raises
    ------
    TypeError
        For a `max_norm` or `axes` that are none.
    ValueError
        For a concrete `max_norm` that is negative or NaN (a traced one makes NaN); axes that a leaf does not have; a
        tree of which nothing would be clipped.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold, with epsilon 0. An inf or NaN turns its own unit into NaN, and
    no other.

    References
    ----------
    ``tf.clip_by_norm(t, clip_norm, axes)``. Optax has no clipping by unit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import normball.optax
    >>> clip = normball.optax.clip_by_norm(1.0, axes=0)
    >>> updates = {"w": jnp.array([[3.0, 0.3], [4.0, 0.4]])}
    >>> clipped, _ = clip.update(updates, clip.init(updates))
    >>> print(clipped["w"].round(3))
    [[0.6 0.3]
     [0.8 0.4]]
    """
    bound, choice = read_bound("max_norm", max_norm), Choice(axes, clips=True)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def clip(leaf: Any, update: Any) -> Any:
            return update if leaf is None else _constrained(update, bound, leaf.layout.axes)

        return choice.map(clip, updates), state

    return PerUnit._of(choice, update)


def adaptive_grad_clip(clipping: Any, eps: Any = 1e-3, axes: Any = "incoming") -> PerUnit:
    """Adaptive gradient clipping (AGC): each unit's update is at most a fraction of its weights in norm.

    With u the updates of one unit, n their Euclidean norm in exact arithmetic, w the norm of its parameters, and
    c = `clipping` * max(w, `eps`):

        u            where n <= c  (the same bits)
        u * c / n    where n >  c

    Parameters
    ----------
    clipping : float or array
        The largest ratio of the two norms; 0.01, say. It may be traced.
    eps : float or array, optional
        Parameters shorter than this count as this long, so that those that start at zero can move.
    axes : "incoming", "all", int, sequence of int or callable, optional
        As in `clip_by_norm`.

    Returns
    -------
    PerUnit
        An `optax.GradientTransformation` without state, which needs params; its ``describe(params)`` prints what is
        clipped.

    Raises
    ------
    TypeError, ValueError
        As from `clip_by_norm`; optax's own error for a call without params.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold for the c that is computed, which is within 2 ulp of the exact
    one in float32 (float64 in 64-bit mode), as long as w and c are numbers of that dtype. Updates of any size are
    clipped, and zeros have derivatives.

    By default the axes are those of each layer; `optax.adaptive_grad_clip` knows the number of dimensions alone, and
    takes those of flax's layers for equinox's, too.

    References
    ----------
    A. Brock, S. De, S. L. Smith and K. Simonyan, "High-performance large-scale image recognition without
    normalization", ICML 2021. `optax.adaptive_grad_clip` has ``axis``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import normball.optax
    >>> params = {"Dense_0": {"kernel": jnp.full((2, 1), 5.0), "bias": jnp.zeros(1)}}
    >>> clip = normball.optax.adaptive_grad_clip(0.5)
    >>> print(clip.describe(params))
    name            shape   layout     axes
    Dense_0/bias    (1,)    one group  0
    Dense_0/kernel  (2, 1)  (in, out)  0
    """
    ratio, least = read_bound("clipping", clipping), read_bound("eps", eps)
    choice = Choice(axes, clips=True)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise no_params()

        def clip(leaf: Any, param: Any, update: Any) -> Any:
            if leaf is None:
                return update
            norms = backend.norm(backend.summarise(param, leaf.layout.axes, 2), 2)
            return _constrained(update, ratio * jnp.maximum(norms, least), leaf.layout.axes)

        return choice.map(clip, params, updates), state

    return PerUnit._of(choice, update)


def _constrained(update: Any, bound: Any, axes: tuple[int, ...]) -> jax.Array:
    return backend.constrain(update, bound, axes, 0.0, 2, None)


def _clipped(updates: list, bound: Any) -> list:
    return backend.constrain_total(updates, bound, 0.0, 2)[0]


def _zeroed(updates: list, bound: Any) -> list:
    """The same, but zeros where one entry is not finite, without another look at all of them.

    Under a finite bound such updates come back NaN in every entry. An infinite one would let them pass.
    """
    if isinstance(bound, float):
        finite = min(bound, sys.float_info.max)
    else:
        bound = jnp.asarray(bound, jnp.result_type(bound, jnp.float16))
        finite = jnp.where(bound == jnp.inf, jnp.finfo(bound.dtype).max, bound)
    clipped = _clipped(updates, finite)
    kept = [jnp.where(bound == jnp.inf, update, inside) for update, inside in zip(updates, clipped, strict=True)]
    spoilt = [jnp.isnan(inside) & (bound >= 0) for inside in clipped]
    return [jnp.where(nan, jnp.zeros_like(update), update) for nan, update in zip(spoilt, kept, strict=True)]
