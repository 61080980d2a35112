"""Keep weights and gradients inside a norm ball: max-norm constraints and gradient clipping, exact in every dtype."""

from normball.api import compute_norms, get_num_threads, norm_constraint, set_num_threads, total_norm_constraint

__all__ = [
    "__version__",
    "compute_norms",
    "get_num_threads",
    "norm_constraint",
    "set_num_threads",
    "total_norm_constraint",
]
__version__ = "0.1.0"
