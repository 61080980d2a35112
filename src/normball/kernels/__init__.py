"""Loops over memory. See README.md in this folder."""

from normball.kernels.fallback import constrain, constrain_total, norms

__all__ = ["constrain", "constrain_total", "norms"]
