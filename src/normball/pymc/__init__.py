"""PyMC: optimizers that keep their parameters inside a norm ball, and a callback that records norms."""

from normball.pymc.optimizer import constrained
from normball.pymc.patch import patch, patched
from normball.pymc.tracker import NormTracker

__all__ = ["NormTracker", "constrained", "patch", "patched"]
