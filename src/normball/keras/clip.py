"""Gradient clipping by the total norm, for a training step of one's own."""

from collections.abc import Iterable
from typing import Any

from keras import ops

from normball import arguments
from normball.keras.numbers import read_number
from normball.keras.tensors import total_constrained


def clip_by_global_norm(t_list: Iterable[Any], clip_norm: float) -> tuple[list[Any], Any]:
    """Gradient clipping by the total (global) norm: all gradients as one group inside a ball.

    With n the Euclidean norm of all entries of all gradients g, in exact arithmetic, and c the `clip_norm`, each g
    becomes

        g            where n <= c  (the same bits)
        g * c / n    where n >  c

    and the norm of what comes out, in exact arithmetic, is at most c, whatever the dtypes.

    Parameters
    ----------
    t_list : iterable of tensor
        Gradients: tensors of the library that Keras computes with, of float64, float32, float16 or bfloat16. Those that
        are None stay None and count for nothing.
    clip_norm : float
        The largest total norm allowed. `inf` means no constraint.

    Returns
    -------
    list of tensor
        As many, each of its own dtype and shape.
    tensor
        The total norm before: float64, or float32 on JAX without 64-bit mode. It exceeds `clip_norm` exactly where
        the gradients were rescaled.

    Raises
    ------
    TypeError
        For a single tensor in place of a list; for a `clip_norm` that is no number; for gradients that are no floats.
    ValueError
        For a `clip_norm` that is negative or NaN.

    Notes
    -----
    The guarantees of `normball.total_norm_constraint` hold, with epsilon 0: nothing overflows, and gradients of 1e25
    are clipped to `clip_norm`. One inf or NaN makes all of them NaN. On JAX and TensorFlow gradients whose norm is
    within 4 ulp under `clip_norm` may be rescaled.

    For ``model.fit`` see `normball.keras.optimizers`.

    References
    ----------
    ``tf.clip_by_global_norm``, and ``global_clipnorm`` of Keras' optimizers. The method: R. Pascanu, T. Mikolov and Y.
    Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

    Examples
    --------
    >>> import keras
    >>> from normball.keras import clip_by_global_norm
    >>> gradients = [keras.ops.convert_to_tensor([3e25]), None, keras.ops.convert_to_tensor([[4e25]])]
    >>> clipped, norm = clip_by_global_norm(gradients, 1.0)
    >>> print(keras.ops.convert_to_numpy(clipped[0]).round(3), clipped[1])
    [0.6] None
    >>> print(f"{float(norm):.3g}")
    5e+25
    """
    bound, every = read_number("clip_norm", clip_norm), arguments.read_list(t_list)
    tensors = [ops.convert_to_tensor(gradient) for gradient in every if gradient is not None]
    clipped, norm = total_constrained(tensors, bound) if tensors else ([], ops.zeros(()))
    rest = iter(clipped)
    return [None if gradient is None else next(rest) for gradient in every], norm
