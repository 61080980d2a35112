"""PyMC: optimizers that keep their parameters inside a norm ball, and a callback that records norms."""

try:
    import pymc as _pymc  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "pymc":
        raise
    raise ImportError("normball.pymc needs PyMC: pip install 'normball[pymc]'") from error

from normball.pymc.optimizer import constrained
from normball.pymc.patch import patch, patched
from normball.pymc.tracker import NormTracker

__all__ = ["NormTracker", "constrained", "patch", "patched"]
