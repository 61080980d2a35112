"""A max-norm constraint inside the forward pass, for `torch.nn.utils.parametrize`."""

from typing import Any

import numpy as np
import torch

import normball
from normball import arguments


class NormConstraint(torch.nn.Module):
    """Max-norm constraint as a parametrization: a layer computes with its weight brought inside the ball.

    With v a group of the stored weight along `axes`, n its p-norm in exact arithmetic and c its `max_norm`, the layer
    sees v where n <= c (the same bits), and v * c / (n + epsilon) where n > c; see `normball.norm_constraint`.

    Parameters
    ----------
    max_norm : float, array or Tensor
        The largest norm allowed. An array or tensor broadcasts against the norms with the reduced axes kept as 1, and
        moves with the layer; a `torch.nn.Parameter` is learned.
    axes : int or sequence of int
        The axes of the stored weight to take the norm over: 1 for `torch.nn.Linear` (out, in), (1, 2, 3) for
        `torch.nn.Conv2d`, (0, 2, 3) for an ungrouped `torch.nn.ConvTranspose2d`.
    epsilon : float, optional
        Added to the norms of violating groups.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Raises
    ------
    TypeError, ValueError
        For a bound that is no number >= 0, and, when it is registered, for axes that are out of the weight's range.

    Notes
    -----
    Differentiable: the optimizer moves the stored weight, which may leave the ball, through the derivative of the
    constraint. `MaxNorm.attach` instead moves the weight back after each step, costs nothing in the forward pass, and
    is what the literature calls max-norm.

    Assigning to the weight stores what is assigned. A weight inside the ball comes back bit for bit, any other comes
    back inside. In a `state_dict` the stored weight is called ``parametrizations.weight.original``.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.utils import parametrize
    >>> from normball.torch import NormConstraint
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = parametrize.register_parametrization(layer, "weight", NormConstraint(1.0, axes=1))
    >>> layer.weight = torch.tensor([[3.0, 4.0]])
    >>> torch.linalg.vector_norm(layer.weight) <= 1
    tensor(True)

    References
    ----------
    The method: N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15
    (2014), section 5.1.
    """

    def __init__(self, max_norm: Any, axes: Any, *, epsilon: float = 0.0, ord: float = 2) -> None:
        super().__init__()
        bound = arguments.read_bound("max_norm", max_norm)
        if not isinstance(bound, (float, torch.Tensor)):
            bound = torch.as_tensor(np.asarray(bound))
        if isinstance(bound, torch.Tensor) and not isinstance(bound, torch.nn.Parameter):
            self.register_buffer("max_norm", bound)
        else:
            self.max_norm = bound
        self.axes, self.epsilon, self.ord = axes, arguments.read_bound("epsilon", epsilon), arguments.read_ord(ord)

    def forward(self, weight: Any) -> Any:
        """The weight inside the ball."""
        return normball.norm_constraint(weight, self.max_norm, self.axes, self.epsilon, ord=self.ord)

    def right_inverse(self, weight: Any) -> Any:
        """What to store for an assigned weight: itself, which `forward` leaves alone inside the ball."""
        return weight

    def extra_repr(self) -> str:
        """The settings, for print(layer)."""
        bound = tuple(self.max_norm.shape) if isinstance(self.max_norm, torch.Tensor) else f"{self.max_norm:g}"
        return f"{bound}, axes={self.axes}" + (f", ord={self.ord}" if self.ord != 2 else "")
