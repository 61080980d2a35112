"""PyTorch: max-norm constraints and gradient clipping in the manners of `torch.nn.utils` and of optimizers' hooks."""

from normball.torch.clip import clip_grad_norm_, clip_grads_with_norm_, get_total_norm
from normball.torch.inplace import norm_constraint_
from normball.torch.maxnorm import MaxNorm
from normball.torch.parametrization import NormConstraint
from normball.torch.report import ClipReport

__all__ = [
    "ClipReport",
    "MaxNorm",
    "NormConstraint",
    "clip_grad_norm_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "norm_constraint_",
]
