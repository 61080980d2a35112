"""pytensor-ml: max-norm as the last transform of a chain, for the axes of its layers.

Every layer of pytensor-ml has its units on the last axis of its weights: Linear (in, out), convolutions and transposed
ones (*kernel, in, out), the cells of recurrent layers (in, gates * hidden). PyMC's and Lasagne's convolutions had them
on the first, so the default axes of `normball.norm_constraint` would be wrong here. A table of Embedding has one vector
in each row. What a parameter was made for cannot be seen by its shape, but in the graph: the layer that reads it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

try:
    from pytensor_ml.layers import EmbeddingLayer
    from pytensor_ml.optim import Gradients, Transform, to_updates
    from pytensor_ml.params import step_counter
except ImportError as error:
    needs = "pytensor-ml, which wants Python 3.12"
    raise ImportError(f"normball.pytensor_ml needs {needs}: pip install 'normball[pytensor-ml]'") from error
from pytensor.graph.traversal import ancestors

import normball
from normball import arguments

__all__ = ["max_norm"]


def max_norm(max_norm: Any, layout: Any = None, *, namespace: str = "max_norm") -> Transform:
    """Max-norm constraint on the parameters of a network: every unit's incoming weights inside a ball.

    With v the incoming weights of one unit after the step, n their Euclidean norm in exact arithmetic and c the
    `max_norm`:

        v              where n <= c  (the same bits)
        v * c / n      where n >  c

    Parameters
    ----------
    max_norm : float, symbolic or callable
        The largest norm allowed. In a shared variable it may change between steps without another compilation. A
        function is a schedule, as for a learning rate: of the number of steps, symbolic, that were taken before.
    layout : mapping or callable, optional
        The norm axes of parameters that are not what their shape says: a mapping from parameters, or their names, to an
        int, a sequence of int, or None to leave one alone; others keep theirs. Or a function of a parameter that
        returns one of these, for all of them. Without it parameters of less than two dimensions (biases, scales) are
        left alone, `pytensor_ml.layers.Embedding` has axis 1, each vector of its table, and others have all axes but
        the last, as every other layer of pytensor-ml has its units there.
    namespace : str, optional
        Of a schedule's clock, ``{namespace}/step_count``, by which a checkpoint knows it. Two schedules in one chain
        need two of them.

    Returns
    -------
    pytensor_ml.optim.Transform
        For the end of a `pytensor_ml.optim.chain`.

    Raises
    ------
    TypeError
        For a bound that is no number.
    ValueError
        For a concrete bound that is negative or NaN (a symbolic one makes NaN). When the chain is called: in front of
        the optimizer, where there are gradients; for a `layout` of a name that no parameter has, or of axes that a
        parameter does not have; where nothing would be constrained.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold, with epsilon 0, after every step: norms are at most c in exact
    arithmetic, units within the bound keep the bits that the optimizer gave them. They hold for what a chain ends with:
    a `scale` behind this transform would move the weights again. A step that `skip_if` throws away leaves the weights
    as they were. The optimizer's memory (momentum) is not changed. For a bound per layer put
    two of them in a chain, each with a function as its `layout`.

    A parameter that no layer of pytensor-ml made, and that lies otherwise, must be named in `layout`.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> from pytensor_ml.layers import Input, Linear
    >>> from pytensor_ml.loss import SquaredError
    >>> from pytensor_ml.model import Model
    >>> from pytensor_ml.optim import adam, chain
    >>> import normball.pytensor_ml
    >>> layer = Linear("dense", n_in=4, n_out=2)
    >>> model = Model(layer(Input("x", shape=(None, 4)))).initialize(seed=0)
    >>> step = model.compile_train(chain(adam(1.0), normball.pytensor_ml.max_norm(0.5)), SquaredError())
    >>> _ = step(np.ones((8, 4)), np.ones((8, 2)))
    >>> print(normball.compute_norms(layer.W.get_value()))
    [0.5 0.5]
    """
    if not callable(max_norm):
        arguments.read_bound("max_norm", max_norm)

    def transform(loss_gradients_or_updates: Any, parameters: Sequence[Any]) -> Any:
        updates = to_updates(loss_gradients_or_updates, parameters)
        if isinstance(updates, Gradients):
            raise ValueError("max_norm: got gradients, not steps; put it behind the optimizer, at the end of the chain")
        changes, bound = {}, max_norm
        if callable(max_norm):
            clock = step_counter(f"{namespace}/step_count")
            changes[clock], bound = clock.advance(), max_norm(clock)
        for parameter, axes in _chosen(layout, updates, parameters):
            moved = updates[parameter].astype(parameter.dtype)  # what an optimizer widened, PyTensor would refuse
            changes[parameter] = normball.norm_constraint(moved, bound, axes, epsilon=0)
        return updates.replacing(changes)

    return transform


def _chosen(layout: Any, updates: Mapping, parameters: Sequence[Any]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The parameters that are constrained, and their norm axes."""
    axes_of, nothing = _reader(layout, updates, parameters), True
    for parameter in parameters:
        axes = axes_of(parameter)
        if axes is None:
            continue
        try:
            own = arguments.read_axes(parameter.ndim, axes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layout of {parameter.name}: {error}") from None
        nothing = False
        yield parameter, own
    if nothing:
        names = ", ".join(str(parameter.name) for parameter in parameters)
        raise ValueError(f"layout={layout!r}: nothing to constrain among {names}; name the axes of one in layout")


def _reader(layout: Any, updates: Mapping, parameters: Sequence[Any]) -> Callable[[Any], Any]:
    """What says the axes of a parameter, or None to leave it alone."""
    if callable(layout):
        return layout
    if layout is not None and not isinstance(layout, Mapping):
        remedy = "for example {'embed_W': 1}"
        raise TypeError(f"layout of type {type(layout).__name__}: must be a mapping or a function; {remedy}")
    given, tables = dict(layout or {}), _tables(updates)
    known = {*parameters, *(parameter.name for parameter in parameters)}
    for key in given:
        if key not in known:
            names = ", ".join(str(parameter.name) for parameter in parameters)
            raise ValueError(f"layout[{key!r}]: is no parameter; there are {names}")

    def axes_of(parameter: Any) -> Any:
        for key in (parameter, parameter.name):
            if key in given:
                return given[key]
        if parameter.ndim < 2:
            return None
        return 1 if parameter in tables else tuple(range(parameter.ndim - 1))

    return axes_of


def _tables(updates: Mapping) -> set:
    """Parameters that an Embedding reads, in which a vector is a row; its gradient keeps the lookup in the graph."""
    nodes = {variable.owner for variable in ancestors(updates.values()) if variable.owner is not None}
    return {node.inputs[1] for node in nodes if isinstance(node.op, EmbeddingLayer)}
