"""Weights constrained in place, with no surprise for autograd."""

from typing import Any

import torch

import normball
from normball import arguments


def norm_constraint_(
    tensor_var: Any, max_norm: Any, norm_axes: Any = None, epsilon: Any = 1e-7, *, ord: float = 2
) -> Any:
    """Max-norm constraint in place: every group of a weight's entries inside its ball.

    A group v is the slice of `tensor_var` along the norm axes, n its p-norm in exact arithmetic, c its `max_norm`:

        v                        where n <= c  (the same bits)
        v * c / (n + epsilon)    where n >  c

    Parameters
    ----------
    tensor_var : Tensor or iterable of Tensor
        Weights, or gradients: float64, float32, float16 or bfloat16, of any shape and strides. Several are checked
        together and written in one go.
    max_norm : float or Tensor, or list of these
        The largest norm allowed; a tensor broadcasts against the norms with the reduced axes kept as 1. For several
        tensors one bound for all, or a list of as many.
    norm_axes : int or sequence of int, optional
        The axes to take the norm over. By default, of tensors of 3 to 5 dimensions all but 0, as of a convolution's
        weight. A 2-D tensor does not say which axis is incoming: `torch.nn.Linear` and `torch.nn.Embedding` store one
        unit per row, so pass 1; pass 0 for (inputs, outputs). `MaxNorm` finds the axes of every layer by itself.
    epsilon : float or Tensor, optional
        Added to the norms of violating groups.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Returns
    -------
    Tensor or list of Tensor
        `tensor_var` itself; a list for several tensors.

    Raises
    ------
    TypeError
        For what is no tensor of one of the four dtypes; for a bound that is no number.
    ValueError
        For a tensor that autograd has computed and follows (not a leaf, requires grad), one whose entries share memory
        (expanded, say), two that share memory; no axes for a 2-D tensor; axes and bounds else as in
        `normball.norm_constraint`. Nothing is written.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold. Nothing is recorded for autograd, so leaf parameters need no
    ``torch.no_grad()``. Autograd is told that the memory changed: a backward pass that needs the weights of before
    raises, as after an optimizer's step.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import norm_constraint_
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 4.0)
    >>> norm_constraint_(layer.weight, 2.0, norm_axes=1) is layer.weight
    True
    >>> bool((torch.linalg.vector_norm(layer.weight, dim=1) <= 2).all())
    True

    References
    ----------
    The method: N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15
    (2014), section 5.1. Unlike in `torch.renorm`, the axes named are those that are summed over.
    """
    several = arguments.is_list(tensor_var)
    tensors = list(tensor_var) if several else [tensor_var]
    for index, tensor in enumerate(tensors):
        _check(tensor, arguments.entry("tensor_var", index if several else None), norm_axes)
    with torch.no_grad():
        whole = tensors if several else tensor_var
        return normball.norm_constraint(whole, max_norm, norm_axes, epsilon, ord=ord, out=whole)


def _check(tensor: Any, name: str, norm_axes: Any) -> None:
    """Refuse what is no tensor, or follows from others by autograd, which would not see this step."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} of type {type(tensor).__name__}: must be a torch.Tensor; convert it first")
    if tensor.requires_grad and not tensor.is_leaf:
        rule = "autograd has computed it and follows it"
        raise ValueError(f"{name}: {rule}; use normball.norm_constraint, or pass {name}.detach()")
    if norm_axes is None and tensor.ndim == 2:  # PyMC's default, axis 0, is the wrong one for PyTorch's layers
        rule = f"a 2-D tensor does not say which axis of {name} is incoming"
        raise ValueError(f"norm_axes=None: {rule}; pass 1 for torch.nn.Linear, 0 for (inputs, outputs)")
