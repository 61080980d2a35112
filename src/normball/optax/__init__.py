"""Optax: max-norm constraints and gradient clipping as gradient transformations, for any tree of JAX arrays."""

from normball.optax.clip import adaptive_grad_clip, clip_by_global_norm, clip_by_norm
from normball.optax.maxnorm import MaxNorm, apply_updates, max_norm

__all__ = [
    "MaxNorm",
    "adaptive_grad_clip",
    "apply_updates",
    "clip_by_global_norm",
    "clip_by_norm",
    "max_norm",
]
