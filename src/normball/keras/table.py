"""What is constrained in a model, along which axes, and what not, as a table to read."""

from typing import Any, NamedTuple

import keras

from normball.keras.constraints import Constraint
from normball.table import Table

_HEADER = ("weight", "layer", "shape", "layout", "axes", "constraint")


class Row(NamedTuple):
    """One constrained weight."""

    weight: str
    layer: str
    shape: tuple[int, ...]
    layout: str
    axes: tuple[int, ...]
    constraint: Any


def describe(model: keras.Layer) -> Table:
    """What the constraints of normball hold in a model: which weights, along which axes, and which not.

    Parameters
    ----------
    model : keras.Model or keras.Layer
        Built; what is not built has no weights yet.

    Returns
    -------
    Table
        ``.rows`` has a row for each weight, ``.left_out`` maps a reason to names; it prints as a table.

    Raises
    ------
    TypeError
        If `model` is none.
    ValueError
        If it has no trainable weights: it is not built.

    Notes
    -----
    Keras constrains trainable weights alone.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import MaxNorm, describe
    >>> layers = [keras.Input((6, 5)), keras.layers.LSTM(4, recurrent_constraint=MaxNorm(1.0), name="lstm")]
    >>> print(describe(keras.Sequential(layers, name="net")))
    weight                               layer     shape    layout             axes  constraint
    net/lstm/lstm_cell/recurrent_kernel  LSTMCell  (4, 16)  (in, gates*units)  0     MaxNorm(max_value=1.0)
    left out, no constraint: net/lstm/lstm_cell/kernel, net/lstm/lstm_cell/bias
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model of type {type(model).__name__}: must be a keras.Model or keras.Layer; pass one")
    result = Table(_HEADER, _cells)
    for variable in model.trainable_variables:
        constraint, shape = variable.constraint, tuple(variable.shape)
        if not isinstance(constraint, Constraint):
            reason = "no constraint" if constraint is None else f"under another constraint, {type(constraint).__name__}"
            result.leave_out(variable.path, reason)
        elif (place := constraint.place_of(variable)) is None:
            result.leave_out(variable.path, "made by no layer with this constraint: pass axis")
        else:
            result.rows.append(Row(variable.path, place.layer, shape, *place.layout, constraint))
    if not result.rows and not result.left_out:
        raise ValueError(f"model: {model.name} has no trainable weights; build it first, or call it on data")
    return result


def _cells(row: Row) -> tuple[str, ...]:
    axes = " ".join(map(str, row.axes)) or "()"
    return row.weight, row.layer, str(row.shape), row.layout, axes, repr(row.constraint)
