"""Keras' optimizers, with ``clipnorm`` and ``global_clipnorm`` that clip exactly and say what they did.

Every optimizer that this Keras has is here under its own name, and takes the same arguments.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from normball.keras.clip import clip_by_global_norm
from normball.keras.numbers import read_number
from normball.keras.tensors import constrained, norms_of


class ClipReport(NamedTuple):
    """What the clipping of an optimizer did."""

    calls: int  # steps
    norm_before: float  # the total norm of the gradients of the last step; 0 before the first
    clipped: bool  # whether they were changed
    clip_fraction: float  # of all steps, in how many they were

    def __str__(self) -> str:
        done = "clipped" if self.clipped else "as it was"
        return f"total norm {self.norm_before:.4g}, {done}; clipped in {self.clip_fraction:.1%} of {self.calls} steps"


def clipping(optimizer: Any) -> Any:
    """A subclass of an optimizer's class whose ``clipnorm`` and ``global_clipnorm`` are exact, and are reported.

    With n the Euclidean norm of a gradient g (of all of them together for ``global_clipnorm``), in exact arithmetic,
    and c the bound, g stays as it is where n <= c, with the same bits, and becomes g * c / n where n > c.

    Parameters
    ----------
    optimizer : type
        A subclass of `keras.optimizers.Optimizer`. Those of Keras itself are in `normball.keras.optimizers` already:
        ``normball.keras.optimizers.Adam``.

    Returns
    -------
    type
        Called with the same arguments. It has one method more, ``clip_report()``: a `ClipReport` with ``calls``,
        ``norm_before``, ``clipped`` and ``clip_fraction``.

    Raises
    ------
    TypeError
        If `optimizer` is no such class.
    ValueError
        From the class: for a ``clipnorm`` or ``global_clipnorm`` that is negative or NaN.

    Notes
    -----
    The bound holds in exact arithmetic, for gradients of every dtype; nothing overflows. A bound of 0 makes zeros; in
    Keras' own it means no clipping. Gradients that are accumulated are clipped when they are used. An inf or NaN
    makes NaN: of its own gradient with ``clipnorm``, of all with ``global_clipnorm``. ``clipvalue`` is Keras' own.

    What the report says is kept in three more variables of the optimizer and saved with it. Reading them waits for the
    device. On JAX, ``model.fit`` writes an optimizer's variables back at the end of an epoch.

    Optimizers of `normball.keras.optimizers` are loaded with a model if this module has been imported. One that you
    made of a class of your own is for you to register, as that class was.

    References
    ----------
    ``clipnorm`` and ``global_clipnorm`` of `keras.optimizers.Optimizer`.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import optimizers
    >>> weight = keras.Variable([0.0, 0.0])
    >>> sgd = optimizers.SGD(0.5, global_clipnorm=1.0)
    >>> sgd.apply([keras.ops.convert_to_tensor([3.0, 4.0])], [weight])
    >>> print(weight.numpy().round(3))
    [-0.3 -0.4]
    >>> print(sgd.clip_report())
    total norm 5, clipped; clipped in 100.0% of 1 steps
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, keras.optimizers.Optimizer)):
        raise TypeError(f"optimizer={optimizer!r}: must be a class of optimizers; for example keras.optimizers.Adam")
    kind: Any = optimizer
    made = type(kind.__new__(kind))  # on PyTorch Keras makes another class of its own, which is faster
    text = f"`keras.optimizers.{optimizer.__name__}` as `clipping` makes it: the same arguments, and ``clip_report()``."
    return type(optimizer.__name__, (_Clips, made), {"__doc__": text, "__module__": __name__})


class _Clips:
    """Before an optimizer's class: its clipping."""

    clipnorm: Any
    global_clipnorm: Any
    add_variable: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("clipnorm", "global_clipnorm"):
            if getattr(self, name) is not None:
                read_number(name, getattr(self, name))

    def build(self, variables: Any) -> None:
        """Variables for the report, besides the optimizer's own."""
        super().build(variables)  # type: ignore[misc]
        if not hasattr(self, "_clip_calls"):
            self._clip_calls = self.add_variable((), initializer="zeros", dtype="int32", name="clip_calls")
            self._clip_changes = self.add_variable((), initializer="zeros", dtype="int32", name="clip_changes")
            self._clip_changed = self.add_variable((), initializer="zeros", dtype="int32", name="clip_changed")
            self._clip_norm = self.add_variable((), initializer="zeros", dtype="float32", name="clip_norm")

    def _clip_gradients(self, grads: Any) -> Any:
        """What Keras calls between unscaling or accumulating gradients and using them."""
        if self.clipnorm is None and self.global_clipnorm is None:
            return super()._clip_gradients(grads)  # type: ignore[misc]
        if self.global_clipnorm is not None:
            clipped, norm = clip_by_global_norm(grads, self.global_clipnorm)
            within = norm <= self.global_clipnorm
        else:
            clipped, norms = _clip_each(grads, self.clipnorm)
            norm, within = norms_of(norms, (0,))[0], ops.all(norms <= self.clipnorm)
        changed = 1 - ops.cast(within, "int32")
        self._clip_calls.assign_add(1)
        self._clip_changes.assign_add(changed)
        self._clip_changed.assign(changed)
        self._clip_norm.assign(norm)
        return clipped

    def clip_report(self) -> ClipReport:
        """What the clipping did, so far and in the last step."""
        if self.clipnorm is None and self.global_clipnorm is None:
            raise ValueError("clip_report: this optimizer clips nothing; make it with global_clipnorm or clipnorm")
        if not hasattr(self, "_clip_calls"):
            return ClipReport(0, 0.0, False, 0.0)
        calls, changes, changed = (int(v.numpy()) for v in (self._clip_calls, self._clip_changes, self._clip_changed))
        return ClipReport(calls, float(self._clip_norm.numpy()), bool(changed), changes / max(calls, 1))


def _clip_each(grads: Any, bound: float) -> tuple[list[Any], Any]:
    """Every gradient inside a ball of its own, and the norms before."""
    clipped: list[Any] = []
    norms = []
    for gradient in grads:
        if gradient is None:
            clipped.append(None)
            continue
        tensor = ops.convert_to_tensor(gradient)
        axes = tuple(range(len(tensor.shape)))
        clipped.append(constrained(tensor, bound, axes))
        norms.append(ops.reshape(norms_of(tensor, axes), ()))
    return clipped, ops.stack(norms)


_NAMES = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam"),
    *("RMSprop", "SGD", "ScheduleFreeAdamW"),
)
for _name in _NAMES:
    if hasattr(keras.optimizers, _name):  # which differs between versions of Keras
        _made = clipping(getattr(keras.optimizers, _name))
        globals()[_name] = keras.saving.register_keras_serializable(package="normball")(_made)
