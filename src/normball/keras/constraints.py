"""Constraints of weights in the manner of `keras.constraints`, that keep what complies and know their layer's axes."""

import copy
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
from keras import ops

from normball import arguments
from normball.keras.layouts import Layout
from normball.keras.lift import between
from normball.keras.numbers import read_number
from normball.keras.tensors import constrained


class Place(NamedTuple):
    """Where a constraint is at work."""

    layer: str
    layout: Layout


class Constraint(keras.constraints.Constraint):
    """What the constraints share: their axes."""

    def __init__(self, axis: Any) -> None:
        self._place: Place | None = None
        self.axis = axis if isinstance(axis, str) and axis == "incoming" else _read_axis(axis)

    def __call__(self, w: Any) -> Any:
        """The constrained tensor; `w` is a variable or a tensor."""
        x, place = ops.convert_to_tensor(w), self.place_of(w)
        if place is None:
            what = f"the variable {w.path}" if isinstance(w, keras.Variable) else f"a tensor of shape {tuple(x.shape)}"
            remedy = "pass axis, for example axis=0"
            raise ValueError(f"axis='incoming': {what} was made by no layer with this constraint; {remedy}")
        return self._constrain(x, place.layout.axes)

    def place_of(self, w: Any) -> Place | None:
        """Where it is at work on a variable or tensor; None where nobody has said along which axes."""
        if self.axis == "incoming":
            return self._place
        axes = arguments.read_axes(len(w.shape), self.axis)
        return Place(self._place.layer if self._place else "", Layout("as given", axes))

    def at(self, layer: Any, variable: Any, layout: Layout | None) -> "Constraint":
        """A constraint like this for a variable of a layer; `normball.keras.incoming` asks when the layer is built."""
        ndim = len(variable.shape)
        if layout is None and self.axis == "incoming":
            what = f"{variable.path} of shape {tuple(variable.shape)}, of a layer of type {type(layer).__name__},"
            rule = "is stored in a way that is not known here" if ndim > 1 else "has no incoming weights"
            remedy = "pass axis, for example axis=0" + (
                " where it is (in, out)" if ndim > 1 else " for the norm of all"
            )
            raise ValueError(f"axis='incoming': {what} {rule}; {remedy}")
        placed = copy.copy(self)
        placed._place = Place(type(layer).__name__, layout or Layout("as given", ()))
        placed.place_of(variable)  # refuses axes that it does not have
        return placed

    def _constrain(self, x: Any, axes: tuple[int, ...]) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        config = self.get_config()
        if config["axis"] == "incoming":
            del config["axis"]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


@keras.saving.register_keras_serializable(package="normball")
class MaxNorm(Constraint):
    """Max-norm constraint on a layer's weights: after every optimizer step each unit's incoming weights are in a ball.

    With v one unit's incoming weights, n their Euclidean norm in exact arithmetic and c the `max_value`:

        v              where n <= c  (the same bits)
        v * c / n      where n >  c

    Parameters
    ----------
    max_value : float, optional
        The largest norm allowed. `inf` means no constraint.
    axis : "incoming", int or sequence of int, optional
        The axes to take the norm over. With ``"incoming"`` the layer is asked how it stores its weights when it is
        built, so that one group is what one unit receives. `normball.keras.describe` prints which axes these are.
        ``[]`` makes every entry its own group.

    Raises
    ------
    TypeError
        For a `max_value` that is no number, an `axis` that is none; for weights that are no floats.
    ValueError
        For a `max_value` that is negative or NaN, axes that the weights do not have; with ``"incoming"``, when a layer
        is built that is not in the list below, or when called with a variable that no layer has made with it.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold, with epsilon 0, for float64, float32, float16 and bfloat16: norms
    at most c in exact arithmetic, compliant units keep their bits, a second call changes nothing. On JAX and TensorFlow
    a unit within 4 ulp under its bound may be rescaled.

    | layer | weight | stored as | axes |
    |---|---|---|---|
    | ``Dense`` | ``kernel`` | (in, out) | 0 |
    | ``EinsumDense``, in attention layers, too | ``kernel`` | as its equation says | those it sums over |
    | ``Conv1D``, ``2D``, ``3D``, also grouped | ``kernel`` | (\\*kernel, in, out) | all but the last |
    | ``Conv1DTranspose``, ``2D``, ``3D`` | ``kernel`` | (\\*kernel, out, in) | all but the last but one |
    | ``DepthwiseConv1D``, ``2D`` | ``kernel`` | (\\*kernel, in, multiplier) | all but the last two |
    | ``SeparableConv1D``, ``2D`` | ``depthwise_kernel`` | (\\*kernel, in, multiplier) | all but the last two |
    | the same | ``pointwise_kernel`` | (\\*1, in, out) | all but the last |
    | ``Embedding`` | ``embeddings`` | (row, dim) | 1: each vector |
    | ``SimpleRNN``, ``LSTM``, ``GRU`` | ``kernel``, ``recurrent_kernel`` | (in, gates\\*units) | 0: each gate |
    | ``ConvLSTM1D``, ``2D``, ``3D`` | ``kernel``, ``recurrent_kernel`` | (\\*kernel, in, out) | all but the last |

    Subclasses count as their layer. One instance may serve several layers. It is saved with the model and comes back
    with it; the file says ``"incoming"``, and the layer is asked again.

    Keras constrains after an optimizer step, so initial or assigned weights are inside from the first step on. A
    constraint is compiled into the training step: to change `max_value` later, compile the model again.

    References
    ----------
    The signature is that of `keras.constraints.MaxNorm`, whose default for `axis` is 0. The method: N. Srivastava et
    al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014), section 5.1.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import MaxNorm, describe
    >>> maxnorm = MaxNorm(3.0)
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 1)),
    ...     keras.layers.Conv2D(4, 3, kernel_constraint=maxnorm, name="conv"),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(10, kernel_constraint=maxnorm, name="out"),
    ... ], name="net")
    >>> print(describe(model))
    weight           layer   shape         layout              axes   constraint
    net/conv/kernel  Conv2D  (3, 3, 1, 4)  (*kernel, in, out)  0 1 2  MaxNorm(max_value=3.0)
    net/out/kernel   Dense   (144, 10)     (in, out)           0      MaxNorm(max_value=3.0)
    left out, no constraint: net/conv/bias, net/out/bias
    >>> weights = keras.ops.convert_to_tensor([[3.0, 0.3], [4.0, 0.4]])
    >>> print(keras.ops.convert_to_numpy(MaxNorm(1.0, axis=0)(weights)).round(3))
    [[0.6 0.3]
     [0.8 0.4]]
    """

    def __init__(self, max_value: float = 2, axis: Any = "incoming") -> None:
        super().__init__(axis)
        self.max_value = read_number("max_value", max_value)

    def get_config(self) -> dict[str, Any]:
        """What Keras saves."""
        return {"max_value": self.max_value, "axis": self.axis}

    def _constrain(self, x: Any, axes: tuple[int, ...]) -> Any:
        return constrained(x, self.max_value, axes)


@keras.saving.register_keras_serializable(package="normball")
class MinMaxNorm(Constraint):
    """Norms between two bounds: units shorter than `min_value` are lifted, longer than `max_value` shortened.

    With v one unit's incoming weights, n their Euclidean norm in exact arithmetic, a the `min_value` and b the
    `max_value`, and n' = a or b, whichever n is beyond:

        v                                        where a <= n <= b  (the same bits)
        v * ((1 - rate) * n + rate * n') / n     where n < a or n > b

    Parameters
    ----------
    min_value, max_value : float, optional
        The bounds. `max_value` may be `inf`.
    rate : float, optional
        The share of the way back that a step goes, from 0 to 1.
    axis : "incoming", int or sequence of int, optional
        As of `MaxNorm`.

    Raises
    ------
    TypeError, ValueError
        As from `MaxNorm`; for `min_value` above `max_value` or beyond a fifth of what the dtype of the weights holds,
        a `rate` outside of 0 to 1.

    Notes
    -----
    Norms never end above `max_value` where `rate` is 1, in exact arithmetic. Lifted ones end a few ulp above
    `min_value`, so a second call changes nothing; where there is no room between the bounds, at most at `max_value`
    and a few ulp below it. Lifting multiplies by a power of two, which rounds nothing, and constrains.

    A unit of zeros has no direction and stays zero. On JAX so does one shorter than about 2e-31 in float32, as XLA
    reads numbers below 1e-38 as zeros.

    References
    ----------
    The signature is that of `keras.constraints.MinMaxNorm`.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import MinMaxNorm
    >>> weights = keras.ops.convert_to_tensor([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]])
    >>> print(keras.ops.convert_to_numpy(MinMaxNorm(1.0, 2.0, axis=0)(weights)).round(3))
    [[1.2 0.6 0. ]
     [1.6 0.8 0. ]]
    """

    def __init__(
        self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Any = "incoming"
    ) -> None:
        super().__init__(axis)
        self.min_value, self.max_value = read_number("min_value", min_value), read_number("max_value", max_value)
        self.rate = read_number("rate", rate)
        if self.min_value > self.max_value:
            rule = f"must be at most max_value={max_value!r}; exchange them"
            raise ValueError(f"min_value={min_value!r}: {rule}")
        if self.min_value == math.inf:
            raise ValueError(f"min_value={min_value!r}: must be finite; no norm can be brought there")
        if self.rate > 1:
            raise ValueError(f"rate={rate!r}: must be from 0 to 1; for the bounds at once leave it out")

    def get_config(self) -> dict[str, Any]:
        """What Keras saves."""
        return {"min_value": self.min_value, "max_value": self.max_value, "rate": self.rate, "axis": self.axis}

    def _constrain(self, x: Any, axes: tuple[int, ...]) -> Any:
        return between(x, self.min_value, self.max_value, self.rate, axes)


@keras.saving.register_keras_serializable(package="normball")
class UnitNorm(Constraint):
    """Unit norm: every unit's incoming weights on the sphere of radius 1.

    With v one unit's incoming weights and n their Euclidean norm, v / n; the same bits where n is 1 already, to within
    a few ulp.

    Parameters
    ----------
    axis : "incoming", int or sequence of int, optional
        As of `MaxNorm`.

    Raises
    ------
    TypeError, ValueError
        As from `MaxNorm`.

    Notes
    -----
    Norms end at most at 1, in exact arithmetic, with entries within 4 ulp of v / n; a second call changes nothing. A
    unit of zeros has no direction and stays zero, as in `MinMaxNorm`.

    References
    ----------
    The signature is that of `keras.constraints.UnitNorm`, whose default for `axis` is 0.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import UnitNorm
    >>> weights = keras.ops.convert_to_tensor([[3.0, 0.3], [4.0, 0.4]])
    >>> print(keras.ops.convert_to_numpy(UnitNorm(axis=0)(weights)).round(3))
    [[0.6 0.6]
     [0.8 0.8]]
    """

    def __init__(self, axis: Any = "incoming") -> None:
        super().__init__(axis)

    def get_config(self) -> dict[str, Any]:
        """What Keras saves."""
        return {"axis": self.axis}

    def _constrain(self, x: Any, axes: tuple[int, ...]) -> Any:
        return between(x, 1.0, 1.0, 1.0, axes)


def _read_axis(axis: Any) -> int | list[int]:
    """An int or a list of them, as JSON holds them."""
    if isinstance(axis, str):
        raise ValueError(f"axis={axis!r}: must be 'incoming', or axes; for example axis=0")
    several = isinstance(axis, Iterable)
    axes = list(axis) if several else [axis]
    if not all(hasattr(entry, "__index__") and not isinstance(entry, bool) for entry in axes):
        raise TypeError(f"axis={axis!r}: must be 'incoming', an int or a sequence of ints; for example axis=0")
    whole = [entry.__index__() for entry in axes]
    return whole if several else whole[0]
