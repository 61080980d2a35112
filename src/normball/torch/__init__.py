"""PyTorch: max-norm constraints and gradient clipping in the manners of `torch.nn.utils` and of optimizers' hooks."""

from normball.torch.inplace import norm_constraint_
from normball.torch.maxnorm import MaxNorm
from normball.torch.parametrization import NormConstraint

__all__ = ["MaxNorm", "NormConstraint", "norm_constraint_"]
