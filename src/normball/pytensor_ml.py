"""pytensor-ml: max-norm constraints on a network's weights, as the last transform of a chain."""

from collections.abc import Callable, Sequence
from typing import Any

from pytensor.graph.traversal import apply_ancestors

import normball
from normball import arguments

try:
    from pytensor_ml.layers import EmbeddingLayer
    from pytensor_ml.optim import Gradients, to_updates
    from pytensor_ml.params import step_counter
except ImportError as error:
    raise ImportError(
        "normball.pytensor_ml needs pytensor-ml, for Python 3.12 or newer: pip install 'normball[pytensor-ml]'"
    ) from error

__all__ = ["max_norm"]


def max_norm(
    max_norm: Any,
    axes: Any = "incoming",
    epsilon: Any = 1e-7,
    *,
    ord: float = 2,
    namespace: str = "max_norm",
) -> Callable[[Any, Sequence[Any]], Any]:
    """Max-norm constraint on a network's weights: every unit's incoming weights inside a ball, after every step.

    With v the incoming weights of one unit as a rule would leave them, n their norm and c the `max_norm`, they become

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    Parameters
    ----------
    max_norm : float, symbolic or callable
        The bound, as in `normball.norm_constraint`. In a shared variable it may change between steps without another
        compilation. A function is a schedule: of the number of steps, symbolic, to a bound, such as those of
        `pytensor_ml.optim`.
    axes : "incoming", int, sequence of int or callable, optional
        The axes to take the norm over. "incoming" is right for the layers of pytensor-ml, see Notes. An int or a
        sequence is for every parameter of two dimensions or more. A function of a parameter returns one of these, or
        None, which leaves the parameter alone.
    epsilon, ord
        As in `normball.norm_constraint`.
    namespace : str, optional
        The beginning of the name of a schedule's clock, for more than one in a chain.

    Returns
    -------
    callable
        A transform, for the end of `pytensor_ml.optim.chain`.

    Raises
    ------
    TypeError, ValueError
        As from `normball.norm_constraint`. For `axes` that a parameter does not have; no parameter that would be
        constrained; a place in front of the rule, where there are gradients.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold of the values that a step leaves, if no transform comes after
    this one. The first step constrains; initial values are as they were drawn. Optimizer state is not constrained.

    | layer | parameter | stored as | axes |
    |---|---|---|---|
    | ``Linear``, so those of attention | ``W`` | (in, out) | 0 |
    | ``Conv1D``, ``Conv2D``, transposed too | ``W`` | (\\*kernel, in, out) | all but the last |
    | ``RNN``, ``GRU``, ``LSTM`` | ``W_ih``, ``W_hh`` | (in, gates * hidden) | 0: each gate of each unit |
    | ``Embedding`` | ``W`` | (row, dim) | 1: each vector |

    An embedding is known by the layer that reads it; all else of two dimensions or more has its outputs last. Biases
    and the scales of normalisation, of one dimension, are left alone. The defaults of `normball.norm_constraint`, those
    of PyMC, take four dimensions for (out, in, \\*kernel): wrong here.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1. In the manner of `pytensor_ml.optim.add_weight_decay`.

    Examples
    --------
    >>> import numpy as np
    >>> from pytensor_ml.layers import Input, Linear
    >>> from pytensor_ml.loss import SquaredError, supervised_loss
    >>> from pytensor_ml.optim import adam, chain, compile_train
    >>> from normball.pytensor_ml import max_norm
    >>> layer = Linear("fc", n_in=4, n_out=2)
    >>> loss, target = supervised_loss(layer(Input("X", shape=(None, 4))), SquaredError())
    >>> step = compile_train(loss, chain(adam(0.5), max_norm(1.0)))
    >>> for _ in range(10):
    ...     _ = step(np.ones((8, 4)), np.full((8, 2), 9.0))
    >>> print(normball.compute_norms(layer.W.get_value()).round(3))
    [1. 1.]
    """
    if not callable(max_norm):
        max_norm = arguments.read_bound("max_norm", max_norm)
    epsilon, ord = arguments.read_bound("epsilon", epsilon), arguments.read_ord(ord)

    def transform(loss_gradients_or_updates: Any, parameters: Sequence[Any]) -> Any:
        updates = to_updates(loss_gradients_or_updates, parameters)
        if isinstance(updates, Gradients):
            remedy = "put it after the rule: chain(adam(1e-3), max_norm(3.0))"
            raise ValueError(f"max_norm: there are gradients here, not yet the weights of a step; {remedy}")
        chosen = _chosen(axes, parameters, updates)
        bound, clock = _at_this_step(max_norm, namespace)
        constrained = {
            parameter: normball.norm_constraint(
                updates[parameter].astype(parameter.dtype), bound, own, epsilon, ord=ord
            )
            for parameter, own in chosen.items()
        }
        return updates.replacing(clock).replacing(constrained)

    return transform


def _chosen(axes: Any, parameters: Sequence[Any], updates: Any) -> dict[Any, tuple[int, ...]]:
    """The parameters that are constrained, and their norm axes."""
    embeddings = _embeddings(updates)
    chosen = {}
    for parameter in parameters:
        own = axes(parameter) if callable(axes) else axes if parameter.ndim > 1 else None
        if isinstance(own, str):
            own = _incoming(own, parameter, embeddings)
        if own is not None:
            try:
                chosen[parameter] = arguments.read_axes(parameter.ndim, own)
            except ValueError as error:
                raise ValueError(f"parameter {parameter.name}: {error}") from None
    if not chosen:
        names = ", ".join(str(parameter.name) for parameter in parameters)
        raise ValueError(f"axes={axes!r}: no parameter would be constrained, of {names}; name their axes by a function")
    return chosen


def _incoming(axes: str, parameter: Any, embeddings: set[Any]) -> tuple[int, ...] | None:
    """The axes that one unit's incoming weights lie along, None for a bias."""
    if axes != "incoming":
        raise ValueError(f"axes={axes!r}: must be 'incoming', axes, or a function of a parameter; leave it out")
    if parameter.ndim < 2:
        return None
    return (parameter.ndim - 1,) if parameter in embeddings else tuple(range(parameter.ndim - 1))


def _embeddings(updates: Any) -> set[Any]:
    """The tables that embedding layers read: of the layers' weights only these have no outputs last."""
    nodes = apply_ancestors(list(updates.values()))
    return {node.inputs[1] for node in nodes if isinstance(node.op, EmbeddingLayer)}


def _at_this_step(max_norm: Any, namespace: str) -> tuple[Any, dict[Any, Any]]:
    """The bound, and how the clock goes on that a schedule reads it off."""
    if not callable(max_norm):
        return max_norm, {}
    clock = step_counter(f"{namespace}/step_count")
    return max_norm(clock), {clock: clock.advance()}
